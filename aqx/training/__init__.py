"""Trainings: jobs in, outcomes out; here, in processes of our own, or in any executor."""

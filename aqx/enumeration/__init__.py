"""Enumeration: a space's functions, their classes of equal functions and their outputs, into a database."""

from aqx.enumeration.points import SAMPLINGS, sample_points
from aqx.enumeration.run import EnumerationReport, enumerate_space

__all__ = ["SAMPLINGS", "EnumerationReport", "enumerate_space", "sample_points"]

"""aqx finds better activation functions for your own Flax model and data."""

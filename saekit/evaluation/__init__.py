"""The same figures for every model."""

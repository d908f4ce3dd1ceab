"""Runs and the controls beside them, judged on the rows of a store: data in, data out.
saekit.report draws it."""

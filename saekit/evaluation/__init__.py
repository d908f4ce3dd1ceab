"""Runs and their controls, evaluated on the same rows: data in, data out. saekit.report draws
them."""

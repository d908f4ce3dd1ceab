"""Changing hidden states while the model runs: splice (any function of the rows at a hook), and
what is trained through it."""

"""Changing hidden states while the model runs: attach (edits of a dictionary's code), splice (any
function of the rows at a hook), and what is trained through them."""

"""Many autoencoders over one pass of the data, and how they trade sparsity for error.

grid: a TOML file -> the settings of each member. run: members side by side, one reader of rows.
"""

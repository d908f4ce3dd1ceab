"""Many autoencoders over one pass of the data, and how they trade sparsity for error.

grid: a TOML file -> the settings of each member. run: members in parallel, with one reader of rows.
"""

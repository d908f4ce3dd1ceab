"""Dictionaries that other programs published: opened from local files with the same numbers, or
refused by name. docs/published.md lists what opens."""

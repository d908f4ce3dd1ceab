"""Measurements. Every claim of speed is a ratio of arms that were interleaved in one run; figures are medians, with the 20th and 80th
percentile beside them."""

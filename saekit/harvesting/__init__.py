"""Transformer to store: models (loading), hooks (where to read), sources (data), inputs (model batches), run (the loop)."""

"""Transformer to store: models (loading), hooks (where to read), sources (data), inputs (model
batches), run (the verb).

Raw data to store, without a model: rawdata (data as rows), raw (the run). Shared by both:
documents, config, base.
"""

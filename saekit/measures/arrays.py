"""Codes, rows and labels of any kind as numpy arrays: models give tensors, and the measures here
use scikit-learn.

They are checked here, because scikit-learn's messages name neither the model's code nor the bad
row. Sparse codes can stay sparse for scikit-learn: 20,000 rows of 25,000 latents take 2 GB as a
matrix and 5 MB with 32 values per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from saekit_kernels import RaggedCodes
from scipy.sparse import csr_matrix

from saekit.errors import DataError, NumericsError
from saekit.models.codes import Code, entries

Rows = np.ndarray | Code | RaggedCodes
Codes = np.ndarray | csr_matrix
Labels = Sequence[str] | Sequence[int] | torch.Tensor | np.ndarray


def matrix(values: Rows | csr_matrix, name: str) -> np.ndarray:
    """(N, F) float32 or float64, trailing axes flattened; `name` is for errors. Raises DataError
    (no rows), NumericsError (NaN or inf)."""
    if isinstance(values, csr_matrix):
        values = values.toarray()
    elif not isinstance(values, np.ndarray):
        values = values.to_dense().detach().cpu()
        # numpy has no bfloat16, and distances in half precision lose the nearest neighbors
        values = values.numpy() if values.dtype == torch.float64 else values.float().numpy()
    values = np.asarray(values)
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    if len(values) == 0:
        raise DataError(f"{name}: there are no rows")
    values = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise NumericsError(
            f"{name}: row {bad[0]} is not finite ({len(bad):,} of {len(values):,} rows)"
        )
    return values


def classes(labels: Labels, rows: int, name: str) -> np.ndarray:
    """(N,) labels, one per row; `name` is for errors. Raises DataError when a row has none or their
    number differs from `rows`."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (rows,):
        raise DataError(f"{name}: labels of shape {labels.shape} for {rows:,} rows")
    missing = [i for i, label in enumerate(labels.tolist()) if label is None]
    if missing:
        raise DataError(
            f"{name}: row {missing[0]} has no label ({len(missing):,} of {rows:,} rows)"
        )
    # dtype object, from a list that held None before, is not text for scikit-learn
    return labels.astype(str) if labels.dtype == object else labels


def as_numbers(code: Code | RaggedCodes, active_above: float | None) -> Codes:
    """(B,F): a matrix; sparse for sparse codes and for codes that are active above 0."""
    if not isinstance(code, RaggedCodes) and code.is_sparse:
        row, latent, value = (part.cpu() for part in entries(code))
        at = (row.numpy(), latent.numpy())
        return csr_matrix((value.float().numpy(), at), shape=(len(code), code.shape[-1]))
    dense = code.to_dense().float().flatten(1).cpu().numpy()
    return csr_matrix(dense) if active_above == 0.0 else dense

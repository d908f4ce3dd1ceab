"""Codes, rows and labels of any kind as numpy arrays: the figures of this package come from
scikit-learn, models give tensors.

Checked at this one place, because scikit-learn's own messages name neither the model's code nor the
row at fault. Sparse codes can stay sparse on the way to scikit-learn: 20,000 rows of 25,000 latents
are 2 GB as a matrix and 5 MB as 32 numbers a row.
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


def matrix(values: Rows, what: str) -> np.ndarray:
    """(N, F) float32 or float64, trailing axes flattened; `what` names it in errors. DataError: no
    rows; NumericsError: NaN or inf."""
    if not isinstance(values, np.ndarray):
        values = values.to_dense().detach().cpu()
        # numpy has no bfloat16, and distances in half precision lose the neighbours
        values = values.numpy() if values.dtype == torch.float64 else values.float().numpy()
    values = np.asarray(values)
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    if len(values) == 0:
        raise DataError(f"{what}: there are no rows")
    values = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise NumericsError(
            f"{what}: row {bad[0]} is not finite ({len(bad):,} of {len(values):,} rows)"
        )
    return values


def classes(labels: Labels, rows: int, what: str) -> np.ndarray:
    """(N,) labels, one a row. Raises DataError when a row has none or their number differs from
    `rows`."""
    labels = (
        labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    )
    if labels.shape != (rows,):
        raise DataError(f"{what}: labels of shape {labels.shape} for {rows:,} rows")
    missing = [i for i, label in enumerate(labels.tolist()) if label is None]
    if missing:
        raise DataError(
            f"{what}: row {missing[0]} has no label ({len(missing):,} of {rows:,} rows)"
        )
    # a list that once held None is of dtype object, which scikit-learn does not take for strings
    return labels.astype(str) if labels.dtype == object else labels


def as_numbers(code: Code | RaggedCodes, active_above: float | None) -> Codes:
    """(B,F): a matrix, sparse for sparse codes and for rectified ones."""
    if code.is_sparse:
        row, latent, value = entries(code)
        at = (row.numpy(), latent.numpy())
        return csr_matrix((value.float().numpy(), at), shape=(len(code), code.shape[-1]))
    dense = code.to_dense().float().flatten(1).numpy()
    return csr_matrix(dense) if active_above == 0.0 else dense

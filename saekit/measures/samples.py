"""Are samples of a generator like real rows, as varied as they are, and not copies of them?

Three questions, because any two can be answered well by a bad generator: one that repeats a single
good row is precise and does not cover, one that repeats the training rows does both and generates
nothing. All distances are Euclidean and computed from differences, so the distance of a row to
itself is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from saekit.errors import DataError, UsageError
from saekit.measures.anomaly import auroc
from saekit.measures.arrays import Rows, matrix

NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
CHUNK = 256  # rows whose distances are in memory at once


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    """Share of samples within the real rows' manifold."""
    recall: float
    """Share of real rows within the samples' manifold."""


@dataclass(frozen=True)
class Memorization:
    """How near samples are to the training rows, beside held-out rows, which a generator cannot
    have copied. Blurred samples are near as well: a ratio below 1 does not prove copies."""

    ratio: float
    """Median distance to the nearest training row, that of samples over that of held-out rows."""
    nearer: float
    """Probability that a sample is nearer to its nearest training row than a held-out row to its
    own; ties count half. 0.5: as near as new rows are; 1: all samples are nearer."""
    copies: float
    """Share of samples that are nearer than every held-out row."""


def precision_recall(real: Rows, drawn: Rows, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, equation 2).

    The manifold of a set is the union of balls around its rows, each up to its k-th nearest other
    row of the set. real (N,F) and drawn (N,F) are rows or features of rows; equal numbers, since
    the balls shrink as a set grows. Raises UsageError, DataError, NumericsError.
    """
    real_NF, drawn_NF = _pair(real, drawn)
    if len(real_NF) != len(drawn_NF):
        raise UsageError(
            f"{len(real_NF):,} real rows and {len(drawn_NF):,} samples: radii depend on the number"
            " of rows",
            "as many samples as real rows",
        )
    return PrecisionRecall(
        precision=_within(drawn_NF, real_NF, k),
        recall=_within(real_NF, drawn_NF, k),
    )


def memorization(train: Rows, held_out: Rows, drawn: Rows) -> Memorization:
    """Distances of samples (M,D) and of held-out rows (H,D) to the nearest of the training rows
    (N,D); the comparison is that of Meehan, Chaudhuri and Dasgupta 2020 (arXiv 2004.05675,
    section 3). Raises DataError, NumericsError."""
    train_ND, drawn_MD = _pair(train, drawn)
    _, new_HD = _pair(train, held_out)
    of_drawn, of_new = nearest(drawn_MD, train_ND), nearest(new_HD, train_ND)
    if not of_new.any():
        raise DataError(
            "every held-out row is also a training row", "rows that were not trained on"
        )
    return Memorization(
        ratio=float(np.median(of_drawn) / np.median(of_new)),
        nearer=auroc(of_drawn, of_new),
        copies=float((of_drawn < of_new.min()).mean()),
    )


def diversity(real: Rows, drawn: Rows) -> float:
    """Median distance of a sample to the nearest other sample over that of as many real rows: 0
    when samples repeat, about 1 when they are as varied as the rows. Raises UsageError, DataError,
    NumericsError."""
    real_ND, drawn_ND = _pair(real, drawn)
    count = min(len(real_ND), len(drawn_ND))
    of_real = np.median(radii(real_ND[:count], 1))
    if of_real == 0:
        raise DataError("most real rows are repeated, so samples cannot be compared with them")
    return float(np.median(radii(drawn_ND[:count], 1)) / of_real)


def nearest(queries: Rows, rows: Rows) -> np.ndarray:
    """(Q,) distance of each query to the nearest row."""
    rows_ND, queries_QD = _pair(rows, queries)
    return np.concatenate([chunk.amin(1).numpy() for chunk in _distances(queries_QD, rows_ND)])


def radii(rows: Rows, k: int) -> np.ndarray:
    """(N,) distance of each row to its k-th nearest other row. Raises UsageError."""
    rows_ND = matrix(rows, "rows")
    if not 1 <= k < len(rows_ND):
        raise UsageError(f"k = {k} must be at least 1 and below the number of rows, {len(rows_ND)}")
    # the row itself is one of the k + 1 smallest, at distance 0
    return np.concatenate(
        [chunk.kthvalue(k + 1, dim=1).values.numpy() for chunk in _distances(rows_ND, rows_ND)]
    )


def _within(queries_QF: np.ndarray, rows_NF: np.ndarray, k: int) -> float:
    """Share of queries in the manifold of the rows."""
    radius_N = torch.from_numpy(radii(rows_NF, k))
    inside = [(chunk <= radius_N).any(1) for chunk in _distances(queries_QF, rows_NF)]
    return float(torch.cat(inside).double().mean())


def _distances(queries_QD: np.ndarray, rows_ND: np.ndarray) -> Iterator[torch.Tensor]:
    """(CHUNK, N) at a time."""
    rows = torch.from_numpy(rows_ND)
    for chunk in torch.from_numpy(queries_QD).split(CHUNK):
        # products of large rows would cancel, and put a row at some distance from itself
        yield torch.cdist(chunk, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _pair(real: Rows, drawn: Rows) -> tuple[np.ndarray, np.ndarray]:
    real_NF, drawn_MF = matrix(real, "real rows"), matrix(drawn, "samples")
    if real_NF.shape[1] != drawn_MF.shape[1]:
        raise DataError(
            f"real rows of {real_NF.shape[1]} values and samples of {drawn_MF.shape[1]}"
        )
    dtype = np.result_type(real_NF, drawn_MF)
    return real_NF.astype(dtype, copy=False), drawn_MF.astype(dtype, copy=False)

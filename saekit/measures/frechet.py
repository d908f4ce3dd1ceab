"""The Frechet distance between two sets of features, as if each were Gaussian (Heusel et al. 2017,
arXiv 1706.08500, equation 6).

It is called FID only with the features of one Inception network on ImageNet. A distance in other
features is not comparable with published ones, and depends on the number of rows: covariances of
few rows add to it. Compare it with the distance between two sets of real rows of the same sizes.
"""

from __future__ import annotations

import numpy as np

from saekit.errors import DataError
from saekit.measures.arrays import Rows, matrix


def frechet_distance(real: Rows, drawn: Rows) -> float:
    """Of features (N,F) and (M,F), in their squared units; 0 for equal means and covariances.
    Raises DataError (fewer than two rows, unequal widths), NumericsError."""
    a, b = matrix(real, "real features"), matrix(drawn, "features of samples")
    if a.shape[1] != b.shape[1]:
        raise DataError(f"features of {a.shape[1]} and of {b.shape[1]} values")
    if min(len(a), len(b)) < 2:
        raise DataError("a covariance needs at least two rows of each set")
    return between_gaussians(*_moments(a), *_moments(b))


def between_gaussians(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """||mean_a - mean_b||^2 + tr(A + B - 2 (A B)^(1/2)), for means (F,) and covariances A, B (F,F),
    in fp64 (Dowson and Landau 1982)."""
    root = _square_root(cov_a)
    # A B and root B root have the same eigenvalues, and the second is symmetric
    shared = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(shared).sum()
    # rounding can put the distance of equal sets a little below 0
    return float(max(np.square(mean_a - mean_b).sum() + spread, 0.0))


def _moments(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = features_NF.astype(np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def _square_root(cov_FF: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov_FF)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T

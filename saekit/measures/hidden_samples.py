"""Do generated hidden states look real? To a linear probe, and to a sparse autoencoder.

Nobody sees a hidden state, so a sheet of samples says nothing. A probe that tells real rows from
generated ones shows differences along single directions; the latents of a dictionary show which
features of real rows are missing, and whether features come together as they do in real rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saekit.errors import DataError
from saekit.measures.anomaly import auroc
from saekit.measures.arrays import Rows, as_numbers, matrix
from saekit.models.codes import Code

PAIRED = 256  # most active latents whose pairs are compared


@dataclass(frozen=True)
class LatentUse:
    """How a dictionary's latents are used on generated rows, beside real rows."""

    density: float
    """Pearson correlation, over latents active in either set, of the shares of rows that activate
    them."""
    coactivation: float
    """The same, over pairs of the latents most active in the real rows, of the shares of rows that
    activate both."""
    silent: float
    """Share of latents active in no generated row."""
    silent_real: float
    """Share of latents active in no real row."""


def told_apart(real: Rows, drawn: Rows, seed: int = 0) -> float:
    """AUROC of a logistic regression (L2, C = 1, standardized values) that tells generated rows
    (M,D) from real ones (N,D), on the half of each that it did not see: 0.5 when it cannot, 1 when
    it always does. Raises DataError, NumericsError."""
    real_ND, drawn_MD = matrix(real, "real rows"), matrix(drawn, "generated rows")
    if real_ND.shape[1] != drawn_MD.shape[1]:
        raise DataError(f"rows of {real_ND.shape[1]} and of {drawn_MD.shape[1]} values")
    if min(len(real_ND), len(drawn_MD)) < 4:
        raise DataError("a probe needs at least four rows of each kind")
    rng = np.random.default_rng(seed)
    (fit_real, test_real), (fit_drawn, test_drawn) = (
        np.array_split(rows[rng.permutation(len(rows))], 2) for rows in (real_ND, drawn_MD)
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    truth = np.repeat([0, 1], [len(fit_real), len(fit_drawn)])
    probe.fit(np.concatenate([fit_real, fit_drawn]), truth)
    return auroc(probe.decision_function(test_real), probe.decision_function(test_drawn))


def latent_use(real: Code, drawn: Code, active_above: float) -> LatentUse:
    """Of a dictionary's codes of real rows (N,F) and of generated ones (M,F); `active_above` is the
    model's. Raises DataError (fewer than three latents active)."""
    of_real, of_drawn = _active(real, active_above), _active(drawn, active_above)
    if real.shape[-1] != drawn.shape[-1]:
        raise DataError(f"codes of {real.shape[-1]} and of {drawn.shape[-1]} latents")
    density_real, density_drawn = _density(of_real), _density(of_drawn)
    used = (density_real > 0) | (density_drawn > 0)
    if used.sum() < 3:
        raise DataError("fewer than three latents are active, so nothing can be correlated")
    most = np.argsort(-density_real, kind="stable")[: min(PAIRED, int(used.sum()))]
    return LatentUse(
        density=_correlation(density_real[used], density_drawn[used]),
        coactivation=_correlation(
            _pairs(of_real[:, most], len(real)), _pairs(of_drawn[:, most], len(drawn))
        ),
        silent=float((density_drawn == 0).mean()),
        silent_real=float((density_real == 0).mean()),
    )


def _active(code: Code, active_above: float) -> csr_matrix:
    """(N,F) of 1 where a latent is active."""
    return csr_matrix(as_numbers(code, active_above) > active_above, dtype=np.float64)


def _density(active_NF: csr_matrix) -> np.ndarray:
    return np.asarray(active_NF.mean(0)).ravel()


def _pairs(active_NF: csr_matrix, rows: int) -> np.ndarray:
    """Share of rows that activate both, one value for each pair of latents."""
    both = (active_NF.T @ active_NF).toarray() / rows
    return both[np.triu_indices(len(both), 1)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0

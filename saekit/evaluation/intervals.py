"""Intervals of statistics of sums over documents, by resampling whole documents.

The tokens of a document are not independent, and a context's losses depend on all its tokens, so
the unit of the sample is the document (a cluster bootstrap). All statistics of one resample come
from the same documents, so a ratio keeps the correlation of its numerator and denominator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
_WEIGHTS = 2**23  # of resampled documents in memory at once

Statistics = Callable[[np.ndarray], np.ndarray]
"""Sums (..., C) -> statistics (..., S); NaN where one is not defined."""


def bootstrap(
    sums_GC: np.ndarray, statistics: Statistics, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, low, high), each (S,): the statistics of all G documents and their 95 % intervals.

    Percentiles of RESAMPLES resamples, taken at the levels that correct for few documents: those of
    a t-interval with G - 1 degrees of freedom, and the factor G / (G - 1) by which the bootstrap's
    variance is too small (Hesterberg 2015, "What Teachers Should Know about the Bootstrap",
    section 5.3). NaN where there is one document, or where a resample does not define the
    statistic: the interval of a ratio whose denominator may be 0 has no end.
    """
    value_S = statistics(sums_GC.sum(0))
    G = len(sums_GC)
    if G < 2:
        return value_S, *np.full((2, *value_S.shape), np.nan)
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled, size = [], max(_WEIGHTS // G, 1)
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        weights_RG = rng.multinomial(G, np.full(G, 1 / G), size=count)
        resampled.append(statistics(weights_RG @ sums_GC))
    tail = _tail(G)
    low_S, high_S = np.quantile(np.concatenate(resampled), [tail, 1 - tail], axis=0)
    return value_S, low_S, high_S


def _tail(documents: int) -> float:
    from scipy.stats import norm, t

    wide = float(t.ppf((1 - LEVEL) / 2, documents - 1)) * (documents / (documents - 1)) ** 0.5
    return float(norm.cdf(wide))

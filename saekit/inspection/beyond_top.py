"""What a page says about a latent beyond its strongest rows: samples of all of its rows, latents
that are active with it, tokens that it is active on. All of it is read from the index.

A feature is judged by all of its rows: the strongest are the ones that agree best.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from saekit.indexing.reader import Index
from saekit.inspection.tokens import TokenTexts

RANDOM = 10  # rows, each as likely as any other
GROUPS, EACH = 5, 3  # of equal numbers of rows, by size
TOGETHER = 8  # latents
LEAST_TOGETHER = 3  # rows: of fewer, any figure is chance
TOKENS = 10


SampledRow = tuple[int, float, Literal["random", "quantile", "median"], int | None]


def sampled_rows(index: Index, latent: int) -> list[SampledRow]:
    """(row, value, group, number of a fifth from the weakest): "random" rows of all, "quantile"
    rows of each fifth of the rows by size, and the row of "median" size, of two the weaker."""
    own, found = index.random(latent, RANDOM), list[SampledRow]()
    for row, value in zip(own.rows.tolist(), own.values.tolist()):
        found.append((row, value, "random", None))
    for number, group in enumerate(index.quantiles(latent, GROUPS, EACH)):
        for row, value in zip(group.rows.tolist(), group.values.tolist()):
            found.append((row, value, "quantile", number))
    whole = index.activations(latent)
    by_size = np.argsort(np.abs(whole.values), kind="stable")
    for at in by_size[(len(whole) - 1) // 2 :][:1].tolist():
        found.append((int(whole.rows[at]), float(whole.values[at]), "median", None))
    return found


def fifths_of(index: Index, latent: int) -> list[dict[str, float]]:
    """[{"low", "high", "rows"}] x 5, the weakest first: the sizes, |value|, between which the rows
    of each group lie from which `sampled_rows` draws. 0 to 0 for a group without rows."""
    sizes = np.sort(np.abs(index.activations(latent).values))
    groups = np.array_split(sizes, GROUPS)
    ends = [(float(of[0]), float(of[-1])) if len(of) else (0.0, 0.0) for of in groups]
    return [{"low": low, "high": high, "rows": len(of)} for (low, high), of in zip(ends, groups)]


def together(index: Index, latent: int) -> dict[str, list[dict[str, float]]]:
    """The latents with the largest Jaccard index on the same rows, and on the token after them:
    {"coactivation", "following"}: [{"index", "together", "jaccard", "pmi"}]."""
    best = lambda lag: index.coactivation(latent, lag).best(TOGETHER, least=LEAST_TOGETHER)
    return {"coactivation": best(0), "following": best(1) if len(index.origin.token) else []}


def starts_of(index: Index) -> list[int]:
    """The latents of which at least half of the active rows are the first of their context; none
    where the data are not text."""
    if not len(index.origin.token):
        return []
    return np.flatnonzero((2 * index.first >= index.active) & (index.active > 0)).tolist()


class TokenCounts:
    """On which tokens, and where in their contexts, latents are active."""

    def __init__(self, index: Index, texts: TokenTexts) -> None:
        self._index, self._texts = index, texts
        self._rows_of_token = np.bincount(index.origin.token)

    def __call__(self, latent: int) -> dict[str, Any] | None:
        """{"tokens": [{"token", "rows", "lift"}], "different", "position", "first"}: the commonest
        of its `different` tokens, with the rows that it is active on and how many times more
        often that is than on all rows; its mean position; the active rows that are the first of
        their context. None for a latent that never fires."""
        index = self._index
        rows = index.activations(latent).rows
        if not len(rows):
            return None
        ids, counts = np.unique(index.origin.token[rows], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:TOKENS]
        lifts = counts[order] / len(rows) / (self._rows_of_token[ids[order]] / index.rows)
        return {
            "tokens": [
                {"token": self._texts.alone(token), "rows": count, "lift": lift}
                for token, count, lift in zip(
                    ids[order].tolist(), counts[order].tolist(), lifts.tolist()
                )
            ],
            "different": len(ids),
            "position": float(index.origin.position[rows].mean(dtype=np.float64)),
            "first": int(index.first[latent]),
        }

"""Which latents are active together, or one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Measure = Literal["jaccard", "pmi", "cosine"]


@dataclass(frozen=True)
class Coactivation:
    """One latent j against all F latents i, j itself included.

    `together` (F,) int64: pairs of places in which j is active at the first and i at the second,
    out of `pairs`. For lag 0 both are the same row, for lag 1 the second is the next token.
    `own` is the number of pairs whose first place has j, `others` (F,) that of pairs whose second
    has i.
    """

    latent: int
    lag: int
    pairs: int
    together: np.ndarray
    own: int
    others: np.ndarray
    cosine: np.ndarray | None
    """(F,) fp64: sum z_j z_i / (||z_j|| ||z_i||) over all rows, 0 for a latent that never fires; of
    lag 0 only."""

    @property
    def jaccard(self) -> np.ndarray:
        """(F,) fp64: n_ij / (n_i + n_j - n_ij), 0 where both never fire."""
        either = self.own + self.others - self.together
        return self.together / np.maximum(either, 1)

    @property
    def pmi(self) -> np.ndarray:
        """(F,) fp64, in nats: log(n_ij N / (n_i n_j)); -inf where they never are active together.
        Large for rare latents by chance: read it with `together`."""
        expected = self.own * self.others / max(self.pairs, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.together > 0, np.log(self.together / expected), -np.inf)

    def best(
        self, count: int = 10, by: Measure = "jaccard", least: int = 1
    ) -> list[dict[str, float]]:
        """The other latents by a measure, largest first, among those that are active together with
        j in at least `least` places: [{"index", "together", "jaccard", "pmi"}]."""
        values = {"jaccard": self.jaccard, "pmi": self.pmi, "cosine": self.cosine}
        measure = values[by]
        assert measure is not None, "of lag 0 only"
        possible = self.together >= max(least, 1)
        if self.lag == 0:
            possible[self.latent] = False
        others = np.flatnonzero(possible)
        order = others[np.argsort(-measure[others], kind="stable")][:count]
        return [
            {
                "index": int(i),
                "together": int(self.together[i]),
                "jaccard": float(values["jaccard"][i]),
                "pmi": float(values["pmi"][i]),
            }
            for i in order
        ]

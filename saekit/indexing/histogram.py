"""How often each size of activation occurs: histograms and bands of indexes and pages."""

from __future__ import annotations

import torch

from saekit.indexing.entries import Triples

# of sizes, over a range that doubles for a larger one; at least half of them are below the maximum
BINS = 100
SIDES = 2  # negative and positive values
# of about equal width, from 0 to the maximum, with ends at those of bins, so that their rows are
# counted exactly
BANDS = 5


class Histogram:
    """Equal-width counts of sizes over (0, range], of negative and positive values apart:
    (F,2,BINS). When a larger size comes the range doubles and adjacent bins are added:
    exact."""

    def __init__(self, latents: int) -> None:
        self.range = torch.zeros(latents)
        self.counts = torch.zeros(latents, SIDES, BINS, dtype=torch.int64)

    def add(self, t: Triples, chunk_max: torch.Tensor) -> None:
        new = (self.range == 0) & (chunk_max > 0)
        self.range[new] = chunk_max[new]
        while (grow := chunk_max > self.range).any():
            halved = self.counts[grow].view(-1, 2, BINS // 2, 2).sum(3)
            self.counts[grow] = torch.cat([halved, torch.zeros_like(halved)], 2)
            self.range[grow] *= 2
        side = t.latent * 2 + (t.value > 0)
        place = side * BINS + _bin(t.value.abs(), self.range[t.latent])
        self.counts += torch.bincount(place, minlength=self.counts.numel()).view_as(self.counts)

    def of(self, latent: int) -> dict[str, list[float]]:
        """{"edges", "counts"} of the values: from 0, or from the smallest where some are negative,
        up to the bin that holds the largest."""
        width = float(self.range[latent]) / BINS
        negative, positive = (side[: _used(side)] for side in self.counts[latent].tolist())
        edges = [i * width for i in range(-len(negative), len(positive) + 1)]
        return {
            "edges": edges if len(edges) > 1 else [0.0, width],
            "counts": [*reversed(negative), *positive] or [0],
        }

    def bands(self, latent: int) -> list[dict[str, float]]:
        """[{"low", "high", "rows"}]: the sizes from 0 to the maximum in BANDS, smallest first, and
        in how many rows each occurs."""
        counts, width = self.counts[latent].sum(0).tolist(), float(self.range[latent]) / BINS
        ends = self._band_ends(latent)
        return [
            {"low": a * width, "high": b * width, "rows": sum(counts[a:b])}
            for a, b in zip([0, *ends], ends)
        ]

    def bands_of(self, latent: int, values: torch.Tensor) -> list[int]:
        """Number of the band that counts each value (N,)."""
        ends = torch.tensor(self._band_ends(latent)[:-1])
        places = _bin(values.abs(), self.range[latent])
        return torch.searchsorted(ends, places, right=True).tolist()

    def _band_ends(self, latent: int) -> list[int]:
        used = _used(self.counts[latent].sum(0).tolist())
        return [max(round(used * (band + 1) / BANDS), band + 1) for band in range(BANDS)]


def _bin(size: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    return (size / full * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)


def _used(counts: list[int]) -> int:
    """Bins up to the last that holds anything."""
    return next((i for i in range(len(counts), 0, -1) if counts[i - 1]), 0)

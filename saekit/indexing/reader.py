"""An index, opened: every activation of a store, by latent and by row.

Rows are numbered as in the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saekit.display import brief
from saekit.errors import DataError, MissingError
from saekit.indexing.coactivation import Coactivation
from saekit.indexing.entries import Triples
from saekit.indexing.files import IndexFiles
from saekit.indexing.histogram import Histogram
from saekit.indexing.manifest import IndexManifest, checked_manifest
from saekit.indexing.origin import Origin
from saekit.indexing.radix import bits_of_sizes, order_of
from saekit.indexing.row_order import RowOrder
from saekit.indexing.runs import Entries
from saekit.indexing.shown import ShownRows
from saekit.indexing.statistics import blocks


@dataclass(frozen=True)
class Activations:
    """Rows (n,) int64 of the store, and the values (n,) fp32 of a latent there, with their sign."""

    rows: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, which: np.ndarray) -> Activations:
        return Activations(self.rows[which], self.values[which])


class Index:
    """Every activation of a dictionary of F latents on the R rows of a store. Of a dense code
    (`dense`), in which every latent has a value in every row, the figures of all latents, their
    histograms, bands and `shown`; the rest raises DataError.

    Opened by `saekit.open_index`, or `index` of what `saekit.index` returns. Files are
    memory-mapped, and their checksums verified when they are first read. Rows are numbered as in
    the store.

    Parameters
        path: the folder of the index.
        manifest: what its index.json says.
    """

    def __init__(self, path: Path, manifest: IndexManifest) -> None:
        self.path, self.manifest = path, manifest
        self._files = IndexFiles(path, manifest)

    def __repr__(self) -> str:
        names = ("latents", "rows", "entries", "values")
        figures = {name: getattr(self.manifest, name) for name in names}
        return brief(self, figures, repr(str(self.path)))

    def __len__(self) -> int:
        return self.manifest.latents

    @property
    def by_row(self) -> RowOrder:
        """The entries by row."""
        return self._files.by_row

    @property
    def origin(self) -> Origin:
        """Tokens, contexts or images, documents and labels of the rows."""
        return self._files.origin

    # -- all latents

    @property
    def rows(self) -> int:
        """R."""
        return self.manifest.rows

    @property
    def dense(self) -> bool:
        """Whether the code is dense (pca, vae ...)."""
        return self.manifest.dense

    @property
    def shown(self) -> ShownRows:
        """The rows by which each latent is shown: the strongest, and a sample."""
        return self._files.shown

    @property
    def active(self) -> np.ndarray:
        """(F,) int64: rows in which each latent is active."""
        return self._files.features["active"]

    @property
    def max(self) -> np.ndarray:
        """(F,) fp32: its largest size, |value|."""
        return self._files.features["max"]

    @property
    def largest(self) -> np.ndarray:
        """(F,) fp32: the value of largest size, with its sign."""
        return self._files.features["largest"]

    @property
    def density(self) -> np.ndarray:
        """(F,) fp64: share of the rows in which each latent is active."""
        return self.active / max(self.rows, 1)

    @property
    def sum(self) -> np.ndarray:
        """(F,) fp64: of each latent's values over all rows."""
        return self._files.features["sum"]

    @property
    def first(self) -> np.ndarray:
        """(F,) int64: active rows that are the first of their context or image."""
        return self._files.features["first"]

    # -- one latent

    def activations(self, latent: int) -> Activations:
        """All of them, rows ascending. Raises DataError for a latent that there is not."""
        lo, hi = self._span(latent)
        columns = self._files.by_feature
        return Activations(
            columns["row"][lo:hi].astype(np.int64), columns["value"][lo:hi].astype(np.float32)
        )

    def windows(self, latent: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """fp32: the latent's value on every row of each range [start, stop), end to end; 0 where it
        is not active."""
        own = self.activations(latent)
        lo, hi = np.searchsorted(own.rows, start), np.searchsorted(own.rows, stop)
        sizes = stop - start
        values = np.zeros(sizes.sum(), np.float32)
        # of each active row in a range: which one it is, and its place
        which = np.arange((hi - lo).sum()) + np.repeat(hi - np.cumsum(hi - lo), hi - lo)
        place = own.rows[which] + np.repeat(np.cumsum(sizes) - stop, hi - lo)
        values[place] = own.values[which]
        return values

    def histogram(self, latent: int) -> dict[str, list[float]]:
        """{"edges", "counts"}: how many rows have values of each size, in the bins of the page."""
        return self.sizes(latent).of(0)

    def bands(self, latent: int) -> list[dict[str, float]]:
        """[{"low", "high", "rows"}] x 5: the sizes from 0 to the maximum, as on the page."""
        return self.sizes(latent).bands(0)

    def top(self, latent: int, count: int = 20) -> Activations:
        """The strongest row of each context or image, the largest sizes first; the earlier of equal
        ones first."""
        own = self.activations(latent)
        size = np.abs(own.values)
        example = self.origin.examples_of(own.rows)
        begin = np.flatnonzero(np.diff(example, prepend=-1))
        if not len(begin):
            return own
        best = np.maximum.reduceat(size, begin)
        order = np.argsort(-best, kind="stable")[:count]
        ends = np.append(begin[1:], len(size))
        places = [begin[i] + int(size[begin[i] : ends[i]].argmax()) for i in order]
        return own.at(np.array(places, np.int64))

    def quantiles(
        self, latent: int, groups: int = 5, each: int = 5, seed: int = 0
    ) -> list[Activations]:
        """The active rows by size, cut into `groups` of equal numbers of rows, the weakest first;
        of each group `each` rows at random, rows ascending. Unlike bands, which are of equal
        width."""
        own = self.activations(latent)
        order = order_of(bits_of_sizes(own.values))
        rng = np.random.default_rng([seed, latent, groups])
        chosen = []
        for group in np.array_split(order, groups):
            picked = rng.choice(group, min(each, len(group)), replace=False)
            chosen.append(own.at(np.sort(picked)))
        return chosen

    def random(self, latent: int, count: int = 20, seed: int = 0) -> Activations:
        """Active rows, each as likely as any other, rows ascending."""
        own = self.activations(latent)
        rng = np.random.default_rng([seed, latent])
        return own.at(np.sort(rng.choice(len(own), min(count, len(own)), replace=False)))

    def coactivation(self, latent: int, lag: int = 0) -> Coactivation:
        """The latent against all others: on the same row (lag 0), or the others on the token after
        it (1). Raises DataError for lag 1 where the rows are not text."""
        own, order, active = self.activations(latent), self.by_row, self.active
        if lag == 0:
            products = order.sums(own.rows, own.values.astype(np.float64))
            norms = np.sqrt(self._files.features["squares"])
            cosine = products / np.where(norms > 0, norms, 1) / max(norms[latent], 1e-300)
            together = order.counts(own.rows)
            return Coactivation(latent, 0, self.rows, together, len(own), active, cosine)
        assert lag == 1, "of the same row, or the next"
        if not len(self.origin.token):
            raise DataError(f"{self.path} is of rows that do not follow one another as tokens do")
        follows = self.origin.follows
        after = own.rows[own.rows + 1 < self.rows] + 1
        after = after[follows[after]]
        others = active - self._files.features["unpreceded"]
        return Coactivation(
            latent, 1, int(follows.sum()), order.counts(after), len(after), others, None
        )

    # -- for what is made from an index

    def entries(self, start: int, stop: int, chunk: int) -> Iterator[Entries]:
        """The entries of the rows [start, stop), a chunk at a time, as the encoder gave them."""
        order = self.by_row
        for first in range(start, stop, chunk):
            ptr = order.ptr[first : min(first + chunk, stop) + 1]
            part = slice(int(ptr[0]), int(ptr[-1]))
            value = order.value[part].astype(np.float32)
            yield Entries(np.diff(ptr), np.array(order.latent[part]), value)

    def blocks(self, most: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """All entries by latent, about `most` at a time: the latents [a, b), and of their entries
        rows, values fp32, and latents counted from a."""
        ptr = self._files.by_feature["ptr"]
        for a, b in blocks(ptr, most):
            part = slice(int(ptr[a]), int(ptr[b]))
            latent = np.repeat(np.arange(b - a), np.diff(ptr[a : b + 1]))
            value = self._files.by_feature["value"][part].astype(np.float32)
            yield a, b, self._files.by_feature["row"][part], value, latent

    def _span(self, latent: int) -> tuple[int, int]:
        if not 0 <= latent < len(self):
            raise DataError(
                f"feature {latent}: this index has {len(self):,} (0 to {len(self) - 1:,})"
            )
        lo, hi = self._files.by_feature["ptr"][latent : latent + 2].tolist()
        return lo, hi

    def sizes(self, latent: int) -> Histogram:
        """The histogram of one latent, as the only one of its kind."""
        if self.dense:
            return self._files.histogram(latent)
        lo, hi = self._span(latent)
        counted = Histogram(1)
        counted.range[0] = float(self._files.features["range"][latent])
        if hi > lo:
            value = torch.from_numpy(self._files.by_feature["value"][lo:hi].astype(np.float32))
            zeros = torch.zeros(hi - lo, dtype=torch.int64)
            largest = torch.tensor([float(self.max[latent])])
            counted.add(Triples(zeros, zeros, value), largest)
        return counted


def read_index(folder: Path) -> Index:
    """The index in a folder. Raises MissingError where there is no whole one, DataError for a
    damaged one."""
    manifest = checked_manifest(folder)
    if manifest is None:
        raise MissingError(f"{folder} holds no index that is whole", "give what saekit.index wrote")
    return Index(folder, manifest)

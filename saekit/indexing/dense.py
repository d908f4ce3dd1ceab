"""The index of a dense code (pca, vae ...): every latent has a value in every row, so what a page
shows of each is kept, and not every value.

One pass, in memory that does not depend on the number of rows. Killed, it begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from saekit.indexing.entries import Triples, active_entries, encoded_batches
from saekit.indexing.histogram import BINS, SIDES, Histogram
from saekit.indexing.manifest import FEATURES, HISTOGRAMS, ORIGIN, SHOWN, IndexManifest
from saekit.indexing.opening import OpenedPair
from saekit.indexing.origin import Origin, read_origin, write_origin
from saekit.indexing.ranking import Ranking
from saekit.indexing.runs import check_finite
from saekit.indexing.shown import KEPT_SAMPLE, KEPT_TOP, Sampler, ShownRows, by_size, write_shown
from saekit.indexing.statistics import FEATURE_TENSORS
from saekit.indexing.tensor_file import mapped_tensors, writing_tensors
from saekit.store.files import sha256_of


def index_dense(
    folder: Path,
    manifest: IndexManifest,
    pair: OpenedPair,
    device: torch.device,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, str]:
    """Write the files of the index; returns name -> sha256. `report` is called with the number of
    rows done. Raises NumericsError for an infinite value."""
    write_origin(folder / ORIGIN, pair.store.origin)
    found = _Pass(manifest.latents, read_origin(folder / ORIGIN))
    for batch, code in encoded_batches(pair.model, pair.store, device, manifest.chunk):
        assert batch.rows is not None and isinstance(code, torch.Tensor), "a dense code"
        entries = active_entries(code, 0.0, int(batch.rows[0]))
        check_finite(pair, entries)
        found.add(code.cpu().float().numpy(), entries)
        report(found.rows)
    shown = found.shown()
    write_shown(folder / SHOWN, shown, manifest.row_type)
    figures = found.figures(shown)
    shapes = {name: (str(values.dtype), len(values)) for name, values in figures.items()}
    with writing_tensors(folder / FEATURES, shapes) as file:
        for name, values in figures.items():
            file.append(name, values)
    with writing_tensors(folder / HISTOGRAMS, histogram_tensors(manifest)) as file:
        file.append("counts", rearrange(found.histogram.counts.numpy(), "f s b -> (f s b)"))
    return {name: sha256_of(folder / name) for name in (FEATURES, HISTOGRAMS, ORIGIN, SHOWN)}


def histogram_tensors(manifest: IndexManifest) -> dict[str, tuple[str, int]]:
    """`counts` (F,2,BINS), flat."""
    return {"counts": ("int64", manifest.latents * SIDES * BINS)}


def read_histogram(
    path: Path, manifest: IndexManifest, range_F: np.ndarray, latent: int
) -> Histogram:
    """Of one latent. Raises MisfitError."""
    counts = mapped_tensors(path, histogram_tensors(manifest))["counts"]
    own = counts.reshape(-1, SIDES, BINS)[latent]
    histogram = Histogram(1)
    histogram.range[0], histogram.counts[0] = float(range_F[latent]), torch.from_numpy(own.copy())
    return histogram


class _Pass:
    """What is known after some of the rows."""

    def __init__(self, latents: int, origin: Origin) -> None:
        self.rows, self._origin = 0, origin
        self.histogram = Histogram(latents)
        self._top, self._bottom = Ranking(latents, KEPT_TOP), Ranking(latents, KEPT_TOP)
        self._sampler, self._sample = Sampler(), Ranking(latents, KEPT_SAMPLE)
        self._open = np.zeros((0, latents), np.float32)  # rows of an example that may go on
        self._figures = {name: np.zeros(latents, dtype) for name, dtype in FEATURE_TENSORS.items()}
        self._preceded = origin.follows
        self._first = np.zeros(len(origin.position), bool)
        self._first[origin.example_first] = True

    def add(self, code_BF: np.ndarray, entries: Triples) -> None:
        """The next rows: their code, and its entries that are not 0."""
        rows = slice(self.rows, self.rows + len(code_BF))
        # figures
        figures, active_BF = self._figures, code_BF != 0
        figures["active"] += active_BF.sum(0)
        figures["first"] += active_BF[self._first[rows]].sum(0)
        figures["unpreceded"] += active_BF[~self._preceded[rows]].sum(0)
        code = code_BF.astype(np.float64)
        figures["sum"] += code.sum(0)
        figures["squares"] += np.square(code).sum(0)
        largest_F = np.abs(code_BF).max(0)
        np.maximum(figures["max"], largest_F, out=figures["max"])
        # sizes, and a sample
        self.histogram.add(entries, torch.from_numpy(largest_F))
        latent, row, value = (part.numpy() for part in (entries.latent, entries.row, entries.value))
        self._sample.add(latent, row, value, self._sampler.draw(value))
        # the strongest rows of whole examples; the last one may go on in the next rows
        code_BF = np.concatenate([self._open, code_BF])
        begin, self.rows = rows.start - len(self._open), rows.stop
        whole = self._origin.example_first[self._origin.example[rows.stop - 1]]
        self._rank(code_BF[: whole - begin], begin)
        self._open = code_BF[whole - begin :]

    def _rank(self, code_BF: np.ndarray, begin: int) -> None:
        """Rows of whole examples, from row `begin` on."""
        if not len(code_BF):
            return
        examples = self._origin.example[begin : begin + len(code_BF)]
        starts = np.flatnonzero(np.diff(examples, prepend=-1))
        counts = np.diff(np.append(starts, len(code_BF)))
        at_B = np.arange(len(code_BF))[:, None]
        for ranking, side_BF in ((self._top, code_BF), (self._bottom, -code_BF)):
            best_EF = np.maximum.reduceat(side_BF, starts, axis=0)
            is_best_BF = side_BF == np.repeat(best_EF, counts, axis=0)
            place_EF = np.minimum.reduceat(np.where(is_best_BF, at_B, len(code_BF)), starts, axis=0)
            example, latent = np.nonzero(best_EF > 0)
            place = place_EF[example, latent]
            value = code_BF[place, latent]
            ranking.add(latent, begin + place, value, by_size(value))

    def shown(self) -> ShownRows:
        """Of all rows, which end here."""
        self._rank(self._open, self.rows - len(self._open))
        self._open = self._open[:0]
        rankings = (self._top, self._bottom, self._sample)
        return ShownRows(*(ranking.ranked() for ranking in rankings))

    def figures(self, shown: ShownRows) -> dict[str, np.ndarray]:
        """FEATURE_TENSORS."""
        every = np.arange(len(self._figures["max"]))
        high, low = (ranked.padded(every, 1)[1][:, 0] for ranked in (shown.top, shown.bottom))
        largest = np.where(high >= -low, high, low)
        return self._figures | {"largest": largest, "range": self.histogram.range.numpy()}

"""One streaming pass over a store: for every latent its count, size, histogram, strongest rows and
a sample of weaker ones.

Memory is a fixed number of entries per latent, whatever the store's size. Rows are encoded in
chunks; each chunk becomes (row, latent, value) triples of active entries, which are merged into the
state. Values, histograms and top rows are exact.

Codes may be signed. Rows are ranked and counted by size, |value|, and keep their sign. In a dense
code every row has a value at every latent, and both ends are ranked separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from saekit_kernels import keep_freed_memory
from safetensors import SafetensorError
from safetensors.torch import load

from saekit.device import CPU
from saekit.errors import SaekitError, message_of
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import Code, entries
from saekit.store.files import write_tensors
from saekit.store.reader import Store
from saekit.store.scans import SCAN_SCHEMA, SCANS
from saekit.store.stack import StackedStore, stores_of
from saekit.training.fit import on_device
from saekit.types import Progress

CHUNK_ROWS = 8192
# of sizes, over a range that doubles for a larger one; at least half of them are below the maximum
BINS = 100
# of about equal width, from 0 to the maximum, with ends at those of bins, so that their rows are
# counted exactly
BANDS = 5
# rows of different examples; twice what a page shows, so that examples of one document can be
# thinned
KEPT_TOP = 40
KEPT_SAMPLE = 48  # for the examples of each band


@dataclass
class Triples:
    """Active entries of a chunk: row (N,) int64 in the store, latent (N,) int64, value (N,) fp32,
    signed."""

    row: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor

    def at(self, which: torch.Tensor) -> Triples:
        return Triples(self.row[which], self.latent[which], self.value[which])

    def followed_by(self, later: Triples) -> Triples:
        return Triples(
            torch.cat([self.row, later.row]),
            torch.cat([self.latent, later.latent]),
            torch.cat([self.value, later.value]),
        )


def active_entries(code: Code, above: float, first_row: int) -> Triples:
    row, latent, value = (part.cpu() for part in entries(code, above))
    return Triples(row + first_row, latent, value.float())


class Ranked:
    """For each latent the `width` rows with the largest keys: key and value (F,width) fp32, row
    (F,width) int64, -1 where empty."""

    def __init__(self, latents: int, width: int) -> None:
        self.key = torch.full((latents, width), -torch.inf)
        self.value = torch.zeros(latents, width)
        self.row = torch.full((latents, width), -1, dtype=torch.int64)

    def merge(self, t: Triples, key: torch.Tensor) -> None:
        """Add entries; equal keys keep the earlier row."""
        width = self.key.shape[1]
        if len(key) == 0:
            return
        order = torch.argsort(key, descending=True, stable=True)
        order = order[torch.argsort(t.latent[order], stable=True)]
        latent = t.latent[order]
        starts = torch.searchsorted(latent, latent)  # first position of each latent's run
        rank = torch.arange(len(latent)) - starts
        keep = rank < width
        order, latent, rank = order[keep], latent[keep], rank[keep]
        touched, place = torch.unique(latent, return_inverse=True)
        fresh = Ranked(len(touched), width)
        fresh.key[place, rank], fresh.value[place, rank], fresh.row[place, rank] = (
            key[order],
            t.value[order],
            t.row[order],
        )
        joined = {
            name: torch.cat([getattr(self, name)[touched], getattr(fresh, name)], 1)
            for name in ("key", "value", "row")
        }
        best = torch.argsort(joined["key"], dim=1, descending=True, stable=True)[:, :width]
        for name, values in joined.items():
            getattr(self, name)[touched] = values.gather(1, best)


class Histogram:
    """Equal-width counts of sizes over (0, range], of negative and positive values apart:
    (F,2,BINS). When a larger size comes the range doubles and adjacent bins are added:
    exact."""

    def __init__(self, latents: int) -> None:
        self.range = torch.zeros(latents)
        self.counts = torch.zeros(latents, 2, BINS, dtype=torch.int64)

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

    def band_of(self, latent: int, value: float) -> int:
        """Number of the band that counts the value."""
        place = int(_bin(torch.tensor([abs(value)]), self.range[latent]))
        return sum(place >= end for end in self._band_ends(latent)[:-1])

    def _band_ends(self, latent: int) -> list[int]:
        used = _used(self.counts[latent].sum(0).tolist())
        return [max(round(used * (band + 1) / BANDS), band + 1) for band in range(BANDS)]


def _bin(size: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    return (size / full * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)


def _used(counts: list[int]) -> int:
    """Bins up to the last that holds anything."""
    return next((i for i in range(len(counts), 0, -1) if counts[i - 1]), 0)


class Scan:
    """The result of one pass. `active` (F,) int64: rows in which each latent is active; `max` (F,):
    the size of its largest value.

    `top` ranks the values that show a latent, by size; for a dense code (`dense`) those above 0,
    and `bottom` those below.
    """

    def __init__(self, latents: int, dense: bool = False) -> None:
        self.rows, self.dense = 0, dense
        self.active = torch.zeros(latents, dtype=torch.int64)
        self.max = torch.zeros(latents)
        self.histogram = Histogram(latents)
        self.top = Ranked(latents, KEPT_TOP)
        self.bottom = Ranked(latents if dense else 0, KEPT_TOP)
        self.sample = Ranked(latents, KEPT_SAMPLE)
        self._open: tuple[Triples, torch.Tensor] | None = None

    @property
    def density(self) -> torch.Tensor:
        return self.active.double() / max(self.rows, 1)

    def largest(self, latent: int) -> float:
        """The value of largest size, with its sign."""
        ends = [self.top.value[latent, 0]] + ([self.bottom.value[latent, 0]] if self.dense else [])
        return float(max(ends, key=abs))

    def add(self, t: Triples, example: torch.Tensor, generator: torch.Generator) -> None:
        """Merge a chunk; example (N,) is the example id of each entry."""
        # the strongest rows
        self._add_top(t, example)
        if len(t.row) == 0:
            return

        # counts and sizes
        latents = len(self.active)
        self.active += torch.bincount(t.latent, minlength=latents)
        chunk_max = torch.zeros(latents).scatter_reduce_(0, t.latent, t.value.abs(), "amax")
        self.max = torch.maximum(self.max, chunk_max)
        self.histogram.add(t, chunk_max)

        # a weighted reservoir (Efraimidis and Spirakis 2006) with weight value^2, so that the rare
        # strong activations, which fill the upper bands, are well represented
        uniform = torch.rand(len(t.row), generator=generator).clamp_min(1e-9)
        self.sample.merge(t, uniform.log() / t.value.double().square().clamp_min(1e-12).float())

    def _add_top(self, t: Triples, example: torch.Tensor) -> None:
        """Rank the strongest entry of each example. The last example may continue in the next chunk
        and waits for it."""
        if self._open is not None:
            before, its_example = self._open
            t, example = before.followed_by(t), torch.cat([its_example, example])
        if len(example) == 0:
            return
        best = _best_of_each_example(t, example, self.dense)
        t, example = t.at(best), example[best]
        waits = example == example[t.row.argmax()]
        self._open = t.at(waits), example[waits]
        self._rank(t.at(~waits))

    def _rank(self, t: Triples) -> None:
        if self.dense:
            below = t.at(t.value < 0)
            self.bottom.merge(below, below.value.abs())
            t = t.at(t.value > 0)
        self.top.merge(t, t.value.abs())

    def close(self) -> None:
        """There are no more chunks: rank what waited."""
        if self._open is not None:
            self._rank(self._open[0])
            self._open = None

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self._tensors().items()}
        write_tensors(
            path, tensors | {"rows": torch.tensor(self.rows), "schema": torch.tensor(SCAN_SCHEMA)}
        )

    @classmethod
    def read(cls, path: Path, latents: int, rows: int, dense: bool = False) -> Scan | None:
        """A saved scan of so many rows; None where there is none that fits, or it is damaged: a
        scan is a cache, and is computed again."""
        try:
            tensors = load(path.read_bytes())  # not mapped: the file may be replaced meanwhile
            schema, scanned = int(tensors.pop("schema")), int(tensors.pop("rows"))
        except (
            OSError,
            SafetensorError,
            KeyError,
            ValueError,
            RuntimeError,
            TypeError,
            OverflowError,
        ):
            return None
        scan = cls(latents, dense)
        known = scan._tensors()
        alike = tensors.keys() == known.keys() and all(
            value.shape == known[name].shape and value.dtype == known[name].dtype
            for name, value in tensors.items()
        )
        if schema != SCAN_SCHEMA or scanned != rows or not alike:
            return None
        scan.rows = rows
        for name, value in tensors.items():
            owner, _, field = name.rpartition(".")
            setattr(getattr(scan, owner) if owner else scan, field, value)
        return scan if scan._holds() else None

    def _holds(self) -> bool:
        """Whether the values can be those of one pass."""
        ranked = (self.top, self.bottom, self.sample)
        return bool(
            all(
                torch.isfinite(t).all()
                for t in (self.max, self.histogram.range, *(r.value for r in ranked))
            )
            and not any(torch.isnan(r.key).any() for r in ranked)
            and all(((r.row >= -1) & (r.row < self.rows)).all() for r in ranked)
            and ((self.active >= 0) & (self.active <= self.rows)).all()
            and (self.histogram.counts >= 0).all()
            and torch.equal(self.histogram.counts.sum((1, 2)), self.active)
            and torch.equal(self.active > 0, self.max > 0)
            and (self.max <= self.histogram.range * (1 + 1e-6)).all()
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {"active": self.active, "max": self.max}
        for name in ("top", "bottom", "sample"):
            tensors |= {
                f"{name}.{field}": getattr(getattr(self, name), field)
                for field in ("key", "value", "row")
            }
        return tensors | {
            "histogram.range": self.histogram.range,
            "histogram.counts": self.histogram.counts,
        }


def _best_of_each_example(t: Triples, example: torch.Tensor, by_sign: bool) -> torch.Tensor:
    """Positions of the strongest entry of every (latent, example) pair, with `by_sign` of either
    sign: ten hits in one context are one example."""
    order = torch.argsort(t.value.abs(), descending=True, stable=True)
    _, local = torch.unique(example, return_inverse=True)
    pair = t.latent * (int(local.max()) + 1) + local
    if by_sign:
        pair = pair * 2 + (t.value > 0)
    pair = pair[order]
    by_pair = torch.argsort(pair, stable=True)
    pair = pair[by_pair]
    first = torch.ones(len(pair), dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    # In row order again, so that equal values keep the earlier row.
    return order[by_pair[first]].sort().values


@torch.no_grad()
def scan_store(
    model: Autoencoder,
    store: Store | StackedStore,
    progress: Callable[[Progress], None] = lambda _: None,
    device: torch.device = CPU,
) -> Scan:
    """Encode every row of the store once, on a device. The same model, store and device give the
    same scan."""
    keep_freed_memory()
    model = on_device(model, device)
    scan = Scan(model.latents, dense=model.active_above is None)
    generator = torch.Generator().manual_seed(0)
    above = 0.0 if model.active_above is None else model.active_above
    for batch in store.batches(CHUNK_ROWS):
        assert batch.rows is not None
        first = int(batch.rows[0])
        entries = active_entries(model.encode(batch.x.to(device).float()), above, first)
        scan.rows += len(batch.x)
        scan.add(entries, batch.example_id[entries.row - first], generator)
        progress(Progress("scan", scan.rows, store.count()))
    scan.close()
    return scan


def cached_scan(
    model: Autoencoder,
    checkpoint: Path,
    store: Store | StackedStore,
    progress: Callable[[Progress], None] = lambda _: None,
    device: torch.device = CPU,
) -> Scan:
    """The scan in the checkpoint folder, computed where it is missing or damaged. Where the folder
    cannot be written, every call scans, and a message says so."""
    content = "-".join(part.content[:16] for part in stores_of(store))
    path = checkpoint / SCANS / f"{content}.safetensors"
    scan = Scan.read(path, model.latents, store.count(), dense=model.active_above is None)
    if scan is None:
        scan = scan_store(model, store, progress, device)
        try:
            scan.save(path)
        except (OSError, SafetensorError, SaekitError) as error:
            message = f"the scan is not kept for the next time: {message_of(error)}"
            progress(Progress("scan", scan.rows, store.count(), message=message))
    return scan

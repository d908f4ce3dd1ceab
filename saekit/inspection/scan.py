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
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from saekit.device import CPU
from saekit.errors import SaekitError, message_of
from saekit.indexing.entries import CHUNK_ROWS, Triples, encoded_chunks
from saekit.indexing.histogram import Histogram
from saekit.indexing.reader import Index
from saekit.models.autoencoder import Autoencoder
from saekit.store.files import write_tensors
from saekit.store.reader import Store
from saekit.store.scans import SCAN_SCHEMA, SCANS
from saekit.store.stack import StackedStore, stores_of
from saekit.types import Progress

# rows of different examples; twice what a page shows, so that examples of one document can be
# thinned
KEPT_TOP = 40
KEPT_SAMPLE = 48  # for the examples of each band


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


def scan_store(
    model: Autoencoder,
    store: Store | StackedStore,
    progress: Callable[[Progress], None] = lambda _: None,
    device: torch.device = CPU,
) -> Scan:
    """Encode every row of the store once, on a device. The same model, store and device give the
    same scan."""
    scan = Scan(model.latents, dense=model.active_above is None)
    generator = torch.Generator().manual_seed(0)
    for batch, entries in encoded_chunks(model, store, device, CHUNK_ROWS):
        example = batch.example_id[entries.row - scan.rows]
        scan.rows += len(batch.x)
        scan.add(entries, example, generator)
        progress(Progress("scan", scan.rows, store.count()))
    scan.close()
    return scan


def scan_index(index: Index, progress: Callable[[Progress], None] = lambda _: None) -> Scan:
    """The same scan from an index of float32 values, without encoding a row."""
    scan = Scan(len(index))
    generator = torch.Generator().manual_seed(0)
    example_R = torch.from_numpy(index.origin.example)
    for part in index.entries(0, index.rows, index.manifest.chunk):
        rows = torch.arange(scan.rows, scan.rows + len(part.counts))
        row = rows.repeat_interleave(torch.from_numpy(part.counts))
        latent, value = torch.from_numpy(part.latent).long(), torch.from_numpy(part.value)
        scan.rows += len(part.counts)
        scan.add(Triples(row, latent, value), example_R[row].long(), generator)
        progress(Progress("scan", scan.rows, index.rows))
    scan.close()
    return scan


def cached_scan(
    model: Autoencoder,
    checkpoint: Path,
    store: Store | StackedStore,
    progress: Callable[[Progress], None] = lambda _: None,
    device: torch.device = CPU,
    index: Index | None = None,
) -> Scan:
    """The scan in the checkpoint folder; where it is missing or damaged it is made from the index,
    or else computed. Where the folder cannot be written, every call scans, and a message says
    so."""
    content = "-".join(part.content[:16] for part in stores_of(store))
    path = checkpoint / SCANS / f"{content}.safetensors"
    scan = Scan.read(path, model.latents, store.count(), dense=model.active_above is None)
    if scan is None:
        if index is not None and index.manifest.values == "float32":
            scan = scan_index(index, progress)
        else:
            scan = scan_store(model, store, progress, device)
        try:
            scan.save(path)
        except (OSError, SafetensorError, SaekitError) as error:
            message = f"the scan is not kept for the next time: {message_of(error)}"
            progress(Progress("scan", scan.rows, store.count(), message=message))
    return scan

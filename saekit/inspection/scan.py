"""One streaming pass over a store: for every latent its count, maximum, histogram, strongest rows and a sample of weaker ones.

Memory is a fixed number of entries a latent, whatever the store's size. Rows are encoded in chunks; each chunk becomes (row, latent,
value) triples of active entries, which are merged into the state. Values, histograms and top rows are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from saekit_kernels import SparseCodes, keep_freed_memory
from safetensors.torch import load_file

from saekit.store.files import write_tensors
from saekit.store.reader import Store
from saekit.store.stack import StackedStore, stores_of
from saekit.types import Autoencoder, Progress

SCAN_SCHEMA = 1
CHUNK_ROWS = 8192
BINS = 100  # over a range that doubles when a larger value comes; between half of them and all lie below the maximum
KEPT_TOP = 40  # rows of different examples; twice what a page shows, so that examples of one document can be thinned
KEPT_SAMPLE = 48  # for the interval examples


@dataclass
class Triples:
    """Active entries of a chunk: row (N,) int64 in the store, latent (N,) int64, value (N,) fp32."""

    row: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor


def active_entries(code: torch.Tensor | SparseCodes, above: float, first_row: int) -> Triples:
    if isinstance(code, SparseCodes):
        row, slot = code.active().nonzero(as_tuple=True)
        return Triples(row + first_row, code.idx[row, slot].long(), code.vals[row, slot].float())
    row, latent = (code > above).nonzero(as_tuple=True)
    return Triples(row + first_row, latent, code[row, latent].float())


class Ranked:
    """For each latent the `width` rows with the largest keys: key and value (F,width) fp32, row (F,width) int64, -1 where empty."""

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
        fresh.key[place, rank], fresh.value[place, rank], fresh.row[place, rank] = key[order], t.value[order], t.row[order]
        joined = {name: torch.cat([getattr(self, name)[touched], getattr(fresh, name)], 1) for name in ("key", "value", "row")}
        best = torch.argsort(joined["key"], dim=1, descending=True, stable=True)[:, :width]
        for name, values in joined.items():
            getattr(self, name)[touched] = values.gather(1, best)


class Histogram:
    """Equal-width counts over (0, range]. When a larger value comes the range doubles and neighbouring bins are added: exact."""

    def __init__(self, latents: int) -> None:
        self.range = torch.zeros(latents)
        self.counts = torch.zeros(latents, BINS, dtype=torch.int64)

    def add(self, t: Triples, chunk_max: torch.Tensor) -> None:
        new = (self.range == 0) & (chunk_max > 0)
        self.range[new] = chunk_max[new]
        while (grow := chunk_max > self.range).any():
            halved = self.counts[grow].view(-1, BINS // 2, 2).sum(2)
            self.counts[grow] = torch.cat([halved, torch.zeros_like(halved)], 1)
            self.range[grow] *= 2
        bins = (t.value / self.range[t.latent] * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
        self.counts += torch.bincount(t.latent * BINS + bins, minlength=self.counts.numel()).view_as(self.counts)

    def of(self, latent: int, maximum: float) -> dict[str, list[float]]:
        """{"edges", "counts"} up to the bin that holds the maximum."""
        width = float(self.range[latent]) / BINS
        used = max(min(-int(-maximum // width), BINS), 1) if width > 0 else 1
        return {"edges": [i * width for i in range(used + 1)], "counts": self.counts[latent, :used].tolist()}


class Scan:
    """What one pass leaves behind. `active` (F,) int64 rows in which each latent is active, `max` (F,) its largest value."""

    def __init__(self, latents: int) -> None:
        self.rows = 0
        self.active = torch.zeros(latents, dtype=torch.int64)
        self.max = torch.zeros(latents)
        self.histogram = Histogram(latents)
        self.top = Ranked(latents, KEPT_TOP)
        self.sample = Ranked(latents, KEPT_SAMPLE)
        self._open: tuple[Triples, torch.Tensor] | None = None

    @property
    def density(self) -> torch.Tensor:
        return self.active.double() / max(self.rows, 1)

    def add(self, t: Triples, example: torch.Tensor, generator: torch.Generator) -> None:
        """Merge a chunk; example (N,) is the example id of each entry."""
        self._add_top(t, example)
        if len(t.row) == 0:
            return
        latents = len(self.active)
        self.active += torch.bincount(t.latent, minlength=latents)
        chunk_max = torch.zeros(latents).scatter_reduce_(0, t.latent, t.value, "amax")
        self.max = torch.maximum(self.max, chunk_max)
        self.histogram.add(t, chunk_max)
        # Weighted reservoir (Efraimidis and Spirakis 2006): weight value^2, so that the rare strong activations, which fill the upper
        # intervals of [0, max], are well represented beside the many weak ones.
        uniform = torch.rand(len(t.row), generator=generator).clamp_min(1e-9)
        self.sample.merge(t, uniform.log() / t.value.double().square().clamp_min(1e-12).float())

    def _add_top(self, t: Triples, example: torch.Tensor) -> None:
        """The strongest entry of each example joins the ranking. The last example may go on in the next chunk and waits for it."""
        if self._open is not None:
            before, its_example = self._open
            t = Triples(*(torch.cat([getattr(before, f), getattr(t, f)]) for f in ("row", "latent", "value")))
            example = torch.cat([its_example, example])
        if len(example) == 0:
            return
        best = _best_of_each_example(t, example)
        t, example = Triples(t.row[best], t.latent[best], t.value[best]), example[best]
        waits = example == example[t.row.argmax()]
        self._open = Triples(t.row[waits], t.latent[waits], t.value[waits]), example[waits]
        self.top.merge(Triples(t.row[~waits], t.latent[~waits], t.value[~waits]), t.value[~waits])

    def close(self) -> None:
        """No more chunks come: what waited joins the ranking."""
        if self._open is not None:
            self.top.merge(self._open[0], self._open[0].value)
            self._open = None

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self._tensors().items()}
        write_tensors(path, tensors | {"rows": torch.tensor(self.rows), "schema": torch.tensor(SCAN_SCHEMA)})

    @classmethod
    def read(cls, path: Path, latents: int) -> Scan | None:
        """A saved scan, or None when there is none that fits."""
        if not path.exists():
            return None
        tensors = load_file(path)
        scan = cls(latents)
        if int(tensors["schema"]) != SCAN_SCHEMA or len(tensors["active"]) != latents:
            return None
        scan.rows = int(tensors["rows"])
        for name, value in tensors.items():
            if name not in ("rows", "schema"):
                owner, _, field = name.rpartition(".")
                setattr(getattr(scan, owner) if owner else scan, field, value)
        return scan

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {"active": self.active, "max": self.max}
        for name in ("top", "sample"):
            tensors |= {f"{name}.{field}": getattr(getattr(self, name), field) for field in ("key", "value", "row")}
        return tensors | {"histogram.range": self.histogram.range, "histogram.counts": self.histogram.counts}


def _best_of_each_example(t: Triples, example: torch.Tensor) -> torch.Tensor:
    """Positions of the strongest entry of every (latent, example) pair: ten hits in one context are one example."""
    order = torch.argsort(t.value, descending=True, stable=True)
    _, local = torch.unique(example, return_inverse=True)
    pair = (t.latent * (int(local.max()) + 1) + local)[order]
    by_pair = torch.argsort(pair, stable=True)
    pair = pair[by_pair]
    first = torch.ones(len(pair), dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    # In row order again, so that equal values keep the earlier row.
    return order[by_pair[first]].sort().values


@torch.no_grad()
def scan_store(model: Autoencoder, store: Store | StackedStore, progress: Callable[[Progress], None] = lambda _: None) -> Scan:
    """Encode every row of the store once. The same model and store give the same scan."""
    keep_freed_memory()
    scan = Scan(model.latents)
    generator = torch.Generator().manual_seed(0)
    above = 0.0 if model.active_above is None else model.active_above
    for batch in store.batches(CHUNK_ROWS):
        first = int(batch.rows[0])
        entries = active_entries(model.encode(batch.x.float()), above, first)
        scan.rows += len(batch.x)
        scan.add(entries, batch.example_id[entries.row - first], generator)
        progress(Progress("scan", scan.rows, len(store)))
    scan.close()
    return scan


def cached_scan(
    model: Autoencoder, checkpoint: Path, store: Store | StackedStore, progress: Callable[[Progress], None] = lambda _: None
) -> Scan:
    """The scan kept beside the checkpoint, made when it is missing."""
    content = "-".join(each.manifest.content[:16] for each in stores_of(store))
    path = checkpoint / "scans" / f"{content}.safetensors"
    scan = Scan.read(path, model.latents)
    if scan is None or scan.rows != len(store):
        scan = scan_store(model, store, progress)
        scan.save(path)
    return scan

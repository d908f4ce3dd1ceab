"""The rows by which each latent is shown: the strongest, and a sample of weaker ones.

Codes may be signed. Rows are ranked by size, |value|, and keep their sign. In a dense code every
row has a value at every latent, and both ends are ranked separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from saekit.indexing.radix import bits_of_sizes
from saekit.indexing.ranking import Ranked, Ranking, first_of_each
from saekit.indexing.row_order import RowOrder
from saekit.indexing.statistics import blocks
from saekit.indexing.tensor_file import Shapes, mapped_tensors, writing_tensors
from saekit.typed import MisfitError

# rows of different examples; twice what a page shows, so that examples of one document can be
# thinned
KEPT_TOP = 40
KEPT_SAMPLE = 48  # for the examples of each band
PIECE = 1 << 21  # entries in memory together


@dataclass(frozen=True)
class ShownRows:
    top: Ranked
    """The rows with the largest sizes, each the strongest of its context or image; at most
    KEPT_TOP. Of a dense code those of values above 0."""
    bottom: Ranked
    """Of a dense code those of values below 0; else none."""
    sample: Ranked
    """At most KEPT_SAMPLE of all active rows, drawn in proportion to value^2."""


class Sampler:
    """A weighted reservoir (Efraimidis and Spirakis 2006) with weight value^2, so that the rare
    strong activations, which fill the upper bands, are well represented."""

    def __init__(self, latents: int) -> None:
        self._ranking = Ranking(latents, KEPT_SAMPLE)
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, value: np.ndarray) -> np.ndarray:
        """(n,) uint32: the ranks of the next entries, by row, then latent."""
        value_N = torch.from_numpy(value)
        uniform = torch.rand(len(value), generator=self._generator).clamp_min(1e-9)
        key = uniform.log() / value_N.double().square().clamp_min(1e-12).float()
        return bits_of_sizes(key.numpy())

    def add(self, latent: np.ndarray, row: np.ndarray, value: np.ndarray, rank: np.ndarray) -> None:
        self._ranking.add(latent, row, value, rank)

    def ranked(self) -> Ranked:
        return self._ranking.ranked()


def by_size(size: np.ndarray) -> np.ndarray:
    """(n,) uint32: ranks by which the largest sizes come first."""
    return ~bits_of_sizes(size)


def shown_rows(
    ptr: np.ndarray, row: np.ndarray, value: np.ndarray, order: RowOrder, example: np.ndarray,
    chunk: int,
) -> ShownRows:  # fmt: skip
    """From the entries by latent and by row. `example` (R,): that of each row. `chunk`: rows that
    are encoded together."""
    latents = len(ptr) - 1
    none = Ranked(np.zeros(latents + 1, np.int64), row[:0], np.zeros(0, np.float32))
    return ShownRows(_strongest(ptr, row, value, example), none, _sampled(order, chunk))


def _strongest(ptr: np.ndarray, row: np.ndarray, value: np.ndarray, example: np.ndarray) -> Ranked:
    """For each latent the strongest row of each of its KEPT_TOP strongest examples."""
    counts = np.zeros(len(ptr) - 1, np.int64)
    rows, values = [row[:0]], [np.zeros(0, np.float32)]
    for a, b in blocks(ptr, PIECE):
        own = slice(int(ptr[a]), int(ptr[b]))
        if own.start == own.stop:
            continue
        rows_N, values_N = row[own], value[own].astype(np.float32)
        latent_N = np.repeat(np.arange(b - a), np.diff(ptr[a : b + 1]))
        best = strongest_of_runs(np.abs(values_N), latent_N, example[rows_N])
        latent = latent_N[best]
        kept = first_of_each(latent, by_size(values_N[best]), KEPT_TOP)
        counts[a:b] = np.bincount(latent[kept], minlength=b - a)
        rows.append(rows_N[best[kept]])
        values.append(values_N[best[kept]])
    ends = np.concatenate([[0], np.cumsum(counts)])
    return Ranked(ends, np.concatenate(rows), np.concatenate(values))


def strongest_of_runs(size: np.ndarray, *names: np.ndarray) -> np.ndarray:
    """Places of the largest size (n,) in each run of equal names; the first of equal ones."""
    new = np.ones(len(size), bool)
    new[1:] = np.any([name[1:] != name[:-1] for name in names], axis=0)
    begin = np.flatnonzero(new)
    largest = np.repeat(np.maximum.reduceat(size, begin), np.diff(np.append(begin, len(size))))
    places = np.where(size == largest, np.arange(len(size)), len(size))
    return np.minimum.reduceat(places, begin)


def _sampled(order: RowOrder, chunk: int) -> Ranked:
    sampler = Sampler(order.latents)
    for latent, row, value, rank in _drawn(order, sampler, chunk):
        sampler.add(latent, row, value, rank)
    return sampler.ranked()


def _drawn(order: RowOrder, sampler: Sampler, chunk: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Latents, rows, values and ranks, about PIECE entries at a time."""
    rows, first = len(order.ptr) - 1, 0
    while first < rows:
        ranks, stop = [], first
        while stop < rows and (stop == first or order.ptr[stop] - order.ptr[first] < PIECE):
            begin, stop = stop, min(stop + chunk, rows)
            part = slice(int(order.ptr[begin]), int(order.ptr[stop]))
            ranks.append(sampler.draw(order.value[part].astype(np.float32)))
        part = slice(int(order.ptr[first]), int(order.ptr[stop]))
        row = np.repeat(np.arange(first, stop), np.diff(order.ptr[first : stop + 1]))
        value = order.value[part].astype(np.float32)
        yield order.latent[part], row, value, np.concatenate(ranks)
        first = stop


def shown_tensors(latents: int, row_type: str, entries: int | None = None) -> Shapes:
    """What the file holds: `ptr`, `row` and `value` of each ranking."""
    shapes: dict[str, tuple[str, int | None]] = {}
    for field in fields(ShownRows):
        shapes[f"{field.name}_ptr"] = ("int64", latents + 1)
        shapes[f"{field.name}_row"] = (row_type, entries)
        shapes[f"{field.name}_value"] = ("float32", entries)
    return shapes


def write_shown(path: Path, shown: ShownRows, row_type: str) -> None:
    columns = {
        f"{field.name}_{name}": getattr(getattr(shown, field.name), name)
        for field in fields(shown)
        for name in ("ptr", "row", "value")
    }
    known = shown_tensors(len(shown.top.ptr) - 1, row_type)
    shapes = {name: (known[name][0], len(column)) for name, column in columns.items()}
    with writing_tensors(path, shapes) as file:
        for name, column in columns.items():
            file.append(name, column)


def read_shown(path: Path, latents: int, row_type: str) -> ShownRows:
    """Raises MisfitError."""
    tensors = mapped_tensors(path, shown_tensors(latents, row_type))
    rankings = {}
    for field in fields(ShownRows):
        parts = {name: tensors[f"{field.name}_{name}"] for name in ("ptr", "row", "value")}
        if not int(parts["ptr"][-1]) == len(parts["row"]) == len(parts["value"]):
            raise MisfitError(f"{field.name} has another number of rows than {field.name}_ptr says")
        rankings[field.name] = Ranked(**parts)
    return ShownRows(**rankings)

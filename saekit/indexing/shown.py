"""The rows by which each latent is shown: the strongest, and a sample of weaker ones.

Codes may be signed. Rows are ranked by size, |value|, and keep their sign. In a dense code every
row has a value at every latent, and both ends are ranked separately.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from saekit.indexing.radix import bits_of_sizes, order_of
from saekit.indexing.ranking import Ranked, first_of_each
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
    strong activations, which fill the upper bands, are well represented: the entries with the
    smallest ranks."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, value: np.ndarray) -> np.ndarray:
        """(n,) uint32: the ranks of the next entries, by row, then latent."""
        value_N = torch.from_numpy(value)
        uniform = torch.rand(len(value), generator=self._generator).clamp_min(1e-9)
        key = uniform.log() / value_N.double().square().clamp_min(1e-12).float()
        return bits_of_sizes(key.numpy())


def by_size(size: np.ndarray) -> np.ndarray:
    """(n,) uint32: ranks by which the largest sizes come first."""
    return ~bits_of_sizes(size)


def shown_rows(
    ptr: np.ndarray, row: np.ndarray, value: np.ndarray, order: RowOrder, example: np.ndarray,
    chunk: int, scratch: Path | None = None,
) -> ShownRows:  # fmt: skip
    """From the entries by latent and by row. `example` (R,): that of each row. `chunk`: rows that
    are encoded together. `scratch`: the folder of an unnamed file of 4 bytes per entry; None: that
    of temporary files."""

    def strongest(latent_N: np.ndarray, own: slice) -> np.ndarray:
        size_N = np.abs(value[own].astype(np.float32))
        best = strongest_of_runs(size_N, latent_N, example[row[own]])
        return best[first_of_each(latent_N[best], by_size(size_N[best]), KEPT_TOP)]

    with tempfile.TemporaryFile(dir=scratch) as file:
        rank = np.memmap(file, np.uint32, "w+", shape=max(len(row), 1))
        _draw_by_latent(rank, ptr, order, chunk)
        sampled = lambda latent_N, own: first_of_each(latent_N, rank[own], KEPT_SAMPLE)
        top, sample = (_picked(ptr, row, value, pick) for pick in (strongest, sampled))
    none = Ranked(np.zeros(len(ptr), np.int64), row[:0], np.zeros(0, np.float32))
    return ShownRows(top, none, sample)


def _picked(
    ptr: np.ndarray,
    row: np.ndarray,
    value: np.ndarray,
    pick: Callable[[np.ndarray, slice], np.ndarray],
) -> Ranked:
    """Rows of all latents, a block of them at a time. pick(latent of each entry (N,), where the
    block's entries are) -> places of the chosen entries in the block, by latent, best first."""
    counts = np.zeros(len(ptr) - 1, np.int64)
    rows, values = [row[:0]], [np.zeros(0, np.float32)]
    for a, b in blocks(ptr, PIECE):
        own = slice(int(ptr[a]), int(ptr[b]))
        if own.start == own.stop:
            continue
        latent_N = np.repeat(np.arange(b - a), np.diff(ptr[a : b + 1]))
        kept = pick(latent_N, own)
        counts[a:b] = np.bincount(latent_N[kept], minlength=b - a)
        rows.append(row[own][kept])
        values.append(value[own][kept].astype(np.float32))
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


def _draw_by_latent(rank: np.ndarray, ptr: np.ndarray, order: RowOrder, chunk: int) -> None:
    """Fill `rank` (N,) with what a sampler draws row by row, in the order of entries by latent."""
    free = ptr[:-1].copy()  # where the next entry of each latent goes
    for latent, drawn in _drawn(order, chunk):
        by_latent = order_of(latent.astype(np.uint32))
        counts = np.bincount(latent, minlength=len(free))
        shift = free - (np.cumsum(counts) - counts)
        rank[np.arange(len(latent)) + shift[latent[by_latent]]] = drawn[by_latent]
        free += counts


def _drawn(order: RowOrder, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Latents and ranks of the entries by row, about PIECE at a time."""
    sampler, rows, first = Sampler(), len(order.ptr) - 1, 0
    while first < rows:
        ranks, stop = [], first
        while stop < rows and (stop == first or order.ptr[stop] - order.ptr[first] < PIECE):
            begin, stop = stop, min(stop + chunk, rows)
            part = slice(int(order.ptr[begin]), int(order.ptr[stop]))
            ranks.append(sampler.draw(order.value[part].astype(np.float32)))
        part = slice(int(order.ptr[first]), int(order.ptr[stop]))
        yield order.latent[part], np.concatenate(ranks)
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

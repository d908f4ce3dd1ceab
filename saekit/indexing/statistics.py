"""What an index says about every latent at once, from its entries by latent. No figure depends on
how the passes over the files are cut, so that equal entries give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saekit.indexing.origin import Origin
from saekit.indexing.row_order import RowOrder

PIECE = 1 << 22  # entries in memory together
FEATURE_TENSORS = {
    "active": "int64",
    "max": "float32",
    "largest": "float32",
    "range": "float32",
    "sum": "float64",
    "squares": "float64",
    "first": "int64",
    "unpreceded": "int64",
}


def statistics(
    ptr: np.ndarray, row: np.ndarray, value: np.ndarray, chunk: int
) -> dict[str, np.ndarray]:
    """The entries by latent -> arrays (F,):

    active: rows in which it is active. max: its largest size, and largest: that value with its
    sign. range: of its histogram. sum, squares: of its values and their squares. `chunk` is the
    number of rows that are encoded together: the range begins with the largest size of the first
    chunk in which the latent is active, as in one pass over the rows."""
    latents = len(ptr) - 1
    figures = {name: np.zeros(latents, FEATURE_TENSORS[name]) for name in FEATURE_TENSORS}
    figures["active"] = np.diff(ptr)
    for a, b, lo, hi in _pieces(ptr):
        # of each latent that has entries: where they begin
        begin = np.maximum(ptr[a:b], lo)
        some = np.flatnonzero(np.minimum(ptr[a + 1 : b + 1], hi) > begin)
        if not len(some):
            continue
        at, which = begin[some] - lo, a + some
        counts = np.diff(np.append(at, hi - lo))
        values = value[lo:hi].astype(np.float32)
        size = np.abs(values)
        # the largest, the earlier of equal ones
        top = np.maximum.reduceat(size, at)
        places = np.where(size == np.repeat(top, counts), np.arange(hi - lo), hi - lo)
        first_place = np.minimum.reduceat(places, at)
        larger = top > figures["max"][which]
        figures["largest"][which[larger]] = values[first_place[larger]]
        figures["max"][which[larger]] = top[larger]
        # the largest of the first chunk of rows
        first_chunk = np.repeat(row[ptr[which]] // chunk, counts)
        early = np.where(row[lo:hi] // chunk == first_chunk, size, 0)
        start = np.maximum.reduceat(early, at)
        figures["range"][which] = np.maximum(figures["range"][which], start)
        # sums
        values = values.astype(np.float64)
        figures["sum"][which] += np.add.reduceat(values, at)
        figures["squares"][which] += np.add.reduceat(np.square(values), at)
    while (short := figures["max"] > figures["range"]).any():
        figures["range"][short] *= 2
    return figures


def _pieces(ptr: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """(first latent, last plus one, first entry, last plus one): whole latents, together at most
    PIECE entries; one with more of them comes in pieces."""
    a, latents = 0, len(ptr) - 1
    while a < latents:
        b = int(np.searchsorted(ptr, ptr[a] + PIECE, side="right")) - 1
        if b > a:
            b = min(b, latents)
            yield a, b, int(ptr[a]), int(ptr[b])
        else:
            b = a + 1
            for lo in range(int(ptr[a]), int(ptr[b]), PIECE):
                yield a, b, lo, min(lo + PIECE, int(ptr[b]))
        a = b


def blocks(ptr: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(first latent, last plus one), with at most `most` entries together where these are
    several."""
    a, latents = 0, len(ptr) - 1
    while a < latents:
        b = int(np.searchsorted(ptr, ptr[a] + most, side="right")) - 1
        b = min(max(b, a + 1), latents)
        yield a, b
        a = b


def at_beginnings(order: RowOrder, origin: Origin) -> dict[str, np.ndarray]:
    """first (F,): rows in which the latent is active and which are the first of their example.
    unpreceded (F,): the same for all rows whose row before is not stored."""
    return {
        "first": order.counts(origin.example_first),
        "unpreceded": order.counts(np.flatnonzero(~origin.follows)),
    }

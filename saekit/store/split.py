"""Which rows are held out: whole documents, chosen by a hash of document and seed, so that all runs
on a store agree.

Seed and share belong to the store, not to the training run: runs with different seeds are compared
on the same rows.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from saekit.errors import DataError
from saekit.types import Split

HOLDOUT_SHARE = 0.05  # of the rows, by default


class RowRanges:
    """A set of rows as sorted ranges, addressed 0..len-1."""

    def __init__(self, starts: np.ndarray, stops: np.ndarray) -> None:
        self.starts = starts
        # position after each range, in the numbering of the set
        self.ends = np.cumsum(stops - starts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def slices(self, first: int, last: int) -> list[tuple[int, int]]:
        """The store's row ranges for the set's positions [first, last)."""
        pieces = []
        i = int(np.searchsorted(self.ends, first, side="right"))
        while first < last:
            begin = int(self.ends[i - 1]) if i else 0
            take = min(last, int(self.ends[i])) - first
            start = int(self.starts[i]) + first - begin
            pieces.append((start, start + take))
            first += take
            i += 1
        return pieces

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """bool (N,): which of the store's rows are in the set."""
        range_of = np.searchsorted(self.starts, rows, side="right") - 1
        lengths = np.diff(self.ends, prepend=0)
        return (range_of >= 0) & (rows < self.starts[range_of] + lengths[range_of])

    def numbers(self) -> np.ndarray:
        """(len,) int64: the store's row number of every row of the set, ascending."""
        return np.concatenate(
            [np.arange(*piece) for piece in self.slices(0, len(self))] or [np.zeros(0, np.int64)]
        )


def document_runs(doc_ids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(first row, document) of every run of rows of one document, over the shards in order."""
    firsts, docs, offset = [], [], 0
    for ids in doc_ids:
        starts = (
            np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
            if len(ids)
            else np.zeros(0, int)
        )
        firsts.append(starts + offset)
        docs.append(np.asarray(ids)[starts])
        offset += len(ids)
    return np.concatenate(firsts).astype(np.int64), np.concatenate(docs).astype(np.int64)


def split_rows(
    first: np.ndarray,
    doc: np.ndarray,
    total: int,
    seed: int,
    split: Split,
    share: float = HOLDOUT_SHARE,
) -> RowRanges:
    """The rows of one side. Documents go to the held-out side in hash order until `share` of the
    rows are reached.

    Raises DataError when there are fewer than two documents: neither side may be empty.
    """
    stops = np.append(first[1:], total)
    if split == "all":
        return RowRanges(np.zeros(1, np.int64), np.array([total]))
    documents, which = np.unique(doc, return_inverse=True)
    if len(documents) < 2:
        raise DataError(
            "the store holds only one document, so none can be held out",
            "harvest at least two documents",
        )
    rows = np.bincount(which, weights=stops - first)
    order = np.argsort(_hash(documents, seed), kind="stable")
    reached = np.cumsum(rows[order])
    # A fraction, since 0.07 * 100 is above 7 in floating point.
    count = int(np.searchsorted(reached, math.ceil(Fraction(str(share)) * total))) + 1
    held_out = np.zeros(len(documents), bool)
    held_out[order[: min(count, len(documents) - 1)]] = True
    chosen = held_out[which] if split == "holdout" else ~held_out[which]
    return RowRanges(first[chosen], stops[chosen])


def _hash(values: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014) of document and seed, uint64."""
    with np.errstate(over="ignore"):
        z = (
            values.astype(np.uint64)
            + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
            + np.uint64(0x9E3779B97F4A7C15)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

"""For each latent the rows that rank first by some key, of however many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saekit.indexing.radix import order_of


@dataclass(frozen=True)
class Ranked:
    """Rows of each of F latents, best first: those of latent j are row[ptr[j]:ptr[j+1]], with its
    values (N,) fp32 there."""

    ptr: np.ndarray  # (F+1,) int64
    row: np.ndarray  # (N,) int32 or int64
    value: np.ndarray

    def of(self, latent: int) -> tuple[list[int], list[float]]:
        """(rows, values) of one latent."""
        own = slice(int(self.ptr[latent]), int(self.ptr[latent + 1]))
        return self.row[own].tolist(), self.value[own].tolist()

    def counts(self, latents: np.ndarray) -> np.ndarray:
        """(A,) int64: how many rows each of these latents (A,) has."""
        return self.ptr[latents + 1] - self.ptr[latents]

    def padded(self, latents: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (A,width) int64, -1 where there are fewer, and values (A,width) fp32, there 0, of
        these latents (A,)."""
        place_AW = self.ptr[latents][:, None] + np.arange(width)
        there_AW = np.arange(width) < self.counts(latents)[:, None]
        rows_AW, values_AW = np.full(place_AW.shape, -1), np.zeros(place_AW.shape, np.float32)
        rows_AW[there_AW] = self.row[place_AW[there_AW]]
        values_AW[there_AW] = self.value[place_AW[there_AW]]
        return rows_AW, values_AW


def first_of_each(latent: np.ndarray, rank: np.ndarray, width: int) -> np.ndarray:
    """Places of the entries (n,) with the smallest `rank` (n,) uint32, at most `width` of each
    latent: by latent, then rank, the earlier of equal ones first."""
    order = order_of(rank)
    order = order[order_of(latent[order].astype(np.uint32))]
    latent = latent[order]
    new = np.ones(len(order), bool)
    new[1:] = latent[1:] != latent[:-1]
    at = np.arange(len(order))
    return order[at - np.maximum.accumulate(np.where(new, at, 0)) < width]


class Ranking:
    """The entries with the smallest ranks that were added so far, at most `width` of each latent.
    Of equal ones the earlier stay."""

    def __init__(self, latents: int, width: int) -> None:
        self._width = width
        self._latent, self._rank = np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        self._row, self._value = np.zeros(0, np.int64), np.zeros(0, np.float32)
        # (F,): from this rank on an entry cannot be among them; beyond all where there is room
        self._limit = np.full(latents, 1 << 32, np.int64)

    def add(self, latent: np.ndarray, row: np.ndarray, value: np.ndarray, rank: np.ndarray) -> None:
        """Entries (n,) of rows after those of earlier calls; rank: uint32."""
        fits = rank < self._limit[latent]
        if not fits.any():
            return
        columns = {
            "_latent": np.concatenate([self._latent, latent[fits].astype(np.uint32)]),
            "_rank": np.concatenate([self._rank, rank[fits]]),
            "_row": np.concatenate([self._row, row[fits]]),
            "_value": np.concatenate([self._value, value[fits]]),
        }
        kept = first_of_each(columns["_latent"], columns["_rank"], self._width)
        for name, column in columns.items():
            setattr(self, name, column[kept])
        full = self._ptr()[1:]
        full = full[np.diff(self._ptr()) == self._width] - 1
        self._limit[self._latent[full]] = self._rank[full]

    def _ptr(self) -> np.ndarray:
        counts = np.bincount(self._latent, minlength=len(self._limit))
        return np.concatenate([[0], np.cumsum(counts)])

    def ranked(self) -> Ranked:
        return Ranked(self._ptr(), self._row, self._value)

"""The entries of an index by row: which latents are active on some rows, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROWS_AT_ONCE = 1 << 16  # whose entries are in memory together


@dataclass(frozen=True)
class RowOrder:
    """Row r has the latents latent[ptr[r]:ptr[r+1]], ascending, and their values."""

    ptr: np.ndarray  # (R+1,) int64
    latent: np.ndarray  # (N,) int32
    value: np.ndarray  # (N,) fp32 or fp16
    latents: int

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(F,) int64: on how many of these rows (n,) each latent is active."""
        total = np.zeros(self.latents, np.int64)
        for part in _parts(rows):
            total += np.bincount(self._of(part, self.latent), minlength=self.latents)
        return total

    def sums(self, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(F,) fp64: the sum of each latent's values over these rows, times the weight (n,) of
        each."""
        total = np.zeros(self.latents)
        for first, part in enumerate(_parts(rows)):
            values = self._of(part, self.value).astype(np.float64)
            if weights is not None:
                each = weights[first * ROWS_AT_ONCE :][: len(part)]
                values *= np.repeat(each, self.ptr[part + 1] - self.ptr[part])
            total += np.bincount(self._of(part, self.latent), values, self.latents)
        return total

    def largest(self, rows: np.ndarray) -> np.ndarray:
        """(F,) fp32: each latent's value of largest size on these rows, with its sign; 0 where it
        is not active."""
        high, low = np.zeros(self.latents, np.float32), np.zeros(self.latents, np.float32)
        for part in _parts(rows):
            latent, value = self._of(part, self.latent), self._of(part, self.value)
            np.maximum.at(high, latent, value.astype(np.float32))
            np.minimum.at(low, latent, value.astype(np.float32))
        return np.where(high >= -low, high, low)

    def _of(self, rows: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The entries of the rows, end to end."""
        if self._width is not None:  # whole rows are copied, a third of the time
            return column.reshape(-1, self._width)[rows].ravel()
        first, count = self.ptr[rows], self.ptr[rows + 1] - self.ptr[rows]
        ends = np.cumsum(count)
        return column[
            np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + count, count)
        ]

    @cached_property
    def _width(self) -> int | None:
        """Entries per row, where all rows have the same number."""
        rows = len(self.ptr) - 1
        width, rest = divmod(len(self.latent), max(rows, 1))
        same = rest == 0 and width > 0 and bool((np.diff(self.ptr) == width).all())
        return width if same else None


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    rows = np.asarray(rows, np.int64)
    return [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]

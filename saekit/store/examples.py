"""Whole examples of a store: where their rows are, their labels, and batches of them.

The rows of an example are adjacent in one shard, so an example is one slice of a memory map.
Shuffling permutes all examples of a split at once, not in windows like rows: every example is a
separate read anyway, and a permutation of a million numbers takes 8 MB.
"""

from __future__ import annotations

import numpy as np
import torch

from saekit.store.shards import ShardFile
from saekit.store.split import RowRanges
from saekit.types import ActivationBatch


class Examples:
    """The examples that have rows, in store order. `first` and `count` (E,) int64: the first store
    row and the number of rows of every example."""

    def __init__(self, shards: list[ShardFile], offsets: np.ndarray) -> None:
        self._shards, self._offsets = shards, offsets
        counts = [np.asarray(shard.arrays["examples.rows"]) for shard in shards]
        firsts = [
            np.asarray(shard.arrays["examples.first_row"]) + offset
            for shard, offset in zip(shards, offsets)
        ]
        kept = [count > 0 for count in counts]  # max_norm may drop all rows of an example
        self._kept = kept
        self.first = np.concatenate([first[keep] for first, keep in zip(firsts, kept)])
        self.count = np.concatenate([count[keep] for count, keep in zip(counts, kept)])

    def of(self, ranges: RowRanges) -> np.ndarray:
        """Numbers of the examples whose first row is in `ranges`, ascending. Splits consist of
        documents, so the other rows are there too."""
        return np.flatnonzero(ranges.contains(self.first))

    def at(self, rows: np.ndarray) -> np.ndarray:
        """For store rows (N,): the number of the example that each belongs to."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def labels(self) -> list[str | None]:
        return [
            label
            for shard, kept in zip(self._shards, self._kept)
            for label, keep in zip(shard.labels(), kept)
            if keep
        ]

    def read(self, numbers: np.ndarray, grid: tuple[int, int] | None) -> ActivationBatch:
        """Whole examples, padded with zeros: x (B,T,D) and mask (B,T), None when all are of one
        length; with a grid x (B,H,W,D)."""
        # Buffers for the longest example.
        first, count = self.first[numbers], self.count[numbers]
        shard_of = np.searchsorted(self._offsets, first, side="right") - 1
        longest = int(count.max())
        like = self._shards[0].arrays
        x = np.zeros((len(numbers), longest, like["x"].shape[1]), like["x"].dtype)
        origin = {
            name: np.empty(len(numbers), like[name].dtype)
            for name in ("doc_id", "example_id", "position")
        }
        # Copy each example from its shard; its origin is that of its first row.
        for b, (s, row, rows) in enumerate(zip(shard_of.tolist(), first.tolist(), count.tolist())):
            arrays, local = self._shards[s].arrays, row - int(self._offsets[s])
            x[b, :rows] = arrays["x"][local : local + rows]
            for name, values in origin.items():
                values[b] = arrays[name][local]
        # Tensors, with a mask or a grid.
        x_BTD = torch.from_numpy(x)
        if x_BTD.dtype == torch.int16:
            x_BTD = x_BTD.view(self._shards[0].x_dtype)
        mask_BT = (
            None
            if count.min() == longest
            else torch.from_numpy(np.arange(longest) < count[:, None])
        )
        if grid is not None:
            fits = mask_BT is None and longest == grid[0] * grid[1]
            assert fits, f"{longest} rows are not a grid {grid}"
            x_BTD = x_BTD.unflatten(1, grid)
        ids = {name: torch.from_numpy(values) for name, values in origin.items()}
        return ActivationBatch(x_BTD, **ids, mask=mask_BT, rows=torch.from_numpy(first))

"""A store as Rows: the rows of a split, and how to read spans of them from the memory maps.

Order and batches come from saekit.rows; whole examples are read by saekit.store.examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.rows import Columns, Span, indices, pieces
from saekit.store.arrays import AsArrays
from saekit.store.examples import Examples
from saekit.store.lock import holder
from saekit.store.manifest import Manifest
from saekit.store.shards import ShardFile, StoredExample
from saekit.store.split import RowRanges, document_runs, split_rows
from saekit.types import ActivationBatch, ActivationSpec, Split

BLOCK_ROWS = 256
WINDOW_BLOCKS = 256  # 65,536 rows: 100 MB of 768 fp16 values
_COLUMNS = ("x", "doc_id", "example_id", "position")


def open_store(path: str | Path) -> Store:
    """Open the folder that `harvest` wrote.

    Parameters
        path: the folder of one hook.

    Raises DataError when it is not a store, not finished, or damaged, MissingError when nothing is
    there.
    """
    return Store(Path(path))


class Store(AsArrays):
    """The rows of one hook of one model on one data set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        if not self.manifest.complete:
            writer = holder(path)
            hint = (
                f"harvest it again with {opt('resume', True)}"
                if writer is None
                else f"wait until {writer} has written it"
            )
            raise DataError(f"{path} is not finished: {self.manifest.rows:,} rows so far", hint)
        self.shards = [ShardFile(path, shard, self.spec) for shard in self.manifest.shards]
        self._offsets = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._splits: dict[Split, RowRanges] = {}

    parts: tuple[int, ...] = ()  # only stores side by side have parts (saekit.store.stack)
    target = None  # only a pair of stores has a target (saekit.store.pair)

    @property
    def origin(self) -> Store:
        """The store that says where a row comes from: this one."""
        return self

    @property
    def content(self) -> str:
        """sha256 of the shards: equal for equal rows."""
        return self.manifest.content

    @property
    def spec(self) -> ActivationSpec:
        return self.manifest.spec

    @property
    def stats(self) -> dict[str, Any]:
        """The health report of the harvest: mean and std (D), mean_square_norm, median_norm,
        high_norm_rows ..."""
        assert self.manifest.stats is not None  # as in every complete manifest
        return self.manifest.stats

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        return document_runs([shard.arrays["doc_id"] for shard in self.shards])

    def split(self, split: Split) -> RowRanges:
        """The rows of one side of the held-out split (saekit.store.split)."""
        if split not in self._splits:
            self._splits[split] = split_rows(
                *self._runs, len(self), self.spec.seed, split, self.manifest.holdout
            )
        return self._splits[split]

    @cached_property
    def _examples(self) -> Examples:
        return Examples(self.shards, self._offsets)

    def count(self, split: Split = "all", examples: bool = False) -> int:
        """The number of rows, or examples (contexts, images), on one side of the held-out split."""
        ranges = self.split(split)
        return len(self._examples.of(ranges)) if examples else len(ranges)

    def labels(self, split: Split = "all", examples: bool = False) -> list[str | None]:
        """The label, from the data, of each row or of each example, in store order; None where it
        has none."""
        ranges, labels = self.split(split), self._examples.labels()
        numbers = self._examples.of(ranges) if examples else self._examples.at(ranges.numbers())
        return [labels[number] for number in numbers.tolist()]

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        """Flat batches of rows, x (B,D) in the store's dtype, from row `start` of the pass.

        seed None: one pass in store order, the last batch may be smaller. Otherwise endless, epoch
        after epoch, every batch full.

        examples=True (stores with layout sequence or grid): batch_size and start count whole
        examples. x is (B,T,D), padded with zeros to the longest of the batch, with mask (B,T) (None
        when nothing is padded), or (B,H,W,D), rows row-major; doc_id, example_id, position and rows
        are those of each example's first row.
        """
        ranges = self.split(split)
        if examples:
            assert self.spec.layout != "flat", f"{self.path} holds rows, not whole examples"
            grid = self.spec.grid if self.spec.layout == "grid" else None
            numbers = self._examples.of(ranges)
            for index in indices(len(numbers), batch_size, seed, start):
                yield self._examples.read(numbers[index], grid)
            return

        def load(spans: list[Span]) -> Columns:
            return self._load(spans, ranges)

        for columns in pieces(
            len(ranges), load, batch_size, seed, start, BLOCK_ROWS, WINDOW_BLOCKS
        ):
            yield ActivationBatch(**columns)

    def _load(self, spans: list[Span], ranges: RowRanges) -> Columns:
        """The given spans of the split, one after another, copied from the memory maps."""
        total = sum(last - first for first, last in spans)
        buffers = {name: self._empty(name, total) for name in _COLUMNS}
        rows = np.empty(total, np.int64)
        at = 0
        for first, last in spans:
            for shard, start, stop in self._pieces(ranges.slices(first, last)):
                size = stop - start
                arrays = self.shards[shard].arrays
                for name in _COLUMNS:
                    np.copyto(buffers[name][at : at + size], arrays[name][start:stop])
                rows[at : at + size] = np.arange(start, stop) + self._offsets[shard]
                at += size
        return self._tensors(buffers | {"rows": rows})

    def _tensors(self, arrays: dict[str, np.ndarray]) -> Columns:
        """The arrays as tensors; x, which NumPy may hold as int16, in its own dtype."""
        columns = {name: torch.from_numpy(values) for name, values in arrays.items()}
        if columns["x"].dtype == torch.int16:
            columns["x"] = columns["x"].view(self.shards[0].x_dtype)
        return columns

    def _empty(self, name: str, rows: int) -> np.ndarray:
        array = self.shards[0].arrays[name]
        return np.empty((rows, *array.shape[1:]), array.dtype)

    def _pieces(self, slices: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """(shard, first, last row within it) for ranges of the store's rows."""
        for start, stop in slices:
            while start < stop:
                shard = int(np.searchsorted(self._offsets, start, side="right")) - 1
                end = min(stop, int(self._offsets[shard + 1]))
                yield shard, start - int(self._offsets[shard]), end - int(self._offsets[shard])
                start = end

    def take(self, index: np.ndarray) -> ActivationBatch:
        """The given rows (N,) of the store, ascending: x (N,D) and their origin."""
        arrays = {name: self._empty(name, len(index)) for name in _COLUMNS}
        for s, shard in enumerate(self.shards):
            lo, hi = np.searchsorted(index, self._offsets[s : s + 2])
            if lo < hi:
                for name, values in arrays.items():
                    values[lo:hi] = shard.arrays[name][index[lo:hi] - self._offsets[s]]
        return ActivationBatch(**self._tensors(arrays | {"rows": np.asarray(index, np.int64)}))

    def column(self, name: str) -> np.ndarray:
        """doc_id, example_id or position of every row."""
        return np.concatenate([shard.arrays[name] for shard in self.shards])

    def locate(self, row: int) -> str:
        """'acts, shard 00002.safetensors row 17': where a row of the store is."""
        shard = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return (
            f"{self.path}, shard {self.shards[shard].shard.name} row"
            f" {row - int(self._offsets[shard])}"
        )

    def example_at(self, row: int) -> tuple[StoredExample, int]:
        """The example that a row belongs to, and the store row of that example's first row."""
        s = int(np.searchsorted(self._offsets, row, side="right")) - 1
        shard, local = self.shards[s], row - int(self._offsets[s])
        firsts, counts = shard.arrays["examples.first_row"], shard.arrays["examples.rows"]
        index = int(np.searchsorted(firsts, local, side="right")) - 1
        # An example whose rows were all dropped has the same first row as the next one.
        while counts[index] == 0:
            index -= 1
        example = shard.example(index)
        return example, int(self._offsets[s]) + example.first_row

    def documents_of(self, rows: list[int]) -> list[int]:
        """doc_id of each of the given rows."""
        shards = np.searchsorted(self._offsets, rows, side="right") - 1
        return [
            int(self.shards[s].arrays["doc_id"][row - self._offsets[s]])
            for s, row in zip(shards, rows)
        ]

    def positions(self, first: int, count: int) -> np.ndarray:
        """position (int32) of the store rows [first, first + count), all in one shard."""
        s = int(np.searchsorted(self._offsets, first, side="right")) - 1
        local = first - int(self._offsets[s])
        return np.asarray(self.shards[s].arrays["position"][local : local + count])

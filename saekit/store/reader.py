"""A store as an ActivationSource: rows in order, or shuffled on two levels.

Shuffling permutes blocks of rows over the whole split, loads a window of blocks and permutes the rows within it: reads stay near
sequential, memory is one window, and the order is a function of (seed, epoch) alone, so a row cursor continues a pass exactly.
Whole examples are read and shuffled by saekit.store.examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from saekit.errors import DataError, opt
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
    """Open the folder that `harvest` wrote. Raises DataError when it is not a store, not finished, or damaged."""
    return Store(Path(path))


@dataclass
class _Window:
    """Rows loaded together: the columns of a shard plus `rows`, their numbers in the store."""

    columns: dict[str, torch.Tensor]

    def take(self, index: torch.Tensor | slice) -> ActivationBatch:
        c = {name: values[index] for name, values in self.columns.items()}
        return ActivationBatch(c["x"], c["doc_id"], c["example_id"], c["position"], rows=c["rows"])


class Store:
    """The rows of one hook of one model on one data set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        if not self.manifest.complete:
            writer = holder(path)
            hint = f"harvest it again with {opt('resume', True)}" if writer is None else f"wait for {writer}, which is writing it"
            raise DataError(f"{path} is not finished: {self.manifest.rows:,} rows so far", hint)
        self.shards = [ShardFile(path, shard, self.spec) for shard in self.manifest.shards]
        self._offsets = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._splits: dict[Split, RowRanges] = {}

    has_target = False  # what a pair of stores has (saekit.store.pair)

    @property
    def spec(self) -> ActivationSpec:
        return self.manifest.spec

    @property
    def stats(self) -> dict:
        """The health report of the harvest: mean and std (D), mean_square_norm, median_norm, high_norm_rows ..."""
        return self.manifest.stats

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        return document_runs([shard.arrays["doc_id"] for shard in self.shards])

    def split(self, split: Split) -> RowRanges:
        """The rows of one side of the held-out split (saekit.store.split)."""
        if split not in self._splits:
            self._splits[split] = split_rows(*self._runs, len(self), self.spec.seed, split, self.manifest.holdout)
        return self._splits[split]

    @cached_property
    def _examples(self) -> Examples:
        return Examples(self.shards, self._offsets)

    def examples(self, split: Split = "all") -> int:
        """How many examples (contexts, images) one side of the held-out split has."""
        return len(self._examples.of(self.split(split)))

    def labels(self, split: Split = "all", examples: bool = False) -> list[str | None]:
        """The data's own label of each row, or of each example, in store order; None where it has none."""
        ranges, every = self.split(split), self._examples.labels()
        numbers = self._examples.of(ranges) if examples else self._examples.at(ranges.numbers())
        return [every[number] for number in numbers.tolist()]

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """Flat batches of rows, x (B,D) in the store's dtype, from row `start` of the pass.

        seed None: one pass in store order, the last batch may be smaller. Otherwise endless, epoch after epoch, every batch full.

        examples=True (stores with layout sequence or grid): batch_size and start count whole examples. x is (B,T,D), padded with zeros to
        the longest of the batch, with mask (B,T) (None when nothing is padded), or (B,H,W,D), rows row-major; doc_id, example_id,
        position and rows are those of each example's first row.
        """
        if examples:
            assert self.spec.layout != "flat", f"{self.path} holds rows, not whole examples"
            grid = self.spec.grid if self.spec.layout == "grid" else None
            for numbers in self._examples.order(self._examples.of(self.split(split)), batch_size, seed, start):
                yield self._examples.read(numbers, grid)
            return
        if seed is None:
            yield from self._in_order(batch_size, start, split)
            return
        held: list[ActivationBatch] = []
        missing = batch_size
        for window, order in self._shuffled_windows(seed, start, split):
            at = 0
            while at < len(order):
                piece = window.take(order[at : at + missing])
                at += len(piece.x)
                missing -= len(piece.x)
                held.append(piece)
                if missing == 0:
                    yield _joined(held)
                    held, missing = [], batch_size

    def _in_order(self, batch_size: int, start: int, split: Split) -> Iterator[ActivationBatch]:
        ranges = self.split(split)
        for first in range(start, len(ranges), batch_size):
            window = self._load([(first, min(first + batch_size, len(ranges)))], ranges)
            yield window.take(slice(None))

    def _shuffled_windows(self, seed: int, start: int, split: Split) -> Iterator[tuple[_Window, torch.Tensor]]:
        """(window, order of its rows still to come) from row `start` on, for ever."""
        ranges = self.split(split)
        n = len(ranges)
        epoch, skip = divmod(start, n)
        while True:
            rng = np.random.Generator(np.random.PCG64([seed, epoch]))
            blocks = rng.permutation(-(-n // BLOCK_ROWS))
            for w in range(0, len(blocks), WINDOW_BLOCKS):
                spans = [(b * BLOCK_ROWS, min((b + 1) * BLOCK_ROWS, n)) for b in blocks[w : w + WINDOW_BLOCKS].tolist()]
                # Drawn even when the window is skipped: the order of later windows must not depend on the cursor.
                order = rng.permutation(sum(last - first for first, last in spans))
                if skip >= len(order):
                    skip -= len(order)
                    continue
                yield self._load(spans, ranges), torch.from_numpy(order[skip:])
                skip = 0
            epoch += 1

    def _load(self, spans: list[tuple[int, int]], ranges: RowRanges) -> _Window:
        """The given stretches of the split, one after another, copied out of the memory maps."""
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
        columns = {name: torch.from_numpy(values) for name, values in buffers.items()}
        if columns["x"].dtype == torch.int16:
            columns["x"] = columns["x"].view(self.shards[0].x_dtype)
        return _Window(columns | {"rows": torch.from_numpy(rows)})

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

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """x (N,D) of the given rows of the store, ascending."""
        x = self._empty("x", len(index))
        for s, shard in enumerate(self.shards):
            lo, hi = np.searchsorted(index, self._offsets[s : s + 2])
            if lo < hi:
                x[lo:hi] = shard.arrays["x"][index[lo:hi] - self._offsets[s]]
        tensor = torch.from_numpy(x)
        return tensor.view(self.shards[0].x_dtype) if tensor.dtype == torch.int16 else tensor

    def column(self, name: str) -> np.ndarray:
        """doc_id, example_id or position of every row."""
        return np.concatenate([shard.arrays[name] for shard in self.shards])

    def locate(self, row: int) -> str:
        """'00002.safetensors row 17': where a row of the store lies."""
        shard = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return f"{self.shards[shard].shard.name} row {row - int(self._offsets[shard])}"

    def example_at(self, row: int) -> tuple[StoredExample, int]:
        """The example that a row belongs to, and the store row of that example's first row."""
        s = int(np.searchsorted(self._offsets, row, side="right")) - 1
        shard, local = self.shards[s], row - int(self._offsets[s])
        firsts, counts = shard.arrays["examples.first_row"], shard.arrays["examples.rows"]
        index = int(np.searchsorted(firsts, local, side="right")) - 1
        while counts[index] == 0:  # an example all of whose rows were dropped shares its first row with its successor
            index -= 1
        example = shard.example(index)
        return example, int(self._offsets[s]) + example.first_row

    def documents_of(self, rows: list[int]) -> list[int]:
        """doc_id of each of the given rows."""
        shards = np.searchsorted(self._offsets, rows, side="right") - 1
        return [int(self.shards[s].arrays["doc_id"][row - self._offsets[s]]) for s, row in zip(shards, rows)]

    def positions(self, first: int, count: int) -> np.ndarray:
        """position (int32) of the store rows [first, first + count), which must lie in one shard."""
        s = int(np.searchsorted(self._offsets, first, side="right")) - 1
        local = first - int(self._offsets[s])
        return np.asarray(self.shards[s].arrays["position"][local : local + count])


def _joined(pieces: list[ActivationBatch]) -> ActivationBatch:
    if len(pieces) == 1:
        return pieces[0]
    fields = ("x", "doc_id", "example_id", "position", "rows")
    return ActivationBatch(**{name: torch.cat([getattr(p, name) for p in pieces]) for name in fields})

"""What training, evaluation and indexes read: one protocol, one shuffler, one batcher.

A source of rows knows how many rows it has and how to read some of them. Order, batches and the
cursor for a resume come from here, so they are the same for every source:

- `pieces`: one pass in order, or endless epochs, shuffled on two levels. Blocks of rows are
  permuted, a window of blocks is loaded, and the rows within it are permuted: reads stay nearly
  sequential and memory is one window. With a single block of all rows this is a plain permutation
  (`indices`).
- `cut`: batches of one size from any stream of windows, such as a shuffle buffer.

The order is a function of (seed, epoch) only, so a row cursor continues a pass exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from saekit.types import ActivationBatch, ActivationSpec, Split

Columns = dict[str, torch.Tensor]  # fields of an ActivationBatch by name, all of one length
Span = tuple[int, int]  # first row and the row after the last


class Rows(Protocol):
    """Rows that can be read in batches by a cursor: a Store, rows in memory, or an Adapter."""

    @property
    def path(self) -> Path | str:
        """The folder of a store, or a name for messages."""
        ...

    @property
    def spec(self) -> ActivationSpec: ...

    @property
    def content(self) -> str:
        """Digest of the rows, which must be the same for a resume or a comparison."""
        ...

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of several hooks side by side in a row; () for one hook."""
        ...

    @property
    def target(self) -> Rows | None:
        """The rows that batches have as `target`, to be reconstructed; None: x itself."""
        ...

    def count(self, split: Split = "all", examples: bool = False) -> int:
        """The number of rows, or whole examples, on one side of the held-out split."""
        ...

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        """Flat batches, x (B,D), from row `start` of the pass.

        seed None: one pass in order, the last batch may be smaller. Otherwise endless, epoch after
        epoch, every batch full. examples=True (layout sequence or grid): batch_size and start count
        whole examples, x is (B,T,D) with a mask if lengths differ, or (B,H,W,D).
        """
        ...

    def take(self, index: np.ndarray) -> ActivationBatch:
        """The rows with the given numbers (N,) int64, ascending."""
        ...

    def locate(self, row: int) -> str:
        """Where a row is, for messages: 'acts, shard 00002.safetensors row 17'."""
        ...


def same_rows(*batches: ActivationBatch) -> bool:
    """Whether all batches hold the same rows of their sources."""
    rows = [batch.rows for batch in batches if batch.rows is not None]
    return len(rows) == len(batches) and all(torch.equal(rows[0], other) for other in rows)


class Adapter:
    """Rows made from those of other sources, which are read in step and combined batch by batch.

    A subclass overrides `combine` and whatever else differs; all other members are those of the
    first source.
    """

    def __init__(self, *sources: Rows) -> None:
        self.sources = sources

    @property
    def path(self) -> Path | str:
        return self.sources[0].path

    @property
    def spec(self) -> ActivationSpec:
        return self.sources[0].spec

    @property
    def content(self) -> str:
        return self.sources[0].content

    @property
    def parts(self) -> tuple[int, ...]:
        return self.sources[0].parts

    @property
    def target(self) -> Rows | None:
        return self.sources[0].target

    def count(self, split: Split = "all", examples: bool = False) -> int:
        return self.sources[0].count(split, examples)

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        """One batch per source, of the same rows -> the combined batch."""
        return batches[0]

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        sources = [
            source.batches(batch_size, seed, start, split, examples) for source in self.sources
        ]
        for batches in zip(*sources):
            yield self.combine(*batches)

    def take(self, index: np.ndarray) -> ActivationBatch:
        return self.combine(*(source.take(index) for source in self.sources))

    def locate(self, row: int) -> str:
        return self.sources[0].locate(row)


def pieces(
    n: int,
    load: Callable[[list[Span]], Columns],
    size: int,
    seed: int | None,
    start: int,
    block: int | None = None,
    window: int = 1,
) -> Iterator[Columns]:
    """`size` of n rows at a time, from row `start` of the pass on; `load` reads the given spans,
    one after another.

    seed None: one pass in order. Otherwise endless: blocks of `block` rows (None: of all rows) are
    permuted, and the rows of `window` blocks at a time are loaded and permuted.
    """
    if seed is None:
        for first in range(start, n, size):
            yield load([(first, min(first + size, n))])
        return
    orders = _shuffled(n, seed, start, block or n, window)
    yield from cut(((load(spans), order) for spans, order in orders), size)


def indices(n: int, size: int, seed: int | None, start: int) -> Iterator[np.ndarray]:
    """The same for the numbers 0..n-1 themselves, for rows that can be read one by one."""
    for columns in pieces(n, lambda spans: {"index": torch.arange(*spans[0])}, size, seed, start):
        yield columns["index"].numpy()


def _shuffled(
    n: int, seed: int, start: int, block: int, window: int
) -> Iterator[tuple[list[Span], torch.Tensor]]:
    """(spans of a window, order of its remaining rows) from row `start` on, endless."""
    epoch, skip = divmod(start, n)
    while True:
        rng = np.random.Generator(np.random.PCG64([seed, epoch]))
        blocks = rng.permutation(-(-n // block))
        for w in range(0, len(blocks), window):
            spans = [(b * block, min((b + 1) * block, n)) for b in blocks[w : w + window].tolist()]
            # Drawn even if the window is skipped: the order of later windows must not depend on the
            # cursor.
            order = rng.permutation(sum(last - first for first, last in spans))
            if skip >= len(order):
                skip -= len(order)
                continue
            yield spans, torch.from_numpy(order[skip:])
            skip = 0
        epoch += 1


def cut(
    windows: Iterable[tuple[Columns, torch.Tensor]], size: int, start: int = 0
) -> Iterator[Columns]:
    """`size` rows at a time from a stream of (rows, their order), from the start-th row on.

    Rows are copied before the next window is requested. Only the last piece may be smaller.
    """
    pending: list[Columns] = []
    missing = size
    for columns, order in windows:
        at, start = start, max(start - len(order), 0)
        while at < len(order):
            index = order[at : at + missing]
            pending.append({name: values[index] for name, values in columns.items()})
            at, missing = at + len(index), missing - len(index)
            if missing == 0:
                yield _joined(pending)
                pending, missing = [], size
    if pending:
        yield _joined(pending)


def _joined(pieces: list[Columns]) -> Columns:
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

"""Two row-aligned stores as one source: x from the first, the target from the second."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.store.reader import Store
from saekit.store.split import RowRanges
from saekit.types import ActivationBatch, ActivationSpec, Split


def check_aligned(store: Store, other: Store) -> None:
    """Raise DataError unless row i of both comes from the same token, patch or image."""
    why = _difference(store, other)
    if why:
        cause = f"{other.path} is not row-aligned with {store.path}: {why}"
        raise DataError(cause, f"harvest both from the same examples with the same {opt('rows')}, {opt('seed')} and {opt('holdout')}")


def _difference(a: Store, b: Store) -> str:
    if a.spec.layout != b.spec.layout:
        return f"layout {b.spec.layout} instead of {a.spec.layout}"
    if len(a) != len(b):
        return f"{len(b):,} rows instead of {len(a):,}"
    if not all(np.array_equal(a.column(name), b.column(name)) for name in ("doc_id", "example_id", "position")):
        return "its rows come from other documents or positions"
    if not np.array_equal(a.split("holdout").numbers(), b.split("holdout").numbers()):
        return "other documents are held out"
    return ""


class PairedStore:
    """The first store, its batches with `target`. Raises DataError where the two are not row-aligned."""

    def __init__(self, store: Store, target: Store) -> None:
        self.store, self.other = store, target
        self.path = store.path
        check_aligned(store, target)

    has_target = True

    @property
    def spec(self) -> ActivationSpec:
        return self.store.spec

    def __len__(self) -> int:
        return len(self.store)

    def split(self, split: Split) -> RowRanges:
        return self.store.split(split)

    def examples(self, split: Split = "all") -> int:
        return self.store.examples(split)

    def locate(self, row: int) -> str:
        return self.store.locate(row)

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`. The order is a function of seed, epoch and split alone, which the two stores share."""
        arguments = (batch_size, seed, start, split, examples)
        for x, y in zip(self.store.batches(*arguments), self.other.batches(*arguments)):
            assert torch.equal(x.rows, y.rows)
            x.target = y.x
            yield x

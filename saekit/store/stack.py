"""Row-aligned stores side by side as one source: what a crosscoder reads. A row is the rows of all hooks, one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from saekit.store.pair import check_aligned
from saekit.store.reader import Store
from saekit.types import ActivationBatch, ActivationSpec, Split


class StackedStore:
    """`parts` are the widths. Raises DataError where rows of the stores come from other places."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        for other in stores[1:]:
            check_aligned(stores[0], other)
        self.parts = tuple(store.spec.d_in for store in stores)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stores[0], name)  # what all of them share: split, path, locate ...

    def __len__(self) -> int:
        return len(self.stores[0])

    @property
    def spec(self) -> ActivationSpec:
        """The first store's, with all hooks (`blocks.3+blocks.6`) and their width together."""
        hook = "+".join(store.spec.hook for store in self.stores)
        return dataclasses.replace(self.stores[0].spec, hook=hook, d_in=sum(self.parts))

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`; the stores share their order."""
        for batches in zip(*(store.batches(batch_size, seed, start, split, examples) for store in self.stores)):
            assert all(torch.equal(batch.rows, batches[0].rows) for batch in batches)
            yield dataclasses.replace(batches[0], x=torch.cat([batch.x.float() for batch in batches], -1))

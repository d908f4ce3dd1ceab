"""A source whose batches also hold the row before each row: the token before, for models that contrast neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.store.reader import Store
from saekit.types import ActivationBatch, Split


class WithPrevious:
    """`store`, its batches with `previous` and `has_previous`. A row has one where the row before it in the store is of the same example,
    one position earlier. Raises DataError where examples are not stored whole."""

    def __init__(self, store: Store) -> None:
        if store.spec.layout != "sequence":
            cause = f"{store.path} has layout {store.spec.layout}: a row's neighbour may be missing"
            raise DataError(cause, f"harvest it with {opt('layout', 'sequence')}")
        self.store = store
        example, position = store.column("example_id"), store.column("position")
        self._follows = np.zeros(len(store), bool)
        self._follows[1:] = (example[1:] == example[:-1]) & (position[1:] == position[:-1] + 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __len__(self) -> int:
        return len(self.store)

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`."""
        for batch in self.store.batches(batch_size, seed, start, split, examples):
            rows = batch.rows.numpy()
            before = np.maximum(rows - 1, 0)
            order = np.argsort(before, kind="stable")
            x = self.store.rows(before[order])
            batch.previous = torch.empty_like(x)
            batch.previous[torch.from_numpy(order)] = x
            batch.has_previous = torch.from_numpy(self._follows[rows])
            yield batch

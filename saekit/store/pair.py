"""Two row-aligned stores as one source: x from the first, the target from the second."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows
from saekit.store.reader import Store
from saekit.types import ActivationBatch


def check_aligned(store: Store, other: Store) -> None:
    """Raise DataError unless row i of both comes from the same token, patch or image."""
    why = _difference(store, other)
    if why:
        cause = f"{other.path} is not row-aligned with {store.path}: {why}"
        raise DataError(
            cause,
            f"harvest both from the same examples with the same {opt('rows')}, {opt('seed')} and"
            f" {opt('holdout')}",
        )


def _difference(a: Store, b: Store) -> str:
    if a.spec.layout != b.spec.layout:
        return f"layout {b.spec.layout} instead of {a.spec.layout}"
    if len(a) != len(b):
        return f"{len(b):,} rows instead of {len(a):,}"
    if not all(
        np.array_equal(a.column(name), b.column(name))
        for name in ("doc_id", "example_id", "position")
    ):
        return "its rows come from other documents or positions"
    if not np.array_equal(a.split("holdout").numbers(), b.split("holdout").numbers()):
        return "other documents are held out"
    return ""


class PairedStore(Adapter):
    """The first store's rows, their batches with `target`: the second's rows. Raises DataError
    where the two are not row-aligned."""

    def __init__(self, store: Store, target: Store) -> None:
        check_aligned(store, target)
        super().__init__(store, target)

    @property
    def target(self) -> Rows:
        return self.sources[1]

    def combine(self, batch: ActivationBatch, target: ActivationBatch) -> ActivationBatch:
        assert torch.equal(batch.rows, target.rows)
        return dataclasses.replace(batch, target=target.x)

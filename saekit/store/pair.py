"""Two row-aligned stores as one source: x from the first, the target from the second."""

from __future__ import annotations

import dataclasses

import numpy as np

from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows, same_rows
from saekit.store.reader import Store
from saekit.types import ActivationBatch


def check_aligned(store: Store, other: Store) -> None:
    """Raise DataError unless row i of both comes from the same token, patch or image."""
    if difference := _difference(store, other):
        raise DataError(
            f"{other.path} is not row-aligned with {store.path}: {difference}",
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
    """The first store's rows, with the second's as `target` of the batches. Raises DataError when
    the two are not row-aligned."""

    def __init__(self, store: Store, target: Store) -> None:
        check_aligned(store, target)
        super().__init__(store, target)

    @property
    def target(self) -> Rows:
        return self.sources[1]

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        assert same_rows(*batches)
        batch, target = batches
        return dataclasses.replace(batch, target=target.x)

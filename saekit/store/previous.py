"""Rows whose batches also hold the previous row of each row: the previous token, for models that
contrast neighbors."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows
from saekit.types import ActivationBatch


class WithPrevious(Adapter):
    """The rows of `source`, with `previous` and `has_previous` in their batches. A row has a
    previous row when the row before it belongs to the same example, one position earlier. Raises
    DataError when examples are not stored whole."""

    def __init__(self, source: Rows) -> None:
        if source.spec.layout != "sequence":
            raise DataError(
                f"{source.path} has layout {source.spec.layout}, so previous rows may be missing",
                f"harvest it with {opt('layout', 'sequence')}",
            )
        super().__init__(source)

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        (batch,) = batches
        assert batch.rows is not None
        before = np.maximum(batch.rows.numpy() - 1, 0)
        order = np.argsort(before, kind="stable")  # the source reads ascending rows
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        previous = self.sources[0].take(before[order])
        same_example = previous.example_id[back] == batch.example_id
        # The position is compared because row 0 does not follow itself.
        follows = same_example & (previous.position[back] + 1 == batch.position)
        return dataclasses.replace(batch, previous=previous.x[back], has_previous=follows)

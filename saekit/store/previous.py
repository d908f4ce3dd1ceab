"""Rows whose batches also hold the row before each row: the token before, for models that contrast
neighbours."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows
from saekit.types import ActivationBatch


class WithPrevious(Adapter):
    """The rows of `source`, their batches with `previous` and `has_previous`. A row has one where
    the row before it is of the same example, one position earlier. Raises DataError where examples
    are not stored whole."""

    def __init__(self, source: Rows) -> None:
        if source.spec.layout != "sequence":
            cause = (
                f"{source.path} has layout {source.spec.layout}: the row before a row may be"
                " missing"
            )
            raise DataError(cause, f"harvest it with {opt('layout', 'sequence')}")
        super().__init__(source)

    def combine(self, batch: ActivationBatch) -> ActivationBatch:
        before = np.maximum(batch.rows.numpy() - 1, 0)
        order = np.argsort(before, kind="stable")  # the source reads ascending rows
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        previous = self.sources[0].take(before[order])
        same_example = previous.example_id[back] == batch.example_id
        # row 0 does not follow itself
        follows = same_example & (previous.position[back] + 1 == batch.position)
        return dataclasses.replace(batch, previous=previous.x[back], has_previous=follows)

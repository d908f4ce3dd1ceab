"""Rows that stay in memory: a harvest without a folder fills this instead of a store."""

from __future__ import annotations

import torch

from saekit.errors import DataError
from saekit.store.manifest import Manifest
from saekit.store.writer import RowBlock, in_dtype
from saekit.types import ActivationBatch, ActivationSpec

_COLUMNS = ("x", "doc_id", "example_id", "position")


class MemoryWriter:
    """As StoreWriter, without files: nothing to resume, no shards, no health report."""

    batches_done = 0

    def __init__(self, spec: ActivationSpec) -> None:
        self.spec = spec
        self.manifest = Manifest(spec, {})
        self.rows = self.dropped = 0
        self._columns: dict[str, list[torch.Tensor]] = {name: [] for name in _COLUMNS}

    def set_norm_limit(self, limit: float) -> None:
        self.manifest.norm_limit = limit

    def append(self, block: RowBlock) -> None:
        """Raises NumericsError when a value is not finite in the dtype of the spec."""
        block.x = in_dtype(block, self.spec)
        for name, parts in self._columns.items():
            parts.append(getattr(block, name))
        self.rows += len(block.x)
        self.dropped += block.dropped

    def finish(self) -> ActivationBatch:
        """All rows as one flat batch. Raises DataError when there is none."""
        if self.rows == 0:
            raise DataError(
                "no row was kept: the data has no tokens or patches in this scope",
                "choose another scope or other data",
            )
        return ActivationBatch(**{name: torch.cat(parts) for name, parts in self._columns.items()})

"""What inspect and features read: a model, a store, and what is kept about both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from saekit.device import CPU
from saekit.indexing.beside import found_index
from saekit.indexing.opening import OpenedPair, opened_pair
from saekit.indexing.reader import Index
from saekit.inspection.scan import Scan, cached_scan, scan_store
from saekit.store.opening import RowsLike
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress


@dataclass(frozen=True)
class InspectedModel(OpenedPair):
    @cached_property
    def index(self) -> Index | None:
        """Of these weights on this store, where the checkpoint has one."""
        return found_index(self)

    def use(self, index: Index) -> None:
        """Take this index for the one of the pair."""
        vars(self)["index"] = index

    def whole_index(self) -> Index | None:
        """The same where it holds every value that is not 0, as it was computed: not rounded, and
        not only those of sigmoid latents that are active."""
        index = self.index if self.model.active_above == 0 else None
        return index if index is not None and index.manifest.values == "float32" else None

    def scan(self, progress: Callable[[Progress], None], device: torch.device = CPU) -> Scan:
        """One pass over the store, or over its index, kept for the next time in the folder of a
        checkpoint, if that is saekit's."""
        if self.checkpoint is None or not self.checkpoint.own:
            return scan_store(self.model, self.store, progress, device)
        folder = self.checkpoint.path
        return cached_scan(self.model, folder, self.store, progress, device, self.index)


def open_pair(checkpoint: ModelLike, store: RowsLike, any_store: bool = False) -> InspectedModel:
    """Model and store, known to fit. Raises what `opened_pair` does."""
    return InspectedModel(**vars(opened_pair(checkpoint, store, any_store)))

"""What inspect and features read: a model, a store, and the index of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from saekit.indexing.beside import found_index
from saekit.indexing.opening import OpenedPair, opened_pair
from saekit.indexing.reader import Index
from saekit.store.opening import RowsLike
from saekit.training.checkpoints import ModelLike


@dataclass(frozen=True)
class InspectedModel(OpenedPair):
    @cached_property
    def index(self) -> Index | None:
        """Of these weights on this store, where the checkpoint has one, or one that was made
        (saekit.inspection.indexed)."""
        return found_index(self)

    def use(self, index: Index) -> None:
        """Take this index for the one of the pair."""
        vars(self)["index"] = index


def open_pair(checkpoint: ModelLike, store: RowsLike, any_store: bool = False) -> InspectedModel:
    """Model and store, known to fit. Raises what `opened_pair` does."""
    return InspectedModel(**vars(opened_pair(checkpoint, store, any_store)))

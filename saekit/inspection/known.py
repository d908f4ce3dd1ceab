"""What is known of every latent on a store: from its index, where the checkpoint has one, else from
a scan."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from saekit.errors import DataError
from saekit.indexing.beside import has_other_index, index_command
from saekit.indexing.reader import Index
from saekit.inspection.gather import scores_of
from saekit.inspection.opening import InspectedModel
from saekit.inspection.records import strongest, thinned
from saekit.inspection.scan import KEPT_TOP, Scan
from saekit.inspection.score import Scores
from saekit.inspection.tokens import TokenTexts, token_texts
from saekit.types import Progress


class Known:
    """active (F,) int64, max (F,) fp32, density (F,) fp64. `source` says where they are from."""

    def __init__(self, inspected: InspectedModel, progress: Callable[[Progress], None]) -> None:
        self._inspected, self._progress = inspected, progress
        self.index: Index | None = inspected.index
        self.source = "scan" if self.index is None else "index"
        if self.index is None and has_other_index(inspected):
            command = index_command(inspected, again=True)
            text = f"the index of this store is of other weights, and is not used: {command}"
            progress(Progress("features", 0, 0, message=text))
        self.rows = inspected.store.count()

    @cached_property
    def scan(self) -> Scan:
        return self._inspected.scan(self._progress)

    @cached_property
    def scores(self) -> Scores:
        return scores_of(self._inspected.store, self.scan)

    @cached_property
    def texts(self) -> TokenTexts | None:
        """How the store's tokens are written; None for other data."""
        spec = self._inspected.store.spec
        is_text = spec.modality == "text" and not spec.is_raw
        return token_texts(self._inspected.store) if is_text else None

    def needed_index(self, what: str) -> Index:
        """Raises DataError, with the command that makes it, where there is none."""
        if self.index is None:
            raise DataError(
                f"{what} is answered by an index, and {self._inspected.name} has none of"
                f" {self._inspected.store.path}",
                index_command(self._inspected),
            )
        return self.index

    @cached_property
    def active(self) -> np.ndarray:
        return self.scan.active.numpy() if self.index is None else self.index.active

    @cached_property
    def max(self) -> np.ndarray:
        return self.scan.max.numpy() if self.index is None else self.index.max

    @property
    def density(self) -> np.ndarray:
        return self.active / max(self.rows, 1)

    def largest(self, latent: int) -> float:
        """The value of largest size, with its sign."""
        if self.index is None:
            return self.scan.largest(latent)
        return float(self.index.largest[latent])

    def strongest(self, latent: int, top: int) -> list[tuple[int, float]]:
        """(row, value) of the strongest rows, of different documents first."""
        store = self._inspected.store
        if self.index is None:
            return strongest(self.scan, store, latent, top)
        best = self.index.top(latent, KEPT_TOP)
        return thinned(store, best.rows.tolist(), best.values.tolist())[:top]

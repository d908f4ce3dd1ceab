"""What is known of every latent on a store, from its index."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from saekit.errors import DataError, opt
from saekit.indexing.reader import Index
from saekit.inspection.described import Described, Label, described, label_of
from saekit.inspection.gather import meanings_of
from saekit.inspection.indexed import index_of, is_kept
from saekit.inspection.meanings import Meanings
from saekit.inspection.opening import InspectedModel
from saekit.inspection.records import strongest
from saekit.inspection.score import Scores, no_scores, score_latents
from saekit.inspection.tokens import TokenTexts, token_texts
from saekit.types import Progress


def check_number(latent: int, latents: int) -> None:
    """Raise DataError for a latent that the model does not have."""
    if not 0 <= latent < latents:
        cause = f"feature {latent}: this model has {latents:,} (0 to {latents - 1:,})"
        raise DataError(
            cause, f"saekit features with {opt('sort', 'score')} lists those worth reading"
        )


def check_fired(latent: int, active: int, rows: int) -> None:
    """Raise DataError for a latent that no row of the store activates."""
    if active == 0:
        raise DataError(
            f"feature {latent} never fired in {rows:,} rows", "saekit inspect lists those that fire"
        )


class Known:
    """active (F,) int64, max (F,) fp32, density (F,) fp64. `source` says where they are from: the
    index beside the checkpoint, or a temporary one."""

    def __init__(self, inspected: InspectedModel, progress: Callable[[Progress], None]) -> None:
        self._inspected = inspected
        self.index: Index = index_of(inspected, progress)
        self.source = "index" if is_kept(inspected, self.index) else "temporary"
        self.rows = self.index.rows

    @cached_property
    def scores(self) -> Scores:
        index = self.index
        return no_scores(len(index)) if index.dense else score_latents(index, self.meanings)

    @cached_property
    def meanings(self) -> Meanings:
        """Words of the store's rows."""
        return meanings_of(self._inspected.store)

    @cached_property
    def described(self) -> Described:
        """What people and other programs said, in files beside the checkpoint."""
        return described(self._inspected)

    @cached_property
    def texts(self) -> TokenTexts | None:
        """How the store's tokens are written; None for other data."""
        spec = self._inspected.store.spec
        is_text = spec.modality == "text" and not spec.is_raw
        return token_texts(self._inspected.store) if is_text else None

    def label(self, latent: int) -> Label | None:
        """A reader's name, else an explanation, else the automatic label."""
        automatic = label_of(self.scores.meanings[latent])
        return self.described.label(latent) or (
            None if automatic is None else Label(automatic, "automatic")
        )

    def check(self, latent: int) -> None:
        """Raise DataError for a latent that the model does not have, or that never fires."""
        check_number(latent, len(self.index))
        check_fired(latent, int(self.active[latent]), self.rows)

    def of_entries(self, what: str) -> Index:
        """The index, for a question that takes every activation. Raises DataError for a dense
        code."""
        if self.index.dense:
            raise DataError(
                f"{what} asks where latents are active; the code of {self._inspected.name} is"
                " dense, and has a value everywhere",
                f"{opt('text')}, {opt('image')} or {opt('near')}",
            )
        return self.index

    @property
    def active(self) -> np.ndarray:
        return self.index.active

    @property
    def max(self) -> np.ndarray:
        return self.index.max

    @property
    def density(self) -> np.ndarray:
        return self.index.density

    def largest(self, latent: int) -> float:
        """The value of largest size, with its sign."""
        return float(self.index.largest[latent])

    def strongest(self, latent: int, top: int) -> list[tuple[int, float]]:
        """(row, value) of the strongest rows, of different documents first."""
        return strongest(self.index, self._inspected.store, latent, top)

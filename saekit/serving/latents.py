"""What is known about the latents of a dictionary, from the index of a store: their largest
activations, densities, automatic labels and examples, and what people or programs said of them in
files beside the checkpoint. Every figure is the library's own (`saekit.features`,
`saekit.inspect`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from saekit.errors import DataError, SaekitError
from saekit.inspection.described import Described, label_of
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.records import feature_records
from saekit.inspection.show import Thumbnails
from saekit.serving.orders import Orders
from saekit.serving.wording import fault
from saekit.serving.worth import worth_reading

EXAMPLES = 8


@dataclass(frozen=True)
class Scanned:
    """The dictionary on a store, and what is known of all its latents there."""

    inspected: InspectedModel
    known: Known

    @property
    def pair(self) -> tuple[InspectedModel, Known]:
        return self.inspected, self.known


class KnownLatents:
    """`inspected` and `known` are None without a store: then `maxima`, if any, is all there is."""

    def __init__(
        self,
        latents: int,
        maxima: torch.Tensor | None,
        inspected: InspectedModel | None = None,
        known: Known | None = None,
        paged: frozenset[int] = frozenset(),
    ) -> None:
        """`paged`: those that the page of `inspect` has."""
        self.count, self.maxima, self.paged = latents, maxima, paged
        self._inspected, self._known = inspected, known
        self._scores = scores = None if known is None else known.scores
        self.orders = Orders(maxima, scores, None if known is None else known.active)
        self._described = described = Described() if known is None else known.described
        # in lower case per latent, for the search: what was said of it, and its automatic label
        self._said = [_said(described, j).casefold() for j in range(latents)]
        self._words = [
            "" if scores is None or (m := scores.meanings[j]) is None else m.text.strip().casefold()
            for j in range(latents)
        ]
        self._worth: list[int] = []
        if known is not None and scores is not None:
            self._worth = worth_reading(known.index, scores, self._directions_FD)

    @property
    def scanned(self) -> Scanned | None:
        """None without a store."""
        if self._inspected is None or self._known is None:
            return None
        return Scanned(self._inspected, self._known)

    @property
    def labels(self) -> list[str]:
        """Those of the data, where there is an index to ask about them."""
        index = None if self._known is None else self._known.index
        return [] if index is None else index.origin.labels

    @property
    def rows(self) -> int | None:
        """Rows of the store."""
        return None if self._known is None else self._known.rows

    @property
    def images(self) -> dict[str, bytes]:
        """Thumbnails of the examples that were asked for, by key."""
        made: Thumbnails | None = vars(self).get("_thumbnails")
        return {} if made is None else made.images

    def brief(self, latent: int) -> dict[str, Any]:
        """What a list says about a latent: a FeatureRow without the tokens of its examples, and its
        automatic label, which is not its `label` where it has a name or an explanation."""
        known, scores = self._known, self._scores
        dense = self._inspected is not None and self._inspected.model.active_above is None
        maximum = None if self.maxima is None else float(self.maxima[latent])
        automatic = label_of(None if scores is None else scores.meanings[latent])
        label = None if known is None else known.label(latent)
        return {
            "index": latent,
            "max": maximum,
            "density": None if known is None or dense else float(known.density[latent]),
            "label": None if label is None else label.text,
            "automatic": automatic,
            "score": None if scores is None else scores.of(latent),
            "page": latent in self.paged,
        }

    def search(self, words: str, most: int) -> dict[str, Any]:
        """The latent of a number; those whose name, note, explanation or, after these, automatic
        label has this text; without one those that are worth reading first. {"found": [brief],
        "of": how many there are}."""
        words = words.strip().lstrip("#")
        if words.isascii() and words.isdigit() and len(words) < 12:
            found = [int(words)] if int(words) < self.count else []
        else:
            found = self._by_label(words.casefold())
        return {"found": [self.brief(j) for j in found[:most]], "of": len(found)}

    def _by_label(self, words: str) -> list[int]:
        if self._scores is None or not words:
            return self._worth
        order = self._scores.order().tolist()
        said = [j for j in range(self.count) if words in self._said[j]]
        return said + [j for j in order if words in self._words[j] and words not in self._said[j]]

    def check(self, latent: int) -> None:
        """Raise DataError for a latent that the dictionary does not have."""
        if not 0 <= latent < self.count:
            raise DataError(
                f"latent {latent}: this dictionary has {self.count:,} (0 to {self.count - 1:,})"
            )

    def record(self, latent: int) -> dict[str, Any]:
        """A FeatureRecord with its strongest examples and its nearest decoder rows, as JSON, with
        `brief` and `own_note`, which a reader wrote, beside it. `note` says why there are no
        examples. Raises DataError for a latent that the dictionary does not have."""
        self.check(latent)
        about = {
            "brief": self.brief(latent),
            "own_note": self._described.notes.get(latent),
            "record": None,
            "note": None,
        }
        if self._known is None:
            return about | {"note": "examples come from a store, and none was given"}
        if self._known.active[latent] == 0:
            return about | {"note": f"it never fired in the {self._known.rows:,} rows of the store"}
        try:
            return about | {"record": self._record(latent)}
        except SaekitError as error:  # such as images that are no longer where they were
            return about | {"note": f"its examples cannot be shown: {fault(error)}"}

    def _record(self, latent: int) -> dict[str, Any]:
        inspected, known, scores = self._inspected, self._known, self._scores
        assert inspected is not None and known is not None and scores is not None
        thumbnails = self._thumbnails if self._has_images else None
        (record,) = feature_records(
            inspected.model, inspected.store, known.index, torch.tensor([latent]), EXAMPLES,
            thumbnails, self._directions_FD, beyond_top=False,
        )  # fmt: skip
        record.score = scores.of(latent)
        meaning = scores.meanings[latent]
        record.meaning = None if meaning is None else asdict(meaning)
        return record.to_json()

    @property
    def _has_images(self) -> bool:
        return self._inspected is not None and self._inspected.store.spec.modality == "image"

    @cached_property
    def _thumbnails(self) -> Thumbnails:
        assert self._inspected is not None
        return Thumbnails(self._inspected.store)

    @cached_property
    def _directions_FD(self) -> torch.Tensor | None:
        assert self._inspected is not None
        from saekit.store.stack import StackedStore

        if isinstance(self._inspected.store, StackedStore):
            return self._inspected.even_directions()
        return self._inspected.directions()


def _said(described: Described, latent: int) -> str:
    """All that people or programs said of a latent, one text a line."""
    texts = (described.names.get(latent), described.notes.get(latent))
    return "\n".join([t for t in texts if t] + described.explanations.get(latent, []))

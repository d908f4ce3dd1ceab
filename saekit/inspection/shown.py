"""One latent for a notebook or a prompt: the verb `show`. Its record is that of the page of
`inspect`, drawn without a script and without a server (saekit.inspection.card)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from saekit.display import brief, pandas
from saekit.errors import UsageError, opt
from saekit.harvesting.sources import Data
from saekit.indexing.shown import KEPT_TOP
from saekit.inspection.card import card
from saekit.inspection.gather import gather
from saekit.inspection.known import check_fired, check_number
from saekit.inspection.opening import open_pair
from saekit.store.opening import RowsLike
from saekit.training.checkpoints import ModelLike, short_name
from saekit.types import FeatureRecord, Progress


@dataclass(frozen=True, repr=False)
class Feature:
    """One latent of a dictionary: `record` has the figures, a notebook shows the card."""

    record: FeatureRecord
    """All that the page of `inspect` says about it."""
    checkpoint: str
    rows: int
    """Rows of the store."""
    images: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files of the images of its examples, by `Example.image`."""
    notes: tuple[str, ...] = ()
    """Sentences about what was not computed."""

    def to_pandas(self) -> Any:
        """A DataFrame of its examples: group (top or interval), interval, act, text (the window of
        its tokens), token, label, source, doc_id, example_id, position. Raises MissingError
        without pandas."""
        rows = []
        for example in self.record.examples:
            names = ("group", "interval", "act")
            where = ("label", "source", "doc_id", "example_id", "position")
            tokens = example.tokens
            text = None if tokens is None else "".join(tokens)
            token = None if tokens is None else tokens[example.centre or 0]
            rows.append(
                {name: getattr(example, name) for name in names}
                | {"text": text, "token": token}
                | {name: getattr(example, name) for name in where}
            )
        return pandas().DataFrame(rows)

    def __repr__(self) -> str:
        record = self.record
        meaning = record.meaning
        values = {
            "density": record.density,
            "max": record.max,
            "label": None if meaning is None else meaning["text"],
            "score": record.score,
            "examples": len(record.examples),
        }
        return brief(self, values, str(record.index))

    def _repr_html_(self) -> str:
        """The card: one piece of HTML with its style and its images in it."""
        return card(self.record, self.checkpoint, self.rows, self.images, self.notes)


def show(
    checkpoint: ModelLike,
    latent: int,
    store: RowsLike,
    *,
    top: int = 10,
    any_store: bool = False,
    live: nn.Module | None = None,
    data: Data | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Feature:
    """One latent as the page of `inspect` draws it, in a cell of a notebook; at a prompt its
    figures in one line.

        saekit.show("runs/sae", 123, store="acts/text")

    Parameters
        checkpoint: what `saekit.load` takes. Only a folder of saekit's own keeps the index of
            the store for the next time.
        latent: its number.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list.
        top: strongest examples, at most 40.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        live, data: the model and the texts or images themselves, for a store that was harvested
            from objects in memory.

    Raises UsageError, DataError (also for a latent that never fires), MissingError.
    """
    if not 1 <= top <= KEPT_TOP:
        raise UsageError(f"{opt('top', top)} must be between 1 and {KEPT_TOP}")
    inspected = open_pair(checkpoint, store, any_store)
    check_number(latent, inspected.model.latents)
    gathered = gather(inspected, str(latent), top, live, data, progress)
    check_fired(latent, int(gathered.index.active[latent]), gathered.index.rows)
    (record,) = gathered.records
    images = {} if gathered.thumbnails is None else gathered.thumbnails.images
    shown = {e.image: images[e.image] for e in record.examples if e.image is not None}
    name = short_name(inspected.name)
    return Feature(record, name, gathered.index.rows, shown, tuple(gathered.notes))

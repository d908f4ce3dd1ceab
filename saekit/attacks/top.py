"""The real pictures on which a latent is strongest: what a picture from noise is shown beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.attacks.target import AttackedDictionary
from saekit.errors import DataError, MissingError, UsageError, message_of
from saekit.inspection.scan import cached_scan
from saekit.intervention.contexts import own_data
from saekit.intervention.subject import open_store_of
from saekit.types import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5


def top_pictures(
    dictionary: AttackedDictionary,
    store: str | Path | None,
    latent: int,
    progress: Callable[[Progress], None],
) -> list[tuple[str, float, Image]]:
    """(name, activation, picture), the strongest first, each picture once.

    Without `store` that of the training is read; where there is none, the list is empty and
    `progress` is told why. Raises the errors of an explicit store.
    """
    checkpoint = dictionary.checkpoint
    if checkpoint is None or "published" in checkpoint.config:
        if store is not None:
            raise UsageError(
                f"{dictionary.name} has no store of its training", "drop it: the page needs none"
            )
        return []
    try:
        opened = open_store_of(checkpoint, store)
        data = own_data(opened)
    except (DataError, MissingError, UsageError) as error:
        if store is not None:
            raise
        text = f"the page has no real pictures: {message_of(error)}"
        progress(Progress("visualize", 0, 1, message=text))
        return []
    scan = cached_scan(dictionary.model, checkpoint.path, opened, progress)
    found: dict[str, tuple[str, float, Image]] = {}
    for row, value in zip(scan.top.row[latent].tolist(), scan.top.value[latent].tolist()):
        if row < 0 or len(found) == SHOWN:
            break
        example, _ = opened.example_at(row)
        if example.ref not in found:
            found[example.ref] = (example.ref, value, data.image(example.ref))
    return list(found.values())

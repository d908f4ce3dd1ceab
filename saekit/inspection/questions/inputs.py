"""What the questions about a text and about an image share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from saekit.errors import DataError, opt
from saekit.harvesting.anatomy import untouched
from saekit.inspection.known import check_number
from saekit.inspection.on_input import OnInput, of_input, on_input
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer, Asked
from saekit.inspection.search import Ranking


def on_inputs(
    asked: Asked, modality: str, inputs: Sequence[tuple[str | None, str | Path | None]]
) -> list[OnInput]:
    """What the latents do on each input (text, image). Raises DataError for a store of another
    modality."""
    inspected = asked.inspected
    _check_modality(inspected, modality)
    if asked.follow is not None:
        check_number(asked.follow, inspected.model.latents)
    with nullcontext() if asked.live is None else untouched(asked.live, hooks=False):
        return [
            on_input(inspected, text, image, asked.live, asked.processor, asked.follow)
            for text, image in inputs
        ]


def of_one(asked: Asked, read: Sequence[OnInput]) -> Answer:
    """Latents by the first input, beside the second where there is one; or the one latent that is
    followed."""
    first, *second = read
    if asked.follow is not None:
        order = np.array([asked.follow], np.int64)
        return Answer(Ranking(order, first.largest.numpy()), first, named=True)
    above = asked.inspected.model.active_above or 0.0
    return Answer(of_input(first, second[0] if second else None, asked.by, above), first)


def _check_modality(inspected: InspectedModel, modality: str) -> None:
    if modality != inspected.store.spec.modality:
        kinds = {"text": "texts", "image": "images"}
        trained_on = kinds.get(inspected.store.spec.modality, "raw data")
        raise DataError(
            f"{inspected.name} was trained on {trained_on}, not on {kinds[modality]}",
            f"give {opt(inspected.store.spec.modality)}",
        )

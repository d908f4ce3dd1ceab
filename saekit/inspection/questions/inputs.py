"""What the questions about a text and about an image share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from saekit.errors import DataError, opt
from saekit.harvesting.anatomy import untouched
from saekit.harvesting.named_pictures import PictureLike
from saekit.inspection.known import Known, check_number
from saekit.inspection.on_input import OnInput, of_input, on_input
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer, Asked
from saekit.inspection.search import Ranking, trust_in_maximum

ORDERS = ("share", "max", "mean")
MANY = 3  # latents on the first token of a text before that is said


def on_inputs(
    asked: Asked, modality: str, inputs: Sequence[tuple[str | None, PictureLike | None]]
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
    weight_F = share_weights(asked.known) if asked.by == "share" else None
    ranking = of_input(first, second[0] if second else None, asked.by, above, weight_F)
    return Answer(ranking, first)


def share_weights(known: Known) -> np.ndarray:
    """(F,): what a size on an input is multiplied by for the order `share`: 1 over the latent's
    maximum on the store, times `trust_in_maximum`; 0 for a latent that never fires there."""
    sizes = known.max.astype(np.float64)
    of_max = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return of_max * trust_in_maximum(known.active)


def on_first_token(answer: Answer, latents: Sequence[int], not_bos: bool) -> str:
    """What to say where all latents have their largest value on the first token of a text, as those
    of attention sinks do; '' elsewhere."""
    read = answer.read
    if read is None or answer.named or not_bos or not read.places[0].token_ids:
        return ""
    first: dict[int, int] = {}
    for place in read.places:
        first[place.context] = min(place.position, first.get(place.context, place.position))
    largest = [read.places[int(read.place[j])] for j in latents]
    if len(latents) < MANY or any(at.position != first[at.context] for at in largest):
        return ""
    if len(read.places) <= len(first):  # there is no other token
        return ""
    return (
        "all of these are largest on the first token, where many models have a state of its own"
        f" (an attention sink): {opt('not_bos', True)} drops latents that mostly fire there"
    )


def _check_modality(inspected: InspectedModel, modality: str) -> None:
    if modality != inspected.store.spec.modality:
        kinds = {"text": "texts", "image": "images"}
        trained_on = kinds.get(inspected.store.spec.modality, "raw data")
        raise DataError(
            f"{inspected.name} was trained on {trained_on}, not on {kinds[modality]}",
            f"give {opt(inspected.store.spec.modality)}",
        )

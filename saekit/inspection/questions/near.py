"""Latents that are near another, by their weights or by what they do."""

from __future__ import annotations

import torch

from saekit.errors import DataError, opt
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking, descending
from saekit.store.stack import StackedStore


def near_latent(inspected: InspectedModel, known: Known, latent: int, by: str) -> Ranking:
    """Other latents by the cosine of their decoder or encoder rows, or of their activations on all
    rows of the store. Raises DataError where there are none."""
    alive = known.active > 0
    others = alive.copy()
    others[latent] = False
    if by == "coactivation":
        index = known.of_entries(f"{opt('near', latent)} with {opt('by', by)}")
        found = index.coactivation(latent)
        assert found.cosine is not None
        figures = {
            "cosine": found.cosine,
            "jaccard": found.jaccard,
            "pmi": found.pmi,
            "together": found.together,
        }
        return Ranking(descending(found.cosine, others & (found.together > 0)), None, figures)
    stacked = isinstance(inspected.store, StackedStore)
    if by == "decoder":
        rows_FD = inspected.even_directions() if stacked else inspected.directions()
    else:
        rows_FD = getattr(inspected.model, "W_enc", None)
    if rows_FD is None:
        raise DataError(f"{inspected.name} has no {by} row per latent", opt("by", "coactivation"))
    with torch.no_grad():
        unit_FD = torch.nn.functional.normalize(rows_FD.detach().float(), dim=1)
        cosine = (unit_FD @ unit_FD[latent]).double().numpy()
    return Ranking(descending(cosine, others), None, {"cosine": cosine})


def _answer(asked: Asked) -> Answer:
    asked.known.check(asked.value)
    return Answer(near_latent(asked.inspected, asked.known, asked.value, asked.by))


NEAR = Question(
    _answer,
    ("decoder", "encoder", "coactivation"),
    "no other latent fires (for coactivation: on the same rows)",
)

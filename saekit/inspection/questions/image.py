"""Latents that an image activates."""

from __future__ import annotations

from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.questions.inputs import of_one, on_inputs


def _answer(asked: Asked) -> Answer:
    return of_one(asked, on_inputs(asked, "image", [(None, asked.value)]))


IMAGE = Question(_answer, ("max", "mean"), "no latent is active on the image")

"""Latents that a text activates, or activates more than another text."""

from __future__ import annotations

from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.questions.inputs import of_one, on_inputs


def _answer(asked: Asked) -> Answer:
    texts = [asked.value] if asked.versus is None else [asked.value, asked.versus]
    return of_one(asked, on_inputs(asked, "text", [(text, None) for text in texts]))


TEXT = Question(
    _answer,
    ("max", "mean"),
    "no latent is active on the text, or more than on the other",
)

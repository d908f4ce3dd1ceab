"""No question: all latents, for an order that needs none."""

from __future__ import annotations

import numpy as np

from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking


def _answer(asked: Asked) -> Answer:
    return Answer(Ranking(np.arange(asked.inspected.model.latents)))


EVERY = Question(_answer)

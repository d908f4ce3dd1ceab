"""Latents by number."""

from __future__ import annotations

import numpy as np

from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking


def _answer(asked: Asked) -> Answer:
    """Raises DataError for a number that the model does not have, and for a dead latent."""
    numbers = (asked.value,) if isinstance(asked.value, int) else tuple(asked.value)
    for latent in numbers:
        asked.known.check(latent)
    return Answer(Ranking(np.array(numbers, np.int64)), named=True)


INDEX = Question(_answer)

"""The latents that the page lists before anything is asked: the order of the page of `inspect`."""

from __future__ import annotations

from collections import Counter

import torch

from saekit.indexing.reader import Index
from saekit.inspection.gallery import gallery
from saekit.inspection.score import Scores


def worth_reading(index: Index, scores: Scores, directions_FD: torch.Tensor | None) -> list[int]:
    """All latents with a score: first those of its gallery, each meaning once and near-duplicates
    folded, then as its list orders them. [] where no latent has one."""
    order = scores.order().tolist()
    if not order:
        return []
    shown = [card.index for card in gallery(order, index, scores, directions_FD)]
    return list(dict.fromkeys(shown + _varied(order, scores)))


def _varied(order: list[int], scores: Scores) -> list[int]:
    """By the score over the latent's place among those with its automatic label: of a hundred that
    fire on flags, the second counts half. `order`: by the score."""
    places: Counter[str] = Counter()
    varied: dict[int, float] = {}
    for latent in order:
        varied[latent] = float(scores.score[latent])
        if (meaning := scores.meanings[latent]) is not None:
            word = meaning.text.strip().casefold()
            places[word] += 1
            varied[latent] /= places[word]
    return sorted(order, key=lambda latent: -varied[latent])

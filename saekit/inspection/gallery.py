"""The features that a page opens with: the best scored, each only once.

Two latents are near-duplicates where the cosine of their decoder rows is at least SAME_DIRECTION,
or where the Jaccard index of their strongest rows (rows of both over rows of either; one per
context or image) is at least SAME_ROWS. A near-duplicate of a better scored feature is folded into
it. A feature with the same automatic label as a better one is left to the list, so that ten
features have ten meanings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from saekit.indexing.reader import Index
from saekit.inspection.meanings import LABEL, NAME
from saekit.inspection.score import Meaning, Scores

SHOWN = 10
SAME_DIRECTION = 0.8
SAME_ROWS = 0.5
CANDIDATES = 2000  # of the best; a gallery is full long before, unless all have one meaning


@dataclass
class Shown:
    """A feature of the gallery, and the near-duplicates folded into it."""

    index: int
    twins: list[int] = field(default_factory=list)


def gallery(
    latents: Sequence[int], index: Index, scores: Scores, directions_FD: torch.Tensor | None
) -> list[Shown]:
    """Of the latents that have a page: at most SHOWN, best first. Without scores, those of the
    largest size."""
    shown: list[Shown] = []
    seen: set[tuple[str, str]] = set()
    for j in _in_order(latents, index, scores)[:CANDIDATES]:
        twin = next((s for s in shown if _near(s.index, j, index, directions_FD)), None)
        if twin is not None:
            twin.twins.append(j)
        elif len(shown) < SHOWN and (meaning := _word(scores.meanings[j])) not in seen:
            shown.append(Shown(j))
            if meaning is not None:
                seen.add(meaning)
    return shown


def _in_order(latents: Sequence[int], index: Index, scores: Scores) -> list[int]:
    def order(j: int) -> tuple[float, float, int]:
        score = scores.of(j)
        return (1.0 if score is None else -score, -float(index.max[j]), j)

    fires = sorted((j for j in latents if index.active[j] > 0), key=order)
    # a score of 0 says that there is nothing to read
    return [j for j in fires if scores.of(j)] or fires


def _word(meaning: Meaning | None) -> tuple[str, str] | None:
    if meaning is None:
        return None
    # a label and a word of names mean the same
    return (LABEL if meaning.kind == NAME else meaning.kind, meaning.text.strip().casefold())


def _near(a: int, b: int, index: Index, directions_FD: torch.Tensor | None) -> bool:
    rows_a, rows_b = (set(index.shown.top.of(j)[0]) for j in (a, b))
    if len(rows_a & rows_b) >= SAME_ROWS * len(rows_a | rows_b) > 0:
        return True
    if directions_FD is None:
        return False
    return bool(torch.cosine_similarity(directions_FD[a], directions_FD[b], 0) >= SAME_DIRECTION)

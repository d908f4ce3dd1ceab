"""The features that a page opens with: the best scored, each only once.

Two latents are near-duplicates where the cosine of their decoder rows is at least SAME_DIRECTION,
or where the Jaccard index of their strongest rows (rows of both over rows of either; one per
context or image) is at least SAME_ROWS. A near-duplicate of a better scored feature is folded into
it. One that means the same as a better one, or shows the same pictures, is left to the list, so
that ten features have ten meanings:

- the same automatic label;
- labels that begin alike, up to a hyphen (face-smiling and face-hand);
- labels and names that mostly stand for the same images: of the rarer one's images at least half
  have the other too (country-flag, flag);
- pictures of one document, such as an emoji in two skin tones, among the FIRST strongest of both.

Where that leaves fewer than SHOWN, those with another label follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from saekit.indexing.reader import Index
from saekit.inspection.meanings import LABEL, NAME
from saekit.inspection.score import Meaning, Scores

SHOWN = 10
SAME_DIRECTION = 0.8
SAME_ROWS = 0.5
SAME_IMAGES = 0.5
FIRST = 4  # of the strongest pictures; a card has as many
CANDIDATES = 2000  # of the best; a gallery is full long before, unless all have one meaning


@dataclass
class Shown:
    """A feature of the gallery, and the near-duplicates folded into it."""

    index: int
    twins: list[int] = field(default_factory=list)


def gallery(
    latents: Sequence[int], index: Index, scores: Scores, directions_FD: torch.Tensor | None
) -> list[Shown]:
    """Of the latents that have a page: at most SHOWN, best first, those with a label before those
    without. Without scores, those of the largest size."""
    shown: list[Shown] = []
    told = _Told(index, scores)
    order = _in_order(latents, index, scores)[:CANDIDATES]
    labelled = [scores.meanings[j] is not None for j in order]
    for first in (True, False):
        later: list[int] = []
        for j in (j for j, has_label in zip(order, labelled) if has_label == first):
            twin = next((s for s in shown if _near(s.index, j, index, directions_FD)), None)
            if twin is not None:
                twin.twins.append(j)
            elif len(shown) < SHOWN and told.is_new(j):
                shown.append(Shown(j))
                told.add(j)
            else:
                later.append(j)
        # data with few labels: not only one of each
        for j in later:
            if len(shown) < SHOWN and told.has_new_word(j):
                shown.append(Shown(j))
                told.add(j)
    return shown


class _Told:
    """What the features shown so far mean, and which pictures they show."""

    def __init__(self, index: Index, scores: Scores) -> None:
        self._index, self._scores = index, scores
        self._seen: set[tuple[str, str]] = set()
        self._groups: set[str] = set()
        self._images: list[set[int]] = []
        self._images_of: dict[str, set[int]] = {}  # by label; of many images it takes time
        self._pictures: set[int] = set()

    def add(self, j: int) -> None:
        if (word := _word(self._scores.meanings[j])) is not None:
            self._seen.add(word)
        self._groups |= {group for group in [self._group(j)] if group}
        self._images += [images for images in [self._of_label(j)] if images]
        self._pictures |= self._first_pictures(j)

    def has_new_word(self, j: int) -> bool:
        return _word(self._scores.meanings[j]) not in self._seen

    def is_new(self, j: int) -> bool:
        if not self.has_new_word(j) or self._first_pictures(j) & self._pictures:
            return False
        if (own := self._of_label(j)) is None:
            return True
        if self._group(j) in self._groups:
            return False
        overlaps = (len(own & others) / min(len(own), len(others)) for others in self._images)
        return max(overlaps, default=0.0) < SAME_IMAGES

    def _of_label(self, j: int) -> set[int] | None:
        """The images (contexts) that have its label or name."""
        meaning, words = self._scores.meanings[j], self._scores.words
        if words is None or meaning is None or meaning.kind not in (LABEL, NAME):
            return None
        if meaning.text not in self._images_of:
            self._images_of[meaning.text] = set(words.images_with(meaning.text).tolist())
        return self._images_of[meaning.text] or None

    def _group(self, j: int) -> str:
        """How its label begins, up to a hyphen; ''."""
        meaning = self._scores.meanings[j]
        return meaning.text.split("-")[0] if meaning and meaning.kind == LABEL else ""

    def _first_pictures(self, j: int) -> set[int]:
        """Documents of the pictures on its card; none of texts, of which each has many contexts."""
        words = self._scores.words
        if words is None or not words.of_images:
            return set()
        rows = np.array(self._index.shown.top.of(j)[0], np.int64)
        documents = words.documents(rows).tolist()
        return set(list(dict.fromkeys(documents))[:FIRST])


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

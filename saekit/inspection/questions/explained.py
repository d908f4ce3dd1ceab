"""Latents by words: of a reader's names and notes, of explanations, of automatic labels, and of the
tokens (for images, labels and words of names) of their strongest rows.

Okapi BM25 (Robertson and Zaragoza 2009) with a weight for each field, as in BM25F: a word counts by
the weight of the fields that it is in, and rare words count more. Words are compared without case,
and without a plural s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from saekit.errors import DataError, UsageError, did_you_mean, opt
from saekit.inspection.known import Known
from saekit.inspection.meanings import LABEL, NAME, NONE
from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking, descending

K1, B = 1.2, 0.75
WORD = re.compile(r"[^\W_]+")
NAMES, EXPLANATIONS, NOTES, AUTOMATIC = 4.0, 4.0, 2.0, 3.0
# of a word of all strongest rows: on them, or the token after them
OF_ROWS = {"token": 2.0, LABEL: 2.0, NAME: 2.0, "next": 1.0}
TOP_ROWS = 20


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: `Keywords` is `keyword`, `class` stays."""
    words = WORD.findall(text.casefold())
    return [w[:-1] if len(w) > 3 and w[-1] == "s" and w[-2] != "s" else w for w in words]


def of_explanation(known: Known, text: str) -> Ranking:
    """Latents by how well these words describe them. Raises UsageError for a text without words,
    DataError where no latent has any of them."""
    asked = list(dict.fromkeys(words_of(text)))
    if not asked:
        raise UsageError(
            f"{opt('explained', text)} has no words", opt("explained", "python keywords")
        )
    fields = _Fields(len(known.index), asked)
    # what people and programs said
    said = known.described
    fields.add_texts(said.names.items(), NAMES)
    fields.add_texts(said.notes.items(), NOTES)
    for latent, texts in said.explanations.items():
        fields.add_texts([(latent, " ".join(texts))], EXPLANATIONS)
    # what their rows have in common
    labels = enumerate(known.scores.meanings)
    fields.add_texts(((j, m.text) for j, m in labels if m is not None), AUTOMATIC)
    if not known.index.dense:
        _add_rows(fields, known)
    match, found = fields.scores()
    if not found.any():
        near = did_you_mean(asked[0], fields.known)
        raise DataError(
            f"no latent is described by {opt('explained', text)}",
            f"{near}{opt('token')} finds latents by any token",
        )
    figures = {"match": match, "words": found.astype(float)}
    return Ranking(descending(match, found > 0), None, figures)


def _add_rows(fields: _Fields, known: Known) -> None:
    """The words of the strongest rows: each counts by its share of TOP_ROWS rows, so that a word of
    a latent that is active in two rows counts little."""
    alive = np.flatnonzero(known.active > 0)
    rows_AN, _ = known.index.shown.top.padded(alive, TOP_ROWS)
    meanings = known.meanings
    for kind, words_NW in meanings(rows_AN.ravel()).items():
        if kind not in OF_ROWS:
            continue
        word, latent = words_NW.ravel(), np.repeat(alive, TOP_ROWS * words_NW.shape[1])
        some = word != NONE
        fields.add_words(latent[some], word[some], OF_ROWS[kind] / TOP_ROWS, meanings.text)


class _Fields:
    """Of every latent (F,): how much each asked word counts, and all words together."""

    def __init__(self, latents: int, asked: list[str]) -> None:
        self._asked = {word: number for number, word in enumerate(asked)}
        self._count_QF = np.zeros((len(asked), latents))
        self._length_F = np.zeros(latents)
        self.known: set[str] = set()
        """All words."""

    def add_texts(self, texts: Iterable[tuple[int, str]], weight: float) -> None:
        for latent, text in texts:
            words = words_of(text)
            self.known.update(words)
            self._length_F[latent] += weight * len(words)
            for word in words:
                if word in self._asked:
                    self._count_QF[self._asked[word], latent] += weight

    def add_words(
        self, latent: np.ndarray, word: np.ndarray, weight: float, text: Callable[[int], str]
    ) -> None:
        """For each entry (n,) text(word) is counted for the latent with this weight."""
        unique, place = np.unique(word, return_inverse=True)
        terms = [words_of(text(number)) for number in unique.tolist()]
        self.known.update(*terms)
        latents = len(self._length_F)
        sizes = np.array([len(each) for each in terms], float)[place]
        self._length_F += np.bincount(latent, weight * sizes, latents)
        for asked, number in self._asked.items():
            times = np.array([each.count(asked) for each in terms], float)[place]
            self._count_QF[number] += np.bincount(latent, weight * times, latents)

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """(BM25 (F,), how many of the asked words each latent has (F,))."""
        with_words = max(int((self._length_F > 0).sum()), 1)
        mean = self._length_F.sum() / with_words or 1.0
        has_QF = self._count_QF > 0
        has_Q = has_QF.sum(1)
        idf_Q = np.log(1 + (with_words - has_Q + 0.5) / (has_Q + 0.5))
        norm_F = K1 * (1 - B + B * self._length_F / mean)
        saturated_QF = self._count_QF * (K1 + 1) / (self._count_QF + norm_F)
        return idf_Q @ saturated_QF, has_QF.sum(0)


def _answer(asked: Asked) -> Answer:
    return Answer(of_explanation(asked.known, asked.value))


EXPLAINED = Question(_answer)

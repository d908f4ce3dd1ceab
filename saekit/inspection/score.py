"""Which latents are worth reading first, from the index and the words of its rows.

    score = coherence x specificity x rarity x evidence, each between 0 and 1

coherence: of the rows that show a latent (the strongest, and a sample of each fifth of its range)
    the share s that have one word in common, against the share s0 of the same rows when the words
    of all latents are shuffled (the largest of four shuffles): (s - s0) / (1 - s0). The strongest
    rows count one half, the fifths the other half, each fifth the same. A word is the token at the
    row, the token after or before it, the label of its document or image, or any word of its
    image's name ("red heart #2"); the kind with the largest coherence x specificity counts.
specificity: 1 for a word that is at most 0.1 % of the store's tokens, falling to 0 for one that is
    10 % or more, in proportion to the logarithm. Labels and names: 1 where at most 1 % of the
    images (contexts) have it, 0 where all do.
rarity: 1 for densities from 0.01 % to 1 %, falling to 0 over a factor of ten on either side; of
    patches from 0.1 %, since a part of a picture covers several.
evidence: documents among the strongest rows over 10, at most 1.

The best of several kinds is taken, so a latent without any meaning may have a coherence above 0:
docs/explorer.md has figures. A word is a coarse meaning: a latent for a topic that no label names
scores low.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from saekit.indexing.histogram import BANDS
from saekit.indexing.reader import Index
from saekit.indexing.shown import KEPT_SAMPLE
from saekit.inspection.meanings import NONE, TOKEN_KINDS, Meanings

TOP_ROWS = 20
ROWS_EACH_BAND = 5
DENSITIES, DENSITIES_OF_PATCHES = (1e-4, 1e-2), (1e-3, 1e-2)
# the share of all tokens, or of all images (contexts), at which specificity begins to fall, and
# where it is 0
COMMON, COMMON_LABEL = (1e-3, 1e-1), (1e-2, 1.0)
DOCUMENTS = 10
SHUFFLES = 4
# coherence and rows from which the common word is a latent's automatic label: of random rows fewer
# than one in a thousand are named
NAMED_FROM, NAMED_ROWS = 0.25, 8


@dataclass(frozen=True)
class Meaning:
    """The commonest word among the rows that show a latent: in `count` of `of` rows, `lift` times
    as often as in all tokens, or in all images (contexts)."""

    kind: str  # token | next | previous | label | name
    text: str
    count: int
    of: int
    coherence: float
    lift: float | None = None


@dataclass(frozen=True)
class Scores:
    """`score` (F,) fp32, NaN where it does not apply: latents that never fire, dense codes, data
    without words. `meanings` has one for each latent whose rows have a word in common; `words` are
    those of the store."""

    score: torch.Tensor
    meanings: list[Meaning | None]
    words: Meanings | None = None

    def of(self, latent: int) -> float | None:
        value = float(self.score[latent])
        return None if np.isnan(value) else value

    def order(self) -> torch.Tensor:
        """Latents with a score, best first."""
        known = (~self.score.isnan()).nonzero()[:, 0]
        return known[torch.argsort(self.score[known], descending=True, stable=True)]

    def varied(self) -> torch.Tensor:
        """(F,) fp32: the score over the latent's place among those with the same word, or with
        none, the order in which the page lists them: of a hundred that fire on flags, the second
        counts half."""
        varied, places = self.score.clone(), Counter[str | None]()
        for latent in self.order().tolist():
            meaning = self.meanings[latent]
            word = None if meaning is None else meaning.text.strip().lower()
            places[word] += 1
            varied[latent] /= places[word]
        return varied


def no_scores(latents: int) -> Scores:
    return Scores(torch.full((latents,), torch.nan), [None] * latents)


def score_latents(index: Index, meanings: Meanings) -> Scores:
    """The score of every latent. The same index gives the same scores."""
    scores = no_scores(len(index))
    score_F, found = scores.score, scores.meanings
    alive = np.flatnonzero(index.active > 0)
    if index.dense or not meanings.kinds or not len(alive):
        return scores
    rows_AN, weight_AN = shown_rows(index, alive)
    words = {kind: w.reshape(*rows_AN.shape, -1) for kind, w in meanings(rows_AN.ravel()).items()}
    best = _best_kind(words, weight_AN, meanings)
    usual = DENSITIES_OF_PATCHES if meanings.of_patches else DENSITIES
    rarity_A = _falling(index.density[alive], *usual)
    evidence_A = _evidence(meanings, rows_AN[:, :TOP_ROWS])
    score_A = best.coherence * best.specificity * rarity_A * evidence_A
    score_F[alive] = torch.from_numpy(score_A).float()
    shown_A = (rows_AN >= 0).sum(1)
    named_A = (best.coherence >= NAMED_FROM) & (shown_A >= NAMED_ROWS)
    for place in np.flatnonzero(named_A).tolist():
        found[int(alive[place])] = Meaning(
            meanings.kinds[best.kind[place]],
            meanings.text(int(best.word[place])),
            int(best.count[place]),
            int(shown_A[place]),
            float(best.coherence[place]),
            float(best.count[place] / shown_A[place] / best.share[place]),
        )
    return Scores(score_F, found, meanings)


def shown_rows(index: Index, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows (A,N) int64 with -1 where there are fewer, weights (A,N) that sum to 1): the TOP_ROWS
    strongest, then at most ROWS_EACH_BAND of the sample in each fifth of the range. A page shows
    such rows too, but fewer of one document."""
    top_AT, _ = index.shown.top.padded(latents, TOP_ROWS)
    sample_AS, value_AS = index.shown.sample.padded(latents, KEPT_SAMPLE)
    largest_A = np.maximum(index.max[latents], np.finfo(np.float32).tiny)
    share_AS = np.abs(value_AS) / largest_A[:, None]
    band_AS = np.minimum((share_AS * BANDS).astype(np.int64), BANDS - 1)
    fresh_AS = (sample_AS >= 0) & ~(sample_AS[:, :, None] == top_AT[:, None, :]).any(2)
    in_band_ASB = fresh_AS[:, :, None] & (band_AS[:, :, None] == np.arange(BANDS))
    in_band_ASB &= in_band_ASB.cumsum(1) <= ROWS_EACH_BAND
    taken_AS = in_band_ASB.any(2)
    # one half for the strongest rows, one half for the fifths that have rows
    in_band_AB = in_band_ASB.sum(1)
    each_AB = 1 / np.maximum(in_band_AB, 1) / np.maximum((in_band_AB > 0).sum(1), 1)[:, None]
    quantile_AS = np.where(taken_AS, np.take_along_axis(each_AB, band_AS, 1), 0.0)
    top_weight_AT = (top_AT >= 0) / np.maximum((top_AT >= 0).sum(1), 1)[:, None]
    first = np.argsort(~taken_AS, axis=1, kind="stable")[:, : BANDS * ROWS_EACH_BAND]
    rows_AS = np.where(taken_AS, sample_AS, -1)
    picked = [np.take_along_axis(values, first, 1) for values in (rows_AS, quantile_AS)]
    weight_AN = np.concatenate([top_weight_AT, picked[1]], 1)
    weight_AN /= weight_AN.sum(1, keepdims=True)
    return np.concatenate([top_AT, picked[0]], 1), weight_AN.astype(np.float32)


@dataclass
class _Best:
    """Of each latent (A,): the kind with the largest coherence x specificity."""

    coherence: np.ndarray
    specificity: np.ndarray
    share: np.ndarray
    """Of all tokens, or of all images (contexts): those with the word."""
    kind: np.ndarray
    word: np.ndarray
    count: np.ndarray


def _best_kind(words: dict[str, np.ndarray], weight_AN: np.ndarray, meanings: Meanings) -> _Best:
    rng = np.random.default_rng(0)
    filled = np.flatnonzero(weight_AN > 0)
    columns = []
    for number, (kind, word_ANW) in enumerate(words.items()):
        word_ANW = np.where(weight_AN[:, :, None] > 0, word_ANW, NONE)
        share_A, word_A, count_A = _commonest(word_ANW, weight_AN)
        # the same with the words of all latents shuffled
        chance_A = np.zeros(len(share_A))
        for _ in range(SHUFFLES):
            shuffled_ANW = word_ANW.copy()
            of_rows = shuffled_ANW.reshape(-1, word_ANW.shape[2])
            of_rows[filled] = rng.permutation(of_rows[filled])
            chance_A = np.maximum(chance_A, _commonest(shuffled_ANW, weight_AN)[0])
        coherence_A = np.clip((share_A - chance_A) / np.maximum(1 - chance_A, 1e-9), 0, 1)
        low, high = COMMON if kind in TOKEN_KINDS else COMMON_LABEL
        of_all_A = meanings.shares(kind, word_A)
        specificity_A = _falling(of_all_A, 0.0, low, np.log10(high / low))
        kind_A = np.full(len(word_A), number)
        columns.append((coherence_A, specificity_A, of_all_A, kind_A, word_A, count_A))
    value_KA = np.stack([coherence * specificity for coherence, specificity, *_ in columns])
    best_A = value_KA.argmax(0)  # the first of equal ones
    at = np.arange(len(best_A))
    return _Best(*(np.stack(column)[best_A, at] for column in zip(*columns)))


def _commonest(
    word_ANW: np.ndarray, weight_AN: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(largest weight that rows with one word have together, that word, its number of rows)."""
    word = word_ANW.reshape(len(word_ANW), -1)
    weight = np.repeat(weight_AN, word_ANW.shape[2], 1)
    order = np.argsort(word, axis=1, kind="stable")
    word = np.take_along_axis(word, order, 1)
    # of the runs of equal words: where each ends, what all up to there have together
    ends = np.ones(word.shape, bool)
    ends[:, :-1] = word[:, 1:] != word[:, :-1]
    total = np.take_along_axis(weight, order, 1).cumsum(1, dtype=np.float64)
    number = np.broadcast_to(np.arange(1, word.shape[1] + 1), word.shape)
    share, count = (_of_runs(sums, ends) for sums in (total, number))
    share = np.where(ends & (word != NONE), share, 0)
    best = share.argmax(1)[:, None]
    share_A, word_A, count_A = (
        np.take_along_axis(values, best, 1)[:, 0] for values in (share, word, count)
    )
    return share_A, word_A, count_A


def _of_runs(sums: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Running sums (A,N) -> at the end of each run the sum of its own entries."""
    before = np.zeros_like(sums)
    before[:, 1:] = np.maximum.accumulate(np.where(ends, sums, 0), axis=1)[:, :-1]
    return sums - before


def _falling(value: np.ndarray, low: float, high: float, decades: float = 1.0) -> np.ndarray:
    """1 between low and high, falling to 0 over so many factors of ten on either side. `low` may
    be 0."""
    exponent = np.log10(np.maximum(value, 1e-30))
    above = exponent - np.log10(high)
    below = np.log10(low) - exponent if low > 0 else above
    return np.clip(1 - np.maximum(above, below) / decades, 0, 1)


def _evidence(meanings: Meanings, top_AT: np.ndarray) -> np.ndarray:
    documents_AT = np.where(
        top_AT < 0, NONE, meanings.documents(top_AT.ravel()).reshape(top_AT.shape)
    )
    documents_AT.sort(axis=1)
    new_AT = np.diff(documents_AT, axis=1, prepend=NONE) != 0
    return np.minimum((new_AT & (documents_AT != NONE)).sum(1) / DOCUMENTS, 1.0)

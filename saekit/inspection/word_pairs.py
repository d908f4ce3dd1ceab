"""Which words latents are active on: of every pair of a latent and a word (a token, a label, a word
of an image's name) the number of places, counted in an index, and the pairs worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import entr

from saekit.indexing.association import information
from saekit.indexing.reader import Index

NONE = -1  # no word
PIECE = 1 << 22  # entries in memory together


@dataclass(frozen=True)
class WordTable:
    """N pairs of a latent and a word. Places are rows, or examples (images, contexts)."""

    words: Sequence[str]
    total_W: np.ndarray
    """(W,) int64: places of each word."""
    places: int
    active_F: np.ndarray
    """(F,) int64: places in which each latent is active."""
    latent_N: np.ndarray
    word_N: np.ndarray
    """Ascending, and of one word the latents."""
    both_N: np.ndarray
    """Places of the word in which the latent is active."""

    def to_json(self) -> dict[str, Any]:
        """{"places", "active": one per latent; of each word "words", "total": its places, "pairs":
        how many it has; of each pair, word after word, "latent": its distance from the one before,
        and "both"}. Columns of small numbers are packed to half of what pairs take. Words without a
        pair are left out."""
        pairs_W = np.bincount(self.word_N, minlength=len(self.words))
        kept = np.flatnonzero(pairs_W)
        begin = np.flatnonzero(np.diff(self.word_N, prepend=-1))
        step_N = np.diff(self.latent_N, prepend=0)
        step_N[begin] = self.latent_N[begin]
        return {
            "places": self.places,
            "active": self.active_F.tolist(),
            "words": [self.words[word] for word in kept.tolist()],
            "total": self.total_W[kept].tolist(),
            "pairs": pairs_W[kept].tolist(),
            "latent": step_N.tolist(),
            "both": self.both_N.tolist(),
        }


def word_table(
    index: Index,
    words: Sequence[str],
    word_PC: np.ndarray,
    of: Literal["rows", "examples"],
    first: int,
    best: int,
) -> WordTable:
    """The pairs of which the word is among the `first` of its latent, or the latent among the
    `best` of its word.

    Best: by mutual information (saekit.indexing.association), of latents that are active there
    more often than elsewhere, so these are the first that `features` gives for the word. First of a
    latent: of rows the commonest words, of examples those that share most information with it,
    since nearly every latent has the commonest label. `word_PC` (places, C) int32: the words of
    each place, NONE where there are fewer; no place has a word twice.
    """
    latent_N, word_N, both_N, active_F = _counted(index, len(words), word_PC, of)
    total_W = np.bincount(word_PC[word_PC != NONE], minlength=len(words))
    active_N, total_N, places = active_F[latent_N], total_W[word_N], len(word_PC)
    told_N = information(both_N, active_N, total_N, places)
    more_N = both_N * float(places) > active_N * total_N.astype(np.float64)
    of_word_N = _rank(word_N, told_N)
    share_N = total_N / places
    nats_N = told_N * entr([share_N, 1 - share_N]).sum(0)  # not over the entropy of the word
    by = (both_N, nats_N) if of == "rows" else (nats_N,)
    kept_N = more_N & (of_word_N < best)
    kept_N |= (_rank(latent_N, *by) < first) & (more_N | (of == "rows"))
    kept = np.flatnonzero(kept_N)
    kept = kept[np.lexsort((latent_N[kept], word_N[kept]))]
    return WordTable(words, total_W, places, active_F, latent_N[kept], word_N[kept], both_N[kept])


def _counted(
    index: Index, words: int, word_PC: np.ndarray, of: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """latent, word and both (N,) of all pairs, by latent and word, and active (F,)."""
    active_F = np.zeros(len(index), np.int64)
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for a, b, row, _, latent in index.blocks(PIECE):
        place = row.astype(np.int64)
        if of == "examples":  # each once, however many of its rows are active
            place = index.origin.example[place]
            new = np.ones(len(place), bool)
            new[1:] = (latent[1:] != latent[:-1]) | (place[1:] != place[:-1])
            latent, place = latent[new], place[new]
        active_F[a:b] = np.bincount(latent, minlength=b - a)
        word_EC = word_PC[place]
        key = ((latent + a).astype(np.int64)[:, None] * words + word_EC)[word_EC != NONE]
        found, each = np.unique(key, return_counts=True)
        keys.append(found)
        counts.append(each)
    latent_N, word_N = np.divmod(np.concatenate(keys), max(words, 1))
    return latent_N, word_N, np.concatenate(counts), active_F


def _rank(group_N: np.ndarray, *values_N: np.ndarray) -> np.ndarray:
    """(N,): the place of each pair within its group, the largest values first; of equal ones, the
    earlier pair."""
    order = np.lexsort((*(-values for values in reversed(values_N)), group_N))
    group = group_N[order]
    begin = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(begin, len(group)))
    rank_N = np.empty(len(group), np.int64)
    rank_N[order] = np.arange(len(group)) - np.repeat(begin, sizes)
    return rank_N

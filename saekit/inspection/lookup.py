"""What a page knows of all latents, also of those whose examples it does not have: the tokens and
labels that they are active on, and the nearest decoder rows. The search box asks it.

    OUT/lookup/000.js   tokens (saekit.inspection.word_pairs); of text
    OUT/lookup/001.js   labels of the data, and words of images' names
    OUT/lookup/002.js   of latents without a page: the nearest decoder rows

Each is loaded when a question or a latent needs it. They are bounded: a latent keeps its first
tokens and labels, a token or label its best latents.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from saekit.indexing.reader import Index
from saekit.inspection.beyond_top import TOKENS
from saekit.inspection.meanings import Meanings
from saekit.inspection.relate import decoder_neighbours
from saekit.inspection.site import pack
from saekit.inspection.word_pairs import NONE, WordTable, word_table

LABELS, NAMES = 6, 3  # that a latent keeps, besides as many tokens as its page lists
BEST, BEST_OF_LABEL = 20, 50  # latents that a token or a name keeps, and a label
MOST_OF_LATENTS = 1_000_000  # tokens that all latents keep together: 3 of 262,144
NEAREST = 5
NEAREST_WORK = 6e11  # multiplications and additions; 18,432 rows of 576 take 4e11, 5.6 s of CPU
THOUSANDTHS = 1000  # cosines are whole numbers


@dataclass(frozen=True)
class Lookup:
    """Tables of words and nearest rows; None where the data or the model have none, or where
    nearest rows take too long."""

    tokens: WordTable | None
    labels: WordTable | None
    names: WordTable | None
    near: dict[int, list[dict[str, float]]] | None
    first_tokens: int

    @cached_property
    def files(self) -> dict[int, str]:
        """Number of a file -> its content, packed."""
        files: dict[int, str] = {}
        if self.tokens is not None:
            files[0] = pack(self.tokens.to_json())
        if self.labels is not None or self.names is not None:
            tables = {"labels": self.labels, "names": self.names}
            files[1] = pack({name: table and table.to_json() for name, table in tables.items()})
        if self.near is not None:
            files[2] = pack(_near_json(self.near))
        return files

    @property
    def bytes(self) -> int:
        return sum(map(len, self.files.values()))

    def header(self) -> dict[str, Any]:
        """What the page says about it before it is loaded: which tables there are, and how
        many tokens each latent keeps, and latents each token and label."""
        return {
            "tokens": self.tokens is not None,
            "labels": self.labels is not None or self.names is not None,
            "near": self.near is not None,
            "first": self.first_tokens,
            "best": BEST,
            "best_of_label": BEST_OF_LABEL,
        }


def lookup_of(
    index: Index,
    words: Meanings | None,
    directions_FD: torch.Tensor | None,
    paged: Collection[int],
) -> Lookup | None:
    """Of a sparse code; None of a dense one. `words`: those of the store's rows. `paged`: latents
    whose nearest rows the page has already."""
    if index.dense:
        return None
    first_tokens = max(1, min(TOKENS, MOST_OF_LATENTS // max(len(index), 1)))
    near = None if directions_FD is None else _near(index, directions_FD, paged)
    if words is None:
        return Lookup(None, None, None, near, first_tokens)
    tokens = _tokens(index, words, first_tokens)
    return Lookup(tokens, _labels(index), _names(index, words), near, first_tokens)


def _tokens(index: Index, words: Meanings, first: int) -> WordTable | None:
    """As `features` asks for them: by how they are written, blanks and capitals included."""
    if words.texts is None or not len(index.origin.token):
        return None
    ids, of_row_R = np.unique(index.origin.token, return_inverse=True)
    numbers: dict[str, int] = {}
    of_id = [numbers.setdefault(words.texts.alone(i), len(numbers)) for i in ids.tolist()]
    word_R1 = np.array(of_id, np.int32)[of_row_R.ravel()][:, None]
    return word_table(index, list(numbers), word_R1, "rows", first, BEST)


def _labels(index: Index) -> WordTable | None:
    origin = index.origin
    if not origin.labels:
        return None
    label_E1 = origin.example_label[:, None]
    return word_table(index, origin.labels, label_E1, "examples", LABELS, BEST_OF_LABEL)


def _names(index: Index, words: Meanings) -> WordTable | None:
    name_EW = words.names()
    if name_EW is None or len(name_EW) != len(index.origin.example_first):
        return None
    present, place = np.unique(name_EW[name_EW != NONE], return_inverse=True)
    own_EW = np.full_like(name_EW, NONE)
    own_EW[name_EW != NONE] = place
    texts = [words.text(word) for word in present.tolist()]
    return word_table(index, texts, own_EW, "examples", NAMES, BEST)


def _near(
    index: Index, directions_FD: torch.Tensor, paged: Collection[int]
) -> dict[int, list[dict[str, float]]] | None:
    """The nearest rows of latents that fire and have no page; None where that takes longer than
    NEAREST_WORK."""
    alive = np.flatnonzero(index.active > 0)
    without = np.setdiff1d(alive, np.fromiter(paged, np.int64, len(paged)))
    if 2.0 * len(without) * len(alive) * directions_FD.shape[1] > NEAREST_WORK:
        return None
    rows_AD = directions_FD.detach()[torch.from_numpy(alive)].float()
    places = torch.from_numpy(np.searchsorted(alive, without))
    found = decoder_neighbours(rows_AD, places, torch.ones(len(alive), dtype=torch.bool), NEAREST)
    number = alive.tolist()
    named = [[{**near, "index": number[near["index"]]} for near in each] for each in found]
    return dict(zip(without.tolist(), named))


def _near_json(near: dict[int, list[dict[str, float]]]) -> dict[str, list[int]]:
    """{"latents", "counts", "near", "cosine": in thousandths}, the last two latent after latent."""
    pairs = [each for nearest in near.values() for each in nearest]
    return {
        "latents": list(near),
        "counts": [len(nearest) for nearest in near.values()],
        "near": [int(each["index"]) for each in pairs],
        "cosine": [round(THOUSANDTHS * each["cosine"]) for each in pairs],
    }

"""How often all rows of a latent have the word of its automatic label, beside the rows that gave
the label: those are its strongest and a sample of its range, so they have the word more often."""

from __future__ import annotations

import numpy as np

from saekit.indexing.reader import Index
from saekit.inspection.meanings import TOKEN_KINDS, Meanings
from saekit.inspection.score import Meaning


def word_lift(
    index: Index, words: Meanings, latent: int, meaning: Meaning
) -> dict[str, float] | None:
    """{"count", "of", "lift"}: `count` of all `of` active rows of a latent, or for labels and names
    of all images (contexts) with an active row, have the word of `meaning`, `lift` times the word's
    share of all tokens, or of all images (contexts). None where `meaning` has no lift."""
    if meaning.lift is None:
        return None
    rows = index.activations(latent).rows
    if meaning.kind not in TOKEN_KINDS:
        rows = index.origin.example_first[np.unique(index.origin.examples_of(rows))]
    found_NW = words(rows)[meaning.kind]
    own = [word for word in np.unique(found_NW).tolist() if word >= 0 and _is(words, word, meaning)]
    count = int(np.isin(found_NW, own).any(1).sum())
    of_all = meaning.count / meaning.of / meaning.lift
    return {"count": count, "of": len(rows), "lift": count / len(rows) / of_all}


def _is(words: Meanings, word: int, meaning: Meaning) -> bool:
    return words.text(word) == meaning.text

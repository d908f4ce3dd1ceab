"""A store and a run of which every code is known: latents with planted rows, others of chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_codes import planted

import saekit

CONTEXTS, TOKENS, VOCABULARY, EACH_DOCUMENT = 160, 16, 40, 2
ROWS = CONTEXTS * TOKENS
ON, WEAK, OFTEN, LABEL, PART, BEGIN, DENSE, DEAD = range(8)
NOISE, LATENTS = range(8, 24), 24
WORD = 7


def made_search(folder: Path) -> tuple[Any, ...]:
    """(run, store, z (N,F), word of each row, label of each context): latents with known rows and
    values in eighths, so that sums are exact."""
    rng = np.random.default_rng(0)
    word = rng.integers(0, VOCABULARY, ROWS)
    context = np.arange(ROWS) // TOKENS
    labels = rng.permutation(np.repeat(["cat", "dog", "elk", "fox"], CONTEXTS // 8))
    label = labels[np.arange(CONTEXTS) // EACH_DOCUMENT]
    rows = {
        ON: word == WORD,
        WEAK: (word == WORD) & (rng.random(ROWS) < 0.3),
        OFTEN: (word == WORD) | (rng.random(ROWS) < 0.3),
        LABEL: (label[context] == "cat") & (rng.random(ROWS) < 0.3),
        PART: (label[context] == "cat") & (rng.random(ROWS) < 0.02),
        BEGIN: np.arange(ROWS) % TOKENS == 0,
        DENSE: rng.random(ROWS) < 0.6,
        DEAD: np.zeros(ROWS, bool),
    }
    rows |= {j: rng.random(ROWS) < 0.02 for j in NOISE}
    sizes = rng.integers(1, 80, (ROWS, LATENTS)) / 8
    z = np.stack([np.where(rows[j], sizes[:, j], 0) for j in range(LATENTS)], 1)
    z[:, WEAK] = np.where(rows[WEAK], z[:, ON] / 2, 0)
    found = planted(
        folder,
        torch.from_numpy(z).float(),
        torch.from_numpy(word),
        TOKENS,
        label.tolist(),
        [f"w{n}" for n in range(VOCABULARY)],
        EACH_DOCUMENT,
    )
    saekit.index(found.run, found.store)
    return found.run, found.store, z, word, label

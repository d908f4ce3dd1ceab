"""A tiny language model with decided opinions, a store of its hidden states, and an SAE trained on
it a little."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiny
import torch
from transformers import AutoModelForCausalLM

import saekit
from saekit.embedded.silence import quiet_transformers

CTX, DOCUMENTS = 16, 60
HARVEST = {"ctx": CTX, "batch": 8, "dtype": "float32", "holdout": 0.2}


class Made(NamedTuple):
    model: str
    text: str
    store: Path
    run: Path


def write_words(path: Path, documents: int = DOCUMENTS, seed: int = 0) -> str:
    """A file of `documents` paragraphs of 5 to 30 known words."""
    rng = np.random.default_rng(seed)
    path.write_text(
        "\n\n".join(" ".join(rng.choice(tiny.WORDS, rng.integers(5, 31))) for _ in range(documents))
    )
    return str(path)


def decided_model(family: str, folder: Path) -> str:
    """Logits of a new model are all but equal, whatever the hidden state."""
    model = tiny.save(family, folder)
    with quiet_transformers():
        module = AutoModelForCausalLM.from_pretrained(model)
        with torch.no_grad():
            module.get_output_embeddings().weight.mul_(20)
        module.save_pretrained(model)
    return model


def made_language(folder: Path) -> Made:
    model, text = decided_model("llama", folder / "model"), write_words(folder / "words.txt")
    saekit.harvest(model, text, folder / "store", hook="blocks.1", **HARVEST)
    saekit.train(folder / "store", folder / "run", latents=64, k=4, batch=128, rows=12_800)
    return Made(model, text, folder / "store", folder / "run")

"""Crosscoders on small data: two synthetic stores of different width, and two tiny random language
models that read the same words."""

from __future__ import annotations

from pathlib import Path

import made_stores
import numpy as np
import pytest
import tiny
import torch

import saekit
from saekit.store.reader import Store

SETTINGS = {"k": 4, "expansion": 4, "rows": 40_000, "batch": 256}
WIDE, NARROW = 16, 6


def bent_rows(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """What a later module might make of `make_rows`: fewer values, of several times the size,
    around another mean."""
    x = ORIGINAL(rows, WIDE, seed) - 3.0
    W = torch.randn(WIDE, width, generator=torch.Generator().manual_seed(5))
    return 5 * torch.relu(x @ W) + 2 * (x @ W) - 11.0


ORIGINAL = made_stores.make_rows


def bent_store(path: Path, rows: int = 2000, **spec) -> Path:
    """A store that is row-aligned with `write_store(..., rows)`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_stores, "make_rows", bent_rows)
        return made_stores.write_store(path, rows, **{"width": NARROW, "hook": "blocks.1", **spec})


def made_crosscoder(folder: Path) -> tuple[Path, Path, Path]:
    """(run, the two stores that it was trained on): hooks blocks.0, 16 wide, and blocks.1, 6
    wide."""
    x, y = made_stores.write_store(folder / "x"), bent_store(folder / "y")
    saekit.train(x, folder / "run", stores=(str(y),), **SETTINGS)
    return folder / "run", x, y


def tiny_crosscoder(folder: Path) -> tuple[Path, Path, Path]:
    """The same on a GPT-2 and a Llama of width 32, which share a tokenizer."""
    rng = np.random.default_rng(0)
    words = folder / "words.txt"
    words.write_text(
        "\n\n".join(" ".join(rng.choice(tiny.WORDS, rng.integers(5, 31))) for _ in range(60))
    )
    stores = []
    for family, hook in (("gpt2", "blocks.1"), ("llama", "blocks.2")):
        model = tiny.save(family, folder / family)
        saekit.harvest(
            model,
            str(words),
            folder / f"acts-{family}",
            hook=hook,
            ctx=16,
            batch=4,
            dtype="float32",
        )
        stores.append(folder / f"acts-{family}")
    saekit.train(stores[0], folder / "run", stores=(str(stores[1]),), **SETTINGS)
    return (folder / "run", *stores)


def rows_of(*stores: Path, split: str = "all") -> torch.Tensor:
    """(N,D) fp32: the stores side by side, read one by one."""
    return torch.cat(
        [
            torch.cat([batch.x.float() for batch in Store(path).batches(4096, split=split)])
            for path in stores
        ],
        1,
    )

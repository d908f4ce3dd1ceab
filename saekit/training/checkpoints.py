"""Checkpoint folder -> model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saekit.models.catalog import restore
from saekit.store.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from saekit.types import Autoencoder


def load(path: str | Path) -> Autoencoder:
    """The trained model of a checkpoint folder: a torch module in eval mode, on the CPU, that takes raw activations.

    `model.encode(x_BD)`, `model.decode(code)`, `model(x_BD) -> Output`; SAEs have W_enc (F,D), b_enc (F,), W_dec (F,D), b_dec (D,).
    Raises MissingError when there is nothing at `path`, DataError when it is no finished checkpoint.
    """
    checkpoint = read_checkpoint(path)
    return restore(checkpoint.config["model"], checkpoint.config["config"], checkpoint.tensors)

"""What a run does where the user left it open: rows per step, rows in all, learning rate, weight
decay. Chosen once, stored with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saekit.training.config import TrainConfig

if TYPE_CHECKING:
    from saekit.models.autoencoder import Autoencoder


def resolved(config: TrainConfig, model: Autoencoder, units: int) -> TrainConfig:
    """The config with batch, rows, lr and weight decay filled in; `units` is the number of training
    rows (or whole examples)."""
    recipe = model.recipe(units)
    return dataclasses.replace(
        config,
        batch=config.batch or recipe.batch,
        rows=config.rows or recipe.rows,
        lr=config.lr or recipe.lr,
        weight_decay=recipe.weight_decay if config.weight_decay is None else config.weight_decay,
    )


def memory_normalize(options: Mapping[str, Any]) -> str:
    """Of rows in memory, which may hold anything: the default rates suit values around 0 of size 1,
    except where the model's output is bounded, which gives values in [0, 1]."""
    return "center+scale" if options.get("output", "linear") == "linear" else "none"

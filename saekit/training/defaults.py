"""What a run does where the user left it open: rows a step, rows in all, learning rate, weight decay. Chosen once, stored with the run.

SAEs train on millions of hidden states, classic models also on a few thousand images: their steps are counted in shares of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saekit.models.classic import Recipe
from saekit.models.sae import SAE
from saekit.training.config import TrainConfig

if TYPE_CHECKING:
    from saekit.types import Autoencoder

SAE_BATCH, SAE_EPOCHS = 4096, 8
# The best of a measured grid at these widths (docs/log.md).
PEAK_LR = 3e-3
MEASURED_TOPK, MEASURED_DENSE = 18_432, 2_048
DENSE_SHARE = 0.1  # of the latents active at the start
CLASSIC_EPOCHS, MOST_ROWS = 60, 8_000_000
STEPS_AN_EPOCH = 32


def resolved(config: TrainConfig, model: Autoencoder, units: int) -> TrainConfig:
    """The config with batch, rows, lr and weight decay filled in; `units` is the number of training rows (or whole examples)."""
    if isinstance(model, SAE):
        batch = min(SAE_BATCH, _power_of_two(units / 8))
        rows, lr, decay = SAE_EPOCHS * units, sae_lr(model.latents, dense_start(model)), 0.0
    else:
        batch = min(max(_power_of_two(units / STEPS_AN_EPOCH), 32), SAE_BATCH, units)
        rows = min(CLASSIC_EPOCHS * units, max(MOST_ROWS, SAE_EPOCHS * units))
        recipe = getattr(model, "recipe", Recipe())
        lr, decay = recipe.lr, recipe.weight_decay
    return dataclasses.replace(
        config,
        batch=config.batch or batch,
        rows=config.rows or rows,
        lr=config.lr or lr,
        weight_decay=decay if config.weight_decay is None else config.weight_decay,
    )


def memory_normalize(options: Mapping[str, Any]) -> str:
    """Of rows in memory, which may hold anything: the default rates suit values around 0 of size 1, except where the model's output
    is bounded, which gives values in [0, 1]."""
    return "center+scale" if options.get("output", "linear") == "linear" else "none"


def dense_start(model: SAE) -> bool:
    """Whether most latents move at once in the first steps."""
    return model.variant.dense_start or getattr(model.config, "start_l0", 0) > DENSE_SHARE * model.latents


def sae_lr(latents: int, dense: bool) -> float:
    """Peak rate for Adam: PEAK_LR up to the measured width, lower beyond it, where it is not measured.

    Sparse codes: ~ 1/sqrt(latents), the rule of Gao et al. 2024. Codes that begin dense: ~ 1/latents, since each step of
    Adam moves every entry by the rate, and all latents of a row add up.
    """
    if not dense:
        return PEAK_LR / max(latents / MEASURED_TOPK, 1.0) ** 0.5
    return PEAK_LR / max(latents / MEASURED_DENSE, 1.0)


def _power_of_two(value: float) -> int:
    """The largest one that is not above; at least 1."""
    return 1 << max(int(value).bit_length() - 1, 0)

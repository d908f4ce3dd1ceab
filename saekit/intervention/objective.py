"""The loss of a fine-tune, and one step (Karvonen 2025, arXiv 2503.17272)."""

from __future__ import annotations

import torch

from saekit.models.base import remove_parallel_, unit_rows_
from saekit.models.sae import SAE


def balanced(mse: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
    """(mse + a kl) / 2, where a = mse / kl is a constant: its value is that of mse."""
    return (mse + (mse / (kl + 1e-8)).detach() * kl) / 2


def take_step(sae: SAE, optimizer: torch.optim.Adam) -> None:
    """One step of Adam; unit decoder rows keep their norm. The variant's own hooks do not run: they
    are for what it trains besides weights, which is folded in."""
    unit = sae.config.decoder_norm == "unit"
    if unit:
        assert sae.W_dec.grad is not None
        remove_parallel_(sae.W_dec.grad, sae.W_dec.data)
    optimizer.step()
    if unit:
        unit_rows_(sae.W_dec.data)

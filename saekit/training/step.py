"""One step of a gradient model: the unit that the loop repeats and the benchmark times."""

from __future__ import annotations

import torch

from saekit.types import ActivationBatch, Autoencoder, LossTerms


def apply_gradients(model: Autoencoder, optimizer: torch.optim.Optimizer, terms: LossTerms, clip: float | None = None) -> None:
    """Backward, projection, clipping, optimiser, constraints. Nothing here waits for the device."""
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    model.before_step()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    model.after_step()


def take_step(model: Autoencoder, optimizer: torch.optim.Optimizer, batch: ActivationBatch, step: int) -> LossTerms:
    """Loss and update on one normalised batch."""
    terms = model.loss(batch, step)
    apply_gradients(model, optimizer, terms)
    return terms

"""One step of a gradient model: the unit that the loop repeats and the benchmark times."""

from __future__ import annotations

import torch

from saekit.models.autoencoder import Autoencoder
from saekit.models.sae.fused import Adam
from saekit.training.optim import count_step, moments
from saekit.types import ActivationBatch, LossTerms, Step


def take_step(
    model: Autoencoder,
    optimizer: torch.optim.Adam,
    batch: ActivationBatch,
    step: Step,
    clip: float | None = None,
) -> LossTerms:
    """Loss and update on one normalized batch, fused if the model supports it. Nothing here waits
    for the device.

    A loss that is not finite still changes the parameters: the caller must check it before they are
    saved.
    """
    fuses = clip is None and step.backend == "triton"
    terms = model.fused_step(batch, step, _view(model, optimizer, step.number)) if fuses else None
    if terms is not None:
        count_step(optimizer)
        return terms
    terms = model.loss(batch, step)
    apply_gradients(model, optimizer, terms, clip)
    return terms


def apply_gradients(
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    terms: LossTerms,
    clip: float | None = None,
) -> None:
    """Backward pass, projection, clipping, optimizer, constraints."""
    terms.total.backward()
    model.before_step()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    model.after_step()
    # now, not before the next backward pass, to free the memory of the gradients
    optimizer.zero_grad(set_to_none=True)


def _view(model: torch.nn.Module, optimizer: torch.optim.Adam, step: int) -> Adam:
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    return Adam(group["lr"], beta1, beta2, group["eps"], step, moments(model, optimizer))

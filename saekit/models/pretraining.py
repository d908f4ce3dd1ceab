"""Layer after layer before all together: greedy autoencoders (Bengio et al. 2007) or restricted
Boltzmann machines (Hinton and Salakhutdinov 2006) for any dense stack.

Pretraining is no second loop: a run's steps are divided into stages, and the model's loss is that
of the stage its step is in. So a resume, a schedule of rates and a budget of rows mean the same
with and without it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from saekit.models import outputs
from saekit.models.classic import ACTIVATIONS, CODE_OF_SPARSITY
from saekit.models.noise import step_generator
from saekit.models.rbm import RBM
from saekit.types import LossTerms, Stage, Step

if TYPE_CHECKING:
    from saekit.models.dense import Dense

CHAIN = 1  # rounds of contrastive divergence
SMALL = 0.01  # standard deviation of an RBM's first weights (Hinton 2010, section 8)
RAREST = 1e-3  # a visible unit starts with at least this mean
NOISE, SAMPLES = 0, 1  # streams of random numbers within a step


def layer_stages(layers: int, total: int, share: float) -> list[Stage]:
    """One stage a layer, in `share` of the steps, then the whole model. Short runs may leave layers
    without a step."""
    before = min(round(total * share), total - 1)  # the last step at least is everyone's
    bounds = [round(before * i / layers) for i in range(layers + 1)]
    found = [
        Stage(start, stop, layer)
        for layer, (start, stop) in enumerate(pairwise(bounds))
        if start < stop
    ]
    return [*found, Stage(before, total)]


def layer_loss(model: Dense, x_BD: torch.Tensor, layer: int, step: Step) -> LossTerms:
    """The loss of one layer as an autoencoder, or machine, of what the layers below it make of
    x."""
    with torch.no_grad():
        h = x_BD
        for below in model.layers[:layer]:
            h = model.bend(below.up(h))
    outputs.check_range(model.config.output, x_BD)
    if model.config.pretrain == "rbm":
        v_k_loss, v_k = machine(model, layer).contrastive_divergence(
            h, CHAIN, step_generator(step.seed, step.number, h.device, SAMPLES)
        )
        error = {"layer_error": (v_k - h).square().sum(1).mean()}
        return LossTerms(
            v_k_loss,
            {"contrastive_divergence": v_k_loss.detach()},
            {"contrastive_divergence": 1.0},
            metrics=error,
        )
    mirror = model.layers[layer]
    noisy = model.noise(h, step_generator(step.seed, step.number, h.device, NOISE))
    a = mirror.down(_activation(model, layer)(mirror.up(noisy)))
    loss = (
        outputs.summed_loss(model.config.output, a, h) if layer == 0 else _hidden_loss(model, a, h)
    )
    return LossTerms(loss, {"layer_reconstruction": loss}, {"layer_reconstruction": 1.0})


def _hidden_loss(model: Dense, a: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """A hidden layer is reconstructed through its own activation; a sigmoid's values are
    probabilities."""
    if model.activation == "sigmoid":
        return outputs.summed_loss("bernoulli", a, h)
    return outputs.summed_loss("linear", model.bend(a), h)


def _activation(model: Dense, layer: int):
    last = layer == len(model.layers) - 1
    return ACTIVATIONS[CODE_OF_SPARSITY[model.config.sparsity]] if last else model.bend


def machine(model: Dense, layer: int) -> RBM:
    """A layer as an RBM: binary units where the model has a sigmoid, Gaussian ones where it is
    linear."""
    mirror, last = model.layers[layer], layer == len(model.layers) - 1
    visible = "gaussian" if layer == 0 and model.config.output == "linear" else "bernoulli"
    hidden = "gaussian" if last and model.config.sparsity == "none" else "bernoulli"
    return RBM(mirror.W_up, mirror.b_up, mirror.b_down, visible, hidden)


@torch.no_grad()
def small_weights_(model: Dense, generator: torch.Generator) -> None:
    for mirror in model.layers:
        mirror.W_up.copy_(SMALL * torch.randn(mirror.W_up.shape, generator=generator))


@torch.no_grad()
def enter_layer(model: Dense, stage: Stage, sample: torch.Tensor | None) -> None:
    """The first machine starts from the data's means; behind the last one the stack is unrolled,
    every layer's way down its transpose."""
    if stage.layer == 0 and sample is not None:
        mean = sample.mean(0).to(model.layers[0].b_down.device)
        model.layers[0].b_down.copy_(
            mean if model.config.output == "linear" else mean.clamp(RAREST, 1 - RAREST).logit()
        )
    if stage.layer is None:
        for mirror in model.layers:
            if mirror.W_down is not None:
                mirror.W_down.copy_(mirror.W_up.T)

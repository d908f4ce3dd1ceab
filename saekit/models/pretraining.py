"""One layer at a time before all together: greedy autoencoders (Bengio et al. 2007) or restricted
Boltzmann machines (Hinton and Salakhutdinov 2006) for any dense stack.

Pretraining needs no second loop: the steps of a run are divided into stages, and the model's loss
is that of the current stage. So resume, learning-rate schedule and number of rows mean the same
with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
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
RAREST = 1e-3  # the smallest mean that a visible unit starts with
NOISE, SAMPLES = 0, 1  # streams of random numbers within a step


def layer_stages(layers: int, total: int, share: float) -> list[Stage]:
    """One stage per layer, in `share` of the steps, then the whole model. In short runs some layers
    may have no step."""
    before = min(round(total * share), total - 1)  # at least the last step trains the whole model
    bounds = [round(before * i / layers) for i in range(layers + 1)]
    stages = [
        Stage(start, stop, layer)
        for layer, (start, stop) in enumerate(pairwise(bounds))
        if start < stop
    ]
    return [*stages, Stage(before, total)]


def layer_loss(model: Dense, x_BD: torch.Tensor, layer: int, step: Step) -> LossTerms:
    """The loss of one layer, as an autoencoder or RBM of the output of the layers below it."""
    # the layer's input
    with torch.no_grad():
        h = x_BD
        for below in range(layer):
            h = model.activate(model.mirror(below).up(h))
    outputs.check_range(model.config.output, x_BD)
    # an RBM
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
    # an autoencoder
    mirror = model.mirror(layer)
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
    return outputs.summed_loss("linear", model.activate(a), h)


def _activation(model: Dense, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    last = layer == len(model.layers) - 1
    return ACTIVATIONS[CODE_OF_SPARSITY[model.config.sparsity]] if last else model.activate


def machine(model: Dense, layer: int) -> RBM:
    """A layer as an RBM: binary units where the model has a sigmoid, Gaussian units where it is
    linear."""
    mirror, last = model.mirror(layer), layer == len(model.layers) - 1
    visible = "gaussian" if layer == 0 and model.config.output == "linear" else "bernoulli"
    hidden = "gaussian" if last and model.config.sparsity == "none" else "bernoulli"
    return RBM(mirror.W_up, mirror.b_up, mirror.b_down, visible, hidden)


@torch.no_grad()
def small_weights_(model: Dense, generator: torch.Generator) -> None:
    for layer in range(len(model.layers)):
        mirror = model.mirror(layer)
        mirror.W_up.copy_(SMALL * torch.randn(mirror.W_up.shape, generator=generator))


@torch.no_grad()
def enter_layer(model: Dense, stage: Stage, sample: torch.Tensor | None) -> None:
    """The first RBM starts from the means of the data; after the last one the stack is unrolled:
    every layer's way down becomes the transpose of its way up."""
    if stage.layer == 0 and sample is not None:
        b_down = model.mirror(0).b_down
        mean = sample.mean(0).to(b_down.device)
        is_linear = model.config.output == "linear"
        b_down.copy_(mean if is_linear else mean.clamp(RAREST, 1 - RAREST).logit())
    if stage.layer is None:
        for layer in range(len(model.layers)):
            mirror = model.mirror(layer)
            if mirror.W_down is not None:
                mirror.W_down.copy_(mirror.W_up.T)

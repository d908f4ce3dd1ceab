"""`dense`: an autoencoder of mirrored layers, under- or overcomplete, one layer or a deep stack;
`linear`: the same without hidden layers and activation functions; its optimum is PCA's subspace.

Sizes (D, *hidden, F) on the way up, reversed on the way down; `tied` layers use W^T on the way
down, with a bias of their own. A layer and its mirror image are an autoencoder, which pretraining
makes use of (saekit.models.pretraining).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn.functional import linear

from saekit.errors import UsageError, opt
from saekit.models import penalties
from saekit.models.autoencoder import as_batch
from saekit.models.classic import (
    ACTIVATIONS,
    CODE_OF_SPARSITY,
    Classic,
    ClassicConfig,
    HiddenActivation,
)
from saekit.models.pretraining import enter_layer, layer_loss, layer_stages, small_weights_
from saekit.options import Doc
from saekit.types import FIRST, ActivationBatch, LossTerms, Stage, Step


@dataclass(frozen=True)
class LinearConfig(ClassicConfig):
    tied: Annotated[bool, Doc("The decoder is the encoder's transpose.")] = False
    contractive: Annotated[float, Doc("Weight of the squared norm of the encoder's Jacobian.")] = (
        0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contractive < 0:
            raise UsageError(f"{opt('contractive', self.contractive)} must not be negative")
        if self.tied and self.d_out not in (0, self.d_in):
            raise UsageError(
                f"{opt('tied', True)}: the target's width differs from the input's",
                f"drop {opt('tied')}",
            )


@dataclass(frozen=True)
class DenseConfig(LinearConfig):
    hidden: Annotated[
        tuple[int, ...], Doc("Widths of the layers between input and code, from the input up.")
    ] = (256,)
    activation: Annotated[HiddenActivation, Doc("Activation function of the hidden layers.")] = (
        "gelu"
    )
    pretrain: Annotated[
        Literal["greedy", "rbm"] | None,
        Doc("Pretrain one layer at a time, as autoencoders or restricted Boltzmann machines."),
    ] = None
    pretrain_share: Annotated[
        float, Doc("Share of the steps for pretraining, the same for every layer.")
    ] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if any(width < 1 for width in self.hidden):
            raise UsageError(f"{opt('hidden', self.hidden)}: widths must be at least 1")
        if not 0 < self.pretrain_share < 1:
            raise UsageError(f"{opt('pretrain_share', self.pretrain_share)} must be in (0, 1)")
        if self.pretrain == "rbm" and self.activation != "sigmoid" and self.hidden:
            cause = (
                f"{opt('pretrain', 'rbm')}: the mean of a binary unit is a sigmoid, not"
                f" {self.activation}"
            )
            raise UsageError(cause, opt("activation", "sigmoid"))
        if self.pretrain == "rbm" and self.sparsity == "l1":
            raise UsageError(
                f"{opt('pretrain', 'rbm')}: code units are binary or Gaussian, not rectified",
                opt("sparsity", "kl-sigmoid", "none"),
            )
        if self.pretrain and self.d_out:
            raise UsageError(
                f"{opt('pretrain', self.pretrain)}: layers reconstruct their input, which the"
                " target store is not",
                f"drop {opt('pretrain')}",
            )

    def refuse_shaping(self, model: str, why: str) -> None:
        """For models whose code has a distribution of its own: raise UsageError for options that
        shape the code of a plain autoencoder."""
        for option, given in (
            ("sparsity", self.sparsity != "none"),
            ("contractive", self.contractive),
            ("pretrain", self.pretrain),
        ):
            if given:
                raise UsageError(f"{opt(option)} does not apply to {opt('model', model)}, {why}")


class Mirror(nn.Module):
    """One layer and its mirror image: up (B,in) -> (B,out), down (B,out) -> (B,back), both before
    the activation function. back is in, except in the first layer of a model with a target of
    another width."""

    def __init__(self, d_in: int, d_out: int, tied: bool, d_back: int) -> None:
        super().__init__()
        self.W_up = nn.Parameter(torch.empty(d_out, d_in))
        self.b_up = nn.Parameter(torch.zeros(d_out))
        self.W_down = None if tied else nn.Parameter(torch.empty(d_back, d_out))
        self.b_down = nn.Parameter(torch.zeros(d_back))
        for weight in (self.W_up, self.W_down):
            if weight is not None:
                nn.init.kaiming_normal_(weight)

    def up(self, h: torch.Tensor) -> torch.Tensor:
        return linear(h, self.W_up, self.b_up)

    def down(self, h: torch.Tensor) -> torch.Tensor:
        return linear(h, self.down_weight, self.b_down)

    @property
    def down_weight(self) -> torch.Tensor:
        """(back, out)."""
        return self.W_up.T if self.W_down is None else self.W_down


class Dense(Classic):
    """Hidden layers use `activation`, the code uses the function of its sparsity (linear without
    one)."""

    hidden: tuple[int, ...] = ()
    activation = "linear"

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        if isinstance(config, DenseConfig):
            self.hidden, self.activation = config.hidden, config.activation
            self.strategy = "layerwise" if config.pretrain else "gradient"
        widths, backs = (self.d_in, *self.hidden, self.latents), (self.d_out, *self.hidden)
        self.layers = nn.ModuleList(
            Mirror(a, b, config.tied, c) for a, b, c in zip(widths, widths[1:], backs)
        )
        self.activate = ACTIVATIONS[self.activation]
        self.gain = 2.0 if self.activation in ("relu", "silu", "gelu") else 1.0

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        return self.pre_activations(x)[-1]

    def mirror(self, layer: int) -> Mirror:
        mirror = self.layers[layer]
        assert isinstance(mirror, Mirror)
        return mirror

    def pre_activations(self, x_BD: torch.Tensor) -> list[torch.Tensor]:
        """Of every layer on the way up, the code's last."""
        pre, h = [], x_BD
        for layer in range(len(self.layers)):
            pre.append(self.mirror(layer).up(h))
            h = self.activate(pre[-1])
        return pre

    def from_code(self, z: torch.Tensor) -> torch.Tensor:
        for layer in reversed(range(len(self.layers))):
            z = self.mirror(layer).down(z)
            if layer:
                z = self.activate(z)
        return z

    def leaving_norms(self) -> torch.Tensor:
        return self.mirror(-1).down_weight.norm(dim=0)

    def noisy_code(
        self, noisy: torch.Tensor, clean: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, dict, dict]:
        z, terms, weights = super().noisy_code(noisy, clean, step)
        if self.config.contractive:
            terms["contractive"] = self.contraction(clean)
            weights["contractive"] = self.config.contractive
        return z, terms, weights

    def contraction(self, x_BD: torch.Tensor) -> torch.Tensor:
        """mean_b ||d code / d x||_F^2 at the rows of x, exact."""
        pre = self.pre_activations(x_BD)
        kinds = [self.activation] * len(self.hidden) + [CODE_OF_SPARSITY[self.config.sparsity]]
        slopes = [penalties.SLOPES[kind](a, ACTIVATIONS[kind](a)) for kind, a in zip(kinds, pre)]
        weights = [self.mirror(layer).W_up for layer in range(len(self.layers))]
        return penalties.contractive(slopes, weights)

    @property
    def W_dec(self) -> torch.Tensor | None:
        """(F,D): what each latent adds to a raw row (before the output's sigmoid, if it has one),
        under the name that it has in an SAE; None for a deep decoder, where a latent has no
        direction of its own."""
        return self.mirror(0).down_weight.T / self.output_scale if len(self.layers) == 1 else None

    def numbers_per_row(self) -> int:
        widths = self.d_in + self.d_out + 2 * (2 * sum(self.hidden) + self.latents)
        return widths + (
            self.latents * max(self.hidden, default=0) if self.config.contractive else 0
        )

    # -- pretraining

    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        super().initialise_from(sample, generator)
        if self.strategy == "layerwise" and self.config.pretrain == "rbm":
            small_weights_(self, generator)

    def stages(self, total: int) -> list[Stage]:
        return (
            layer_stages(len(self.layers), total, self.config.pretrain_share)
            if self.strategy == "layerwise"
            else super().stages(total)
        )

    def enter(self, stage: Stage, sample: torch.Tensor | None = None) -> None:
        if self.strategy == "layerwise" and self.config.pretrain == "rbm":
            enter_layer(self, stage, sample)

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        batch, step = as_batch(batch), self.at(step)
        stages = self.stages(max(step.total, step.number + 1))
        layer = next(stage.layer for stage in stages if stage.start <= step.number < stage.stop)
        return (
            super().loss(batch, step) if layer is None else layer_loss(self, batch.x, layer, step)
        )


class Linear(Dense):
    """x_hat = W_dec z + c, z = W_enc x + b: by gradient descent it reaches PCA's subspace, in
    another basis (Baldi and Hornik 1989).

    Each direction is learned at a rate proportional to the variance that it explains: hence the
    high learning rate, and no weight decay, which would tilt the trailing directions.
    """

    lr, weight_decay = 1e-2, 0.0

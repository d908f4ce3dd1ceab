"""`jumprelu`: a trained threshold for each latent (Rajamanoharan et al. 2024, arXiv 2407.14435).

z = pre where pre > theta, else 0. A jump has no useful gradient in theta; the gradient of a window
of width eps around it is used instead (eqs. 11 and 12):
d z / d theta = -(theta / eps) K((pre - theta) / eps) and d [pre > theta] / d theta = -(1 / eps)
K(...), K the rectangle on [-1/2, 1/2]. The window is on the *pre-activation*: on z its lower half
would be empty. theta itself is trained, in fp32 (Adam would move its logarithm in relative steps,
and L0 would not move: SAELens #494), at SPEED times the learning rate, and kept positive.

Penalty: coef (L0 / (aim target_l0) - 1)^2 with the batch's mean L0, or coef L0 without a target.
The reconstruction pulls L0 off the penalty's minimum, so a controller moves `aim`, 1 at first, and
all thresholds by one factor (control.py). `freq_coef` adds sum_j r_j^2 / r_0 of the firing rates
r_j, r_0 = 0.01, which penalizes latents that fire often (the form of llamascopium's tanh-quad).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import nn

from saekit.models.sae import SAE
from saekit.models.sae.config import Revival
from saekit.models.sae.preactivations import Pre, above
from saekit.models.sae.start import level_of, scale_encoder_to_fit
from saekit.models.sparsity.gate import TrainedGate
from saekit.models.sparsity.penalised import PenaltyConfig
from saekit.options import Doc
from saekit.types import Step

RARE = 0.01  # r_0
SPEED = (
    10.0  # thresholds must move by units, weights by hundredths; Adam's steps are the same for both
)


@dataclass(frozen=True)
class JumpReLUConfig(PenaltyConfig):
    sparsity: str = "jumprelu"
    bandwidth: Annotated[
        float,
        Doc("Width of the window through which thresholds learn, in units of normalized input."),
    ] = 0.5
    freq_coef: Annotated[float, Doc("Weight of the penalty on latents that fire often.")] = 0.0

    revive: Revival = "nudge"

    steered = "aim"

    def resolved(self) -> Self:
        # With a target, a tenth too many costs a two-hundredth of the input's variance. Without,
        # each active latent costs coef.
        return replace(
            super().resolved(),
            coef=(self.d_in / 2 if self.target_l0 else 0.2) if self.coef is None else self.coef,
        )


class JumpReLU(TrainedGate):
    sparsity = "jumprelu"
    config_class = JumpReLUConfig
    line = "pre above a threshold of each latent, trained by straight-through windows"
    in_code_units = (*SAE.in_code_units, "slow_theta")
    nudge_share = 0.05
    turns_dead = True

    def make_parameters(self) -> None:
        self.slow_theta = nn.Parameter(torch.zeros(self.latents))

    def start_from(self, sample_BD: torch.Tensor) -> None:
        """One threshold for all, exceeded by `start_l0` latents per row on average; then the
        scale."""
        self.threshold.fill_(level_of(self, sample_BD, self.config.start_l0).clamp_min(0.0))
        scale_encoder_to_fit(self, sample_BD[:4096])
        self.slow_theta.copy_(self.threshold / SPEED)

    def theta(self) -> torch.Tensor:
        """(F,): the thresholds in training."""
        return SPEED * self.slow_theta

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return above(self, x_BD, step, self.theta() - self.config.bandwidth * self.unit / 2)

    def activate(self, pre: Pre) -> torch.Tensor:
        return Jump.apply(pre.values, pre.of(self.theta()), self.config.bandwidth * self.unit)

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        c = self.config
        active = Heaviside.apply(pre.values, pre.of(self.theta()), c.bandwidth * self.unit, False)
        l0 = active.sum() / pre.rows
        if c.target_l0:
            l0 = (l0 / (c.target_l0 * self.control.aim) - 1).square()
        penalties = {"l0": (l0, self.coef(step))}
        if c.freq_coef:
            frequency = (pre.sums(active) / pre.rows).square().sum() / RARE
            penalties["frequency"] = (frequency, c.freq_coef * self.unit**2)
        return penalties

    def firing_level(self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step) -> torch.Tensor:
        return self.theta()[latents]

    def steer(self, factor: float) -> None:
        if factor != 1.0:
            with torch.no_grad():
                self.slow_theta.mul_(factor)
                self.threshold.mul_(factor)

    def constrain(self) -> None:
        if self.is_folded:
            return
        with torch.no_grad():
            self.slow_theta.clamp_min_(0.0)
            self.threshold.copy_(self.theta())

    def reset_latents(self, latents: torch.Tensor) -> None:
        self.slow_theta[latents] = 0.0
        self.threshold[latents] = 0.0


def _window(pre: torch.Tensor, theta: torch.Tensor, eps: float) -> torch.Tensor:
    """K((pre - theta) / eps)."""
    return ((pre - theta).abs() <= eps / 2).to(pre.dtype)


class Jump(torch.autograd.Function):
    """pre where pre > theta, with the gradients of eq. 11; theta in the shape of pre."""

    @staticmethod
    def forward(ctx, pre, theta, eps: float):
        ctx.save_for_backward(pre, theta)
        ctx.eps = eps
        return torch.where(pre <= theta, 0.0, pre)  # NaN passes

    @staticmethod
    def backward(ctx, dz):  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, theta = ctx.saved_tensors
        dtheta = (
            dz * _window(pre, theta, ctx.eps) * (-theta / ctx.eps)
            if ctx.needs_input_grad[1]
            else None
        )
        return dz * (pre > theta), dtheta, None


class Heaviside(torch.autograd.Function):
    """1 where pre > theta, with the gradient of eq. 12 in theta and, if `to_pre`, its negative in
    pre."""

    @staticmethod
    def forward(ctx, pre, theta, eps: float, to_pre: bool):
        ctx.save_for_backward(pre, theta)
        ctx.eps, ctx.to_pre = eps, to_pre
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx, dstep):  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, theta = ctx.saved_tensors
        slope = dstep * _window(pre, theta, ctx.eps) / ctx.eps
        return slope if ctx.to_pre else None, -slope, None, None

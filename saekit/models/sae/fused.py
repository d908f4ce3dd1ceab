"""Gradient and optimiser in one pass over the latents (saekit_kernels.gpu.optim), where the Triton
path runs.

The gradients of encoder and decoder, two thirds of what Adam otherwise moves, never exist. The
result is that of the ordinary step: the same loss, projection, torch.optim.Adam and unit norm. It
does not apply with gradient clipping, which needs the norm of the whole gradient first, nor while
an auxiliary loss adds a second gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from saekit_kernels import AdamSettings, FeatureState, feature_step
from saekit_kernels.operations import OPERATIONS, Encoded

from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE


@dataclass(frozen=True)
class Adam:
    """The optimiser as a fused step needs it: `count` steps done before this one, moments by
    parameter name."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    count: int
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Shadows:
    """bf16 copies of encoder and decoder, which the fused step rewrites. Whoever else writes the
    parameters must clear() them: neither a fused optimiser nor `.data` leaves a trace that could be
    checked."""

    devices: tuple[str, ...] = ("cuda",)  # where they are kept
    copies: dict[str, torch.Tensor] = field(default_factory=dict)

    def of(self, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        if parameter.device.type not in self.devices:
            return None
        if name not in self.copies:
            self.copies[name] = parameter.detach().bfloat16()
        return self.copies[name]

    def clear(self) -> None:
        self.copies.clear()


@torch.no_grad()
def fused_sparse_step(
    sae: SAE, x_BD: torch.Tensor, encoded: Encoded, coef: float, adam: Adam
) -> LossTerms:
    """One step from codes: ReLU or TopK, with the penalty coef * mean_b sum_j z_bj ||w_j||. Changes
    the parameters and moments."""
    operations, codes, B = OPERATIONS["triton"], encoded.codes, len(x_BD)
    W_dec_low = sae.shadows.of("W_dec", sae.W_dec)
    unit = sae.config.decoder_norm == "unit"
    penalty_F = coef * torch.linalg.vector_norm(sae.W_dec, dim=1) if coef else None
    decoded = operations.decode_mse(
        codes, sae.W_dec if W_dec_low is None else W_dec_low, sae.b_dec, x_BD, True, penalty_F
    )
    moments = [tensor for name in ("W_enc", "b_enc", "W_dec") for tensor in adam.moments[name]]
    parameters = [p.data for p in (sae.W_enc, sae.b_enc, sae.W_dec)]
    state = FeatureState(
        *parameters, *moments, W_enc_low=sae.shadows.of("W_enc", sae.W_enc), W_dec_low=W_dec_low
    )
    norm_penalty = 0.0 if unit else coef / B
    settings = AdamSettings(
        adam.lr, adam.beta1, adam.beta2, adam.eps, adam.count + 1, unit, norm_penalty
    )
    feature_step(state, codes, decoded.dvals_BK, x_BD, decoded.g_BD, settings, "triton")
    _adam_on_vector(sae.b_dec.data, decoded.g_BD.sum(0), *adam.moments["b_dec"], adam)
    reconstruction = decoded.loss_B.mean()
    terms, weights, total = (
        {"reconstruction": reconstruction},
        {"reconstruction": 1.0},
        reconstruction,
    )
    if penalty_F is not None:
        terms["l1"], weights["l1"] = decoded.l1_B.mean() / coef, coef
        total = total + coef * terms["l1"]
    return LossTerms(
        total,
        terms,
        weights,
        codes.transpose().counts(),
        encoder_metrics(encoded.redone, encoded.lost),
    )


def encoder_metrics(
    redone: torch.Tensor | None, lost: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in (("redone_rows", redone), ("lost_rows", lost))
        if value is not None
    }


def _adam_on_vector(
    p: torch.Tensor, grad: torch.Tensor, m: torch.Tensor, v: torch.Tensor, adam: Adam
) -> None:
    t = adam.count + 1
    m.lerp_(grad, 1 - adam.beta1)
    v.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    p.addcdiv_(
        m, (v / (1 - adam.beta2**t)).sqrt_().add_(adam.eps), value=-adam.lr / (1 - adam.beta1**t)
    )

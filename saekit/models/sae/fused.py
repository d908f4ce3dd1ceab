"""Gradient and optimizer in one pass over the latents (saekit_kernels.gpu.optim), on the Triton
path.

The gradients of encoder and decoder, two thirds of what Adam otherwise reads and writes, are never
stored. The result is that of the ordinary step: the same loss, projection, torch.optim.Adam and
unit norm. It does not apply with gradient clipping, which needs the norm of the whole gradient
first, nor while an auxiliary loss adds a second gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from saekit_kernels import AdamSettings, FeatureState, feature_step
from saekit_kernels.operations import Encoded, low

from saekit.models.sae.losses import loss_terms
from saekit.models.sae.preactivations import encoder_metrics
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE


@dataclass(frozen=True)
class Adam:
    """The optimizer as a fused step needs it: `count` steps were done before this one, moments are
    by parameter name."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    count: int
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Shadows:
    """bf16 copies of encoder and decoder, which the fused step rewrites. Any other code that writes
    the parameters must clear() them: neither a fused optimizer nor `.data` leaves a trace that
    could be checked."""

    devices: tuple[str, ...] = ("cuda",)
    """The types of device that have copies."""
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
    parameters and moments."""
    from saekit_kernels.gpu.decode import decode_gradients

    codes, B, x_low = encoded.codes, len(x_BD), low(x_BD)
    assert codes is not None
    # Reconstruct, and differentiate in x_hat and the code.
    W_dec_low = sae.shadows.of("W_dec", sae.W_dec)
    unit = sae.config.decoder_norm == "unit"
    penalty_F = coef * torch.linalg.vector_norm(sae.W_dec, dim=1) if coef else None
    W_dec = sae.W_dec if W_dec_low is None else W_dec_low
    decoded = decode_gradients(codes, W_dec, sae.b_dec, x_BD, x_low.dtype, penalty_F)
    assert decoded.g_BD is not None and decoded.dvals_BK is not None
    # Gradient, Adam and unit norm of encoder and decoder, latent by latent; then b_dec.
    moments = [tensor for name in ("W_enc", "b_enc", "W_dec") for tensor in adam.moments[name]]
    parameters = [p.data for p in (sae.W_enc, sae.b_enc, sae.W_dec)]
    state = FeatureState(
        *parameters, *moments, W_enc_low=sae.shadows.of("W_enc", sae.W_enc), W_dec_low=W_dec_low
    )
    norm_penalty = 0.0 if unit else coef / B
    settings = AdamSettings(
        adam.lr, adam.beta1, adam.beta2, adam.eps, adam.count + 1, unit, norm_penalty
    )
    feature_step(state, codes, decoded.dvals_BK, x_low, decoded.g_BD, settings, "triton")
    db_dec = decoded.g_BD.sum(0, dtype=torch.float32)
    _adam_on_vector(sae.b_dec.data, db_dec, *adam.moments["b_dec"], adam)
    # What the step reports.
    weighted = {"reconstruction": (decoded.loss_B.mean(), 1.0)}
    if decoded.l1_B is not None:
        weighted["l1"] = (decoded.l1_B.mean() / coef, coef)
    return loss_terms(weighted, codes.transpose().counts(), encoder_metrics(encoded))


def _adam_on_vector(
    p: torch.Tensor, grad: torch.Tensor, m: torch.Tensor, v: torch.Tensor, adam: Adam
) -> None:
    t = adam.count + 1
    m.lerp_(grad, 1 - adam.beta1)
    v.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    p.addcdiv_(
        m, (v / (1 - adam.beta2**t)).sqrt_().add_(adam.eps), value=-adam.lr / (1 - adam.beta1**t)
    )

"""`gated`: which latents are active and how strong they are, by two encoders that share their directions (Rajamanoharan et al. 2024,
arXiv 2404.16014).

gate = x W_enc^T + b_enc, magnitude = exp(r) (gate - b_enc) + b_mag, z = magnitude where gate > 0 (and magnitude > 0). The L1 penalty lies
on ReLU(gate) ||w||, and so does not shrink z; ReLU(gate) learns by a reconstruction of its own through a decoder held constant (eq. 8).

A trained model is saved as the JumpReLU that it is equal to (appendix E): gate > 0 says that the magnitude is above b_mag - exp(r) b_enc,
so W_enc, b_enc become exp(r) W_enc, b_mag, with that as `threshold`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from saekit.models.sparsity.base import Variant, squared_error
from saekit.models.sparsity.penalised import PenaltyConfig
from saekit.models.sparsity.preactivations import Pre, above
from saekit.models.sparsity.start import level_of, scale_encoder_to_fit

if TYPE_CHECKING:
    from saekit.models.sae import SAE


class Gated(Variant):
    config = PenaltyConfig
    line = "a gate by one encoder, magnitudes by its rescaled twin"
    thresholded = True

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        sae.b_enc -= level_of(sae, sample_BD, sae.config.start_l0)
        scale_encoder_to_fit(sae, sample_BD[:4096])  # the threshold is 0 yet: ReLU(gate)
        sae.r_mag = nn.Parameter(torch.zeros_like(sae.b_enc))
        sae.b_mag = nn.Parameter(sae.b_enc.detach().clone())

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return above(sae, x_BD)

    def activate(self, sae: SAE, pre: Pre) -> torch.Tensor:
        magnitude = pre.of(sae.r_mag.exp()) * (pre.values - pre.of(sae.b_enc)) + pre.of(sae.b_mag)
        return torch.where(pre.values <= 0, 0.0, magnitude).relu()

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        gate = pre.values.relu() if sae.unit == 1.0 else pre.values.relu() / sae.unit
        return {"l1": ((gate * pre.of(sae.decoder_norms().detach())).sum() / pre.rows, sae.coef(step))}

    def reconstruct(self, sae: SAE, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, past_BD: torch.Tensor | None):
        x_hat, error = super().reconstruct(sae, pre, z, target_BD, past_BD)
        by_gate = pre.decode(pre.values.relu(), sae.W_dec.detach(), sae.b_dec.detach())
        by_gate = by_gate if past_BD is None else by_gate + past_BD.detach()
        return x_hat, error + squared_error(target_BD, by_gate)

    def reconstructed(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        pre = self.preactivations(sae, x_BD, 0)
        x_hat = pre.decode(self.activate(sae, pre), sae.W_dec, sae.b_dec)
        return x_hat if sae.W_skip is None else x_hat + sae.past(x_BD)

    def effective(self, sae: SAE) -> dict[str, torch.Tensor]:
        if not hasattr(sae, "r_mag"):
            return super().effective(sae)
        scale = sae.r_mag.detach().exp()
        return {
            "W_enc": sae.W_enc.detach() * scale[:, None],
            "b_enc": sae.b_mag.detach(),
            "W_dec": sae.W_dec.detach(),
            "b_dec": sae.b_dec.detach(),
            "threshold": (sae.b_mag - scale * sae.b_enc).detach().clamp_min(0.0),
        }

    def revive(self, sae: SAE, dead: torch.Tensor) -> None:
        sae.r_mag[dead] = 0.0
        sae.b_mag[dead] = sae.b_enc[dead]

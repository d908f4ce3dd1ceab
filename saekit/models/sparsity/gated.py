"""`gated`: two encoders with the same directions decide which latents are active, and how strongly
(Rajamanoharan et al. 2024, arXiv 2404.16014).

gate = x W_enc^T + b_enc, magnitude = exp(r) (gate - b_enc) + b_mag, z = magnitude where gate > 0
(and magnitude > 0). The L1 penalty is on ReLU(gate) ||w||, and so does not shrink z; ReLU(gate) is
trained by a second reconstruction, through a constant copy of the decoder (eq. 8).

A trained model is saved as the JumpReLU that it equals (appendix E): gate > 0 means that the
magnitude is above b_mag - exp(r) b_enc, so W_enc, b_enc become exp(r) W_enc, b_mag, with that as
`threshold`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from saekit.models.sae import SAE
from saekit.models.sae.config import Revival
from saekit.models.sae.losses import squared_error
from saekit.models.sae.preactivations import Pre, above
from saekit.models.sae.start import level_of, scale_encoder_to_fit
from saekit.models.sparsity.gate import TrainedGate
from saekit.models.sparsity.penalised import PenaltyConfig
from saekit.types import Step


@dataclass(frozen=True)
class GatedConfig(PenaltyConfig):
    sparsity: str = "gated"
    revive: Revival = "nudge"


class Gated(TrainedGate):
    sparsity = "gated"
    config_class = GatedConfig
    line = "a gate by one encoder, magnitudes by its rescaled twin"
    in_code_units = (*SAE.in_code_units, "b_mag")

    def make_parameters(self) -> None:
        self.r_mag = nn.Parameter(torch.zeros(self.latents))
        self.b_mag = nn.Parameter(torch.zeros(self.latents))

    def start_from(self, sample_BD: torch.Tensor) -> None:
        self.b_enc.sub_(level_of(self, sample_BD, self.config.start_l0))
        scale_encoder_to_fit(self, sample_BD[:4096])
        self.r_mag.zero_()
        self.b_mag.copy_(self.b_enc)

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return above(self, x_BD, step)

    def activate(self, pre: Pre) -> torch.Tensor:
        magnitude = pre.of(self.r_mag.exp()) * (pre.values - pre.of(self.b_enc)) + pre.of(
            self.b_mag
        )
        return torch.where(pre.values <= 0, 0.0, magnitude).relu()

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        gate = pre.values.relu() if self.unit == 1.0 else pre.values.relu() / self.unit
        return {
            "l1": ((gate * pre.of(self.decoder_norms().detach())).sum() / pre.rows, self.coef(step))
        }

    def reconstruct(
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, skip_BD: torch.Tensor | None
    ):
        x_hat, error = super().reconstruct(pre, z, target_BD, skip_BD)
        by_gate = pre.decode(pre.values.relu(), self.W_dec.detach(), self.b_dec.detach())
        by_gate = by_gate if skip_BD is None else by_gate + skip_BD.detach()
        return x_hat, error + squared_error(target_BD, by_gate)

    def effective(self) -> dict[str, torch.Tensor]:
        if self.is_folded:
            return super().effective()
        scale = self.r_mag.detach().exp()
        return {
            "W_enc": self.W_enc.detach() * scale[:, None],
            "b_enc": self.b_mag.detach(),
            "W_dec": self.W_dec.detach(),
            "b_dec": self.b_dec.detach(),
            "threshold": (self.b_mag - scale * self.b_enc).detach().clamp_min(0.0),
        }

    def firing_level(self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step) -> torch.Tensor:
        """Of the gate: where it is positive, and the magnitude too."""
        scale = self.r_mag[latents].exp()
        return (self.b_enc[latents] - self.b_mag[latents] / scale).clamp_min(0.0)

    def biases_moved(self, latents: torch.Tensor, change: torch.Tensor) -> None:
        """The magnitude follows the gate."""
        self.b_mag.index_add_(0, latents, self.r_mag[latents].exp() * change)

    def reset_latents(self, latents: torch.Tensor) -> None:
        self.r_mag[latents] = 0.0
        self.b_mag[latents] = self.b_enc[latents]

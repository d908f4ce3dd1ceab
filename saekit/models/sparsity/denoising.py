"""Any variant with noise on what is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.models import penalties
from saekit.models.noise import step_generator
from saekit.models.sparsity.parts import squared_error
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


def denoising_loss(sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
    """The variant's loss with noise on the encoder's input and the clean rows as the aim. The kernels take one x for both, so this is the
    dense specification by autograd; dead latents are left to the noise (no auxiliary loss)."""
    noisy = sae.noise(x_BD, step_generator(sae.seed, step, x_BD.device))
    z_BF = sae.variant.dense_code(sae, noisy)
    terms = {"reconstruction": squared_error(x_BD, torch.addmm(sae.b_dec, z_BF, sae.W_dec))}
    weights = {"reconstruction": 1.0}
    if sae.config.sparsity == "l1":
        terms["l1"], weights["l1"] = penalties.l1(z_BF, sae.W_dec.norm(dim=1)), sae.warmed_coef(step)
    if sae.config.sparsity == "kl":
        terms["kl"], weights["kl"] = penalties.kl(z_BF, sae.config.target_rate), sae.warmed_coef(step)
    total = sum(weights[name] * term for name, term in terms.items())
    return LossTerms(total, terms, weights, (z_BF.detach() > sae.active_above).sum(0))

"""The auxiliary loss, by which latents that have stopped firing predict what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.types import Step

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE


def auxk_loss(
    sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, dead: torch.Tensor
) -> torch.Tensor:
    """How badly the dead latents predict what is left, ||e_hat - e||^2 / ||e - mean e||^2 with e =
    x - x_hat taken as constant (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    e_hat uses the k_aux largest dead pre-activations *without* a ReLU: a dead latent is one whose
    pre-activation is negative everywhere, and a ReLU would give exactly those no gradient. To bound
    the cost, at most `aux_candidates` dead latents (the longest idle ones) compete and the first
    `aux_rows` rows of the batch are used: the rows are shuffled, so that is a fair sample.
    """
    x, e = x_BD[: sae.config.aux_rows], -residual_BD[: sae.config.aux_rows].detach()
    pre = torch.addmm(sae.b_enc[dead], x, sae.W_enc[dead].T)
    k = min(sae.config.aux_k or max(sae.d_in // 2, 1), len(dead))
    if k < len(dead):
        idx = pre.detach().topk(k, dim=1, sorted=False).indices
        pre = torch.zeros_like(pre).scatter(1, idx, pre.gather(1, idx))
    variance = (e - e.mean(0)).square().sum(1).mean().clamp_min(1e-12)
    return (e - pre @ sae.decoder_rows(dead)).square().sum(1).mean() / variance


def aux_terms(
    sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, step: Step
) -> dict[str, tuple[torch.Tensor, float]]:
    """{"aux": (term, weight)} where the SAE revives latents so and some are dead. `residual` is
    x_hat - target."""
    dead = step.longest_dead(sae.config.aux_candidates)
    if not revives_by_aux(sae) or dead is None:
        return {}
    # The paper normalises both losses by a variance; here the reconstruction is as many times that
    # as the variance says: D when centred and scaled.
    return {
        "aux": (
            auxk_loss(sae, x_BD, residual_BD, dead),
            sae.config.aux_coef * sae.d_out * sae.unit**2,
        )
    }


def dead_predict(sae: SAE, step: Step) -> bool:
    """Whether the loss of this step has an auxiliary term."""
    return revives_by_aux(sae) and step.longest_dead(1) is not None


def revives_by_aux(sae: SAE) -> bool:
    return sae.config.revive == "aux" and sae.config.aux_coef > 0

"""What several variants share: error terms, the auxiliary loss, the first scale, codes for a fused step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from saekit_kernels import Reconstruction
from saekit_kernels.operations import OPERATIONS, Encoded

if TYPE_CHECKING:
    from saekit.models.sae import SAE


def squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """mean_b sum_d (x - x_hat)^2."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def auxk_loss(sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """How badly the dead latents predict what is left, ||e_hat - e||^2 / ||e - mean e||^2 with e = x - x_hat taken as constant
    (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    e_hat uses the k_aux largest dead pre-activations *without* a ReLU: a dead latent is one whose pre-activation is negative
    everywhere, and a ReLU would give exactly those no gradient. To bound the cost, at most `aux_candidates` dead latents (the
    longest idle ones) compete and the first `aux_rows` rows of the batch are used: the rows are shuffled, so that is a fair sample.
    """
    x, e = x_BD[: sae.config.aux_rows], -residual_BD[: sae.config.aux_rows].detach()
    pre = torch.addmm(sae.b_enc[dead], x, sae.W_enc[dead].T)
    k = min(sae.config.aux_k or max(sae.d_in // 2, 1), len(dead))
    if k < len(dead):
        idx = pre.detach().topk(k, dim=1, sorted=False).indices
        pre = torch.zeros_like(pre).scatter(1, idx, pre.gather(1, idx))
    variance = (e - e.mean(0)).square().sum(1).mean().clamp_min(1e-12)
    return squared_error(e, pre @ sae.W_dec[dead]) / variance


def auxk_terms(sae: SAE, x_BD: torch.Tensor, made: Reconstruction) -> tuple[dict, dict, torch.Tensor]:
    """(terms, weights, total) of a reconstruction, with the auxiliary loss where latents are dead."""
    terms, weights, total = {"reconstruction": made.reconstruction}, {"reconstruction": 1.0}, made.total
    dead = sae.longest_dead(sae.config.aux_candidates)
    if sae.config.aux_coef > 0 and dead is not None:
        terms["aux"] = auxk_loss(sae, x_BD, made.residual_BD, dead)
        # The paper normalises both losses by a variance; here the reconstruction is D times that.
        weights["aux"] = sae.config.aux_coef * sae.d_in
        total = total + weights["aux"] * terms["aux"]
    return terms, weights, total


def scale_encoder_to_fit(sae: SAE, sample_BD: torch.Tensor) -> None:
    """Multiply the encoder by the one factor that minimises the first reconstruction error on the sample.

    The codes are homogeneous in the encoder, so the best factor is <x - b, x_hat - b> / ||x_hat - b||^2. It replaces a magic
    initial norm, on which half of what separates SAE libraries at equal rates depends (docs/log.md).
    """
    shape = sae.decode(sae.encode(sample_BD)) - sae.b_dec
    factor = ((sample_BD - sae.b_dec) * shape).sum() / shape.square().sum().clamp_min(1e-12)
    sae.W_enc *= factor
    sae.b_enc *= factor


def encode_for_fusion(sae: SAE, x_BD: torch.Tensor, k: int | None) -> Encoded:
    """The k largest, or all positive pre-activations for None, by the Triton path from the encoder's bf16 copy where there is one."""
    W_low = sae.shadows.of("W_enc", sae.W_enc)
    W = sae.W_enc if W_low is None else W_low
    if k is None:
        return OPERATIONS["triton"].encode_relu(x_BD, W, sae.b_enc, sae.workspace, "auto", None)
    return OPERATIONS["triton"].encode_topk(x_BD, W, sae.b_enc, k, sae.workspace, "auto")

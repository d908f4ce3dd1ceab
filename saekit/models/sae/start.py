"""The first weights of an SAE: the encoder's scale, and how many latents are active at the first
step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE

TRANSCODER_START = 0.1  # of the target's norm
ROWS = 1024  # of the sample, for quantiles over all its pre-activations


def scale_encoder_to_fit(sae: SAE, sample_BD: torch.Tensor) -> None:
    """Multiply the encoder by the factor that minimizes the first reconstruction error on the
    sample.

    The codes are homogeneous in the encoder, so the best factor is <x - b, x_hat - b> / ||x_hat -
    b||^2. It replaces a hand-picked initial norm, which explains half of the difference between SAE
    libraries at equal learning rates (docs/notes/log.md).
    """
    factor = best_factor(sae, sample_BD)
    sae.W_enc.mul_(factor)
    sae.b_enc.mul_(factor)
    if sae.thresholded:
        sae.threshold.mul_(factor)


def best_factor(sae: SAE, sample_BD: torch.Tensor) -> torch.Tensor:
    x_hat = sae.decode(sae.first_code(sample_BD)) - sae.b_dec
    # a transcoder's code knows nothing about the target yet: it starts small
    if sae.transcodes:
        size = (sae.d_out / x_hat.square().sum(1).mean().clamp_min(1e-12)).sqrt()
        return TRANSCODER_START * sae.unit * size
    return ((sample_BD - sae.b_dec) * x_hat).sum() / x_hat.square().sum().clamp_min(1e-12)


def level_of(sae: SAE, sample_BD: torch.Tensor, l0: float) -> torch.Tensor:
    """(): the value that on average `l0` pre-activations per row exceed."""
    pre = torch.addmm(sae.b_enc, sample_BD[:ROWS], sae.W_enc.T).flatten()
    return pre.kthvalue(max(round(pre.numel() * (1 - l0 / sae.latents)), 1)).values

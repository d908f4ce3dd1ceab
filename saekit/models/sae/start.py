"""Where an SAE begins: the encoder's first scale, and how many latents are active in the first
step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE

TRANSCODER_START = 0.1  # of the target's norm
ROWS = 1024  # of the sample, for quantiles over all its pre-activations


def scale_encoder_to_fit(sae: SAE, sample_BD: torch.Tensor) -> None:
    """Multiply the encoder by the one factor that minimises the first reconstruction error on the
    sample.

    The codes are homogeneous in the encoder, so the best factor is <x - b, x_hat - b> / ||x_hat -
    b||^2. It replaces a magic initial norm, on which half of what separates SAE libraries at equal
    rates depends (docs/log.md).
    """
    factor = best_factor(sae, sample_BD)
    sae.W_enc *= factor
    sae.b_enc *= factor
    if sae.thresholded:
        sae.threshold *= factor


def best_factor(sae: SAE, sample_BD: torch.Tensor) -> torch.Tensor:
    shape = sae.decode(sae.first_code(sample_BD)) - sae.b_dec
    if sae.transcodes:  # the code knows nothing of the target yet: it writes little
        return (
            TRANSCODER_START
            * sae.unit
            * (sae.d_out / shape.square().sum(1).mean().clamp_min(1e-12)).sqrt()
        )
    return ((sample_BD - sae.b_dec) * shape).sum() / shape.square().sum().clamp_min(1e-12)


def level_of(sae: SAE, sample_BD: torch.Tensor, l0: float) -> torch.Tensor:
    """(): the value that `l0` pre-activations of a row exceed on average."""
    pre = torch.addmm(sae.b_enc, sample_BD[:ROWS], sae.W_enc.T).flatten()
    return pre.kthvalue(max(round(pre.numel() * (1 - l0 / sae.latents)), 1)).values

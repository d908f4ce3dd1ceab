"""What a decoder makes of codes that do not come from rows: draws from the prior, paths between
codes, one latent varied at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Codes (B,F) -> rows (B, ...)."""


@torch.no_grad()
def samples(
    decode: Decode,
    count: int,
    latents: int,
    generator: torch.Generator,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """(count, ...): decoded draws from the prior N(0, I). They are drawn on the generator's device,
    so that the model's device does not change them."""
    z_BF = torch.randn(count, latents, generator=generator, device=generator.device)
    return decode(z_BF if device is None else z_BF.to(device))


@torch.no_grad()
def interpolate(decode: Decode, z0_F: torch.Tensor, z1_F: torch.Tensor, steps: int) -> torch.Tensor:
    """(steps, ...): decoded codes at even steps on the straight line from z0 to z1, both ends
    included."""
    assert steps >= 2 and z0_F.shape == z1_F.shape
    weight = torch.linspace(0, 1, steps, dtype=z0_F.dtype, device=z0_F.device)
    return decode(torch.lerp(z0_F, z1_F, weight[:, None]))


@torch.no_grad()
def traverse(
    decode: Decode, z_F: torch.Tensor, latent: int, values: Sequence[float] | torch.Tensor
) -> torch.Tensor:
    """(len(values), ...): the code z decoded with `latent` set to each of the values, all others as
    they are."""
    assert 0 <= latent < len(z_F)
    values = torch.as_tensor(values, dtype=z_F.dtype, device=z_F.device)
    z_BF = z_F.repeat(len(values), 1)
    z_BF[:, latent] = values
    return decode(z_BF)


def active_units(means_BF: torch.Tensor, threshold: float = 0.01) -> torch.Tensor:
    """Indices of the latents that the encoder uses, most varied first; their number is what papers
    report.

    Active: the variance over the data (population, divided by B) of the latent's posterior mean is
    above the threshold (Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519, section 5). An
    unused latent has the prior's mean for every row.
    """
    variance_F = means_BF.double().var(0, correction=0)
    order = variance_F.argsort(descending=True, stable=True)
    return order[variance_F[order] > threshold]

"""Corruption of the input, which turns any model into a denoising autoencoder (Vincent et al. 2010,
JMLR 11).

The model sees the noisy input and reconstructs the clean one. Noise comes from a generator seeded
by run and step, so that a resumed run draws the same numbers as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from saekit.errors import UsageError, check_choice, opt


def gaussian(x: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """x + level * N(0, I): `level` is the standard deviation."""
    return (
        torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        .mul_(level)
        .add_(x)
    )


def masking(x: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Each value 0 with probability `level`: dropout without the rescaling."""
    return x * (_uniform(x, generator) >= level)


def salt_pepper(x: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Each value 0 or 1, with probability level / 2 each: for data in [0, 1]."""
    u = _uniform(x, generator)
    return torch.where(u < level / 2, 0.0, torch.where(u < level, 1.0, x))


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


KINDS: dict[str, Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt-pepper": salt_pepper,
}


@dataclass(frozen=True)
class Noise:
    """`KIND:LEVEL`, such as masking:0.3; None or 'none': no noise."""

    kind: str = ""
    level: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> Noise:
        """Raises UsageError for an unknown kind or a level that the kind cannot have."""
        if text in (None, "", "none"):
            return cls()
        kind, _, level = text.partition(":")
        check_choice("noise", kind, KINDS)
        try:
            value = float(level)
        except ValueError:
            raise UsageError(
                f"{opt('noise', text)}: the level is missing or not a number",
                opt("noise", f"{kind}:0.3"),
            ) from None
        most = float("inf") if kind == "gaussian" else 1.0
        if not 0 < value < most:
            raise UsageError(
                f"{opt('noise', text)}: the level must be above 0"
                + ("" if kind == "gaussian" else " and below 1")
            )
        return cls(kind, value)

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return KINDS[self.kind](x, self.level, generator) if self.kind else x


def step_generator(seed: int, step: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """Random numbers of one step: they depend only on seed, step and stream, whatever was drawn
    before."""
    # The first constant: seed 0 at step 0 must not draw the numbers of the first weights.
    mixed = (
        0xD1342543DE82EF95
        + seed * 0x9E3779B97F4A7C15
        + step * 0xBF58476D1CE4E5B9
        + stream * 0x94D049BB133111EB
    ) & (2**63 - 1)
    return torch.Generator(device).manual_seed(mixed)

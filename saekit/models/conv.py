"""`conv`: an autoencoder of convolutions for images and grids of patches.

Down, per entry of `channels`: a 3x3 convolution, an activation function, 2x2 mean pooling (max
pooling gave 11 to 22% more error, docs/notes/log.md); then a linear map to the code. Up is the
mirror image: a linear map, then transposed convolutions. Their kernels are 4x4, a multiple of the
stride, so that all output values are sums of equally many products; with 3x3 some have one and
others four, which shows as a checkerboard (Odena et al. 2016, "Deconvolution and checkerboard
artifacts").
Pooling rounds odd sides down; `output_padding` restores them.

Inputs have their channels last, as in stores: (B,H,W,C) of a grid, or flat rows (B,H*W*C) of
`raw:pixels`. Inside the model they are first, as in torch.
Shapes: B examples, H W sides, C channels, h w sides of a map, F latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import avg_pool2d

from saekit.errors import DataError, UsageError, opt
from saekit.models.classic import ACTIVATIONS, Classic, ClassicConfig, HiddenActivation
from saekit.options import Doc
from saekit.types import Takes

UP_KERNEL = 4


@dataclass(frozen=True)
class ConvConfig(ClassicConfig):
    shape: tuple[int, ...] = ()
    """(H,W,C) of one example; d_in is C for a grid, H*W*C for flat rows."""
    channels: Annotated[
        tuple[int, ...], Doc("Channels of each level; every level halves height and width.")
    ] = (16, 32)
    activation: Annotated[HiddenActivation, Doc("Activation function after every convolution.")] = (
        "gelu"
    )

    model: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or any(count < 1 for count in self.channels):
            raise UsageError(
                f"{opt('channels', self.channels)}: at least one number, each at least 1",
                opt("channels", [16, 32]),
            )
        self._check_shape()
        self._check_sides()

    def _check_shape(self) -> None:
        if len(self.shape) != 3 or None in self.shape:
            raise DataError(
                f"{self.model} takes images or grids; these rows have no shape (H,W,C)",
                f"harvest raw:pixels, or with {opt('layout', 'grid')}",
            )
        H, W, C = self.shape
        if self.d_in not in (C, H * W * C):
            raise DataError(
                f"rows of width {self.d_in} are neither patches nor images of shape {self.shape}"
            )
        if not self.is_grid and self.d_out % (H * W):
            raise DataError(
                f"rows of width {self.d_out} in the target store are not images of {H}x{W}",
                "use a target store with the same height and width",
            )

    def _check_sides(self) -> None:
        H, W, _ = self.shape
        pools = min(H, W).bit_length() - 1  # that leave a side of at least 1
        if pools < 1:
            raise DataError(
                f"sides of {H}x{W} are too small for {self.model}, which halves both",
                opt("model", "dense"),
            )
        if len(self.channels) > pools:
            cause = (
                f"{opt('channels', self.channels)} halves the sides {len(self.channels)} times, and"
                f" {H}x{W} are too small"
            )
            raise UsageError(cause, opt("channels", self.channels[:pools]))

    @property
    def is_grid(self) -> bool:
        """Whether examples are (B,H,W,C), not flat rows."""
        return self.d_in == self.shape[2]


class Spatial(Classic):
    """What conv and unet share: data to maps and back, and the sides of every level."""

    takes: ClassVar[Takes] = "grid"
    maps_per_level: ClassVar[int]
    """Copies of a level's maps that a step keeps."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        H, W, self.maps_in = config.shape
        self.maps_out = self.d_out if config.is_grid else self.d_out // (H * W)
        self.sides = [(H >> level, W >> level) for level in range(len(config.channels) + 1)]
        self.activation = ACTIVATIONS[config.activation]
        self.gain = 2.0 if config.activation in ("relu", "silu", "gelu") else 1.0

    @property
    def example_shape(self) -> tuple[int | None, ...]:
        return self.config.shape if self.config.is_grid else (self.d_in,)

    def to_maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B,H,W,C) or (B,H*W*C) -> (B,C,H,W)."""
        return rearrange(x.reshape(len(x), *self.sides[0], self.maps_in), "B H W C -> B C H W")

    def from_maps(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W) -> the shape of the target, by what the input is: (B,H,W,C) or (B,H*W*C)."""
        return rearrange(
            maps_BCHW, "B C H W -> B H W C" if self.config.is_grid else "B C H W -> B (H W C)"
        )

    def numbers_per_row(self) -> int:
        """The maps of every level: convolutions, activations and pools on the way down and up."""
        maps = sum(
            channels * math.prod(sides) for channels, sides in zip(self.config.channels, self.sides)
        )
        return (self.maps_in + self.maps_out) * math.prod(
            self.sides[0]
        ) + self.maps_per_level * maps

    @torch.no_grad()
    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """As every classic model, corrected for transposed convolutions: torch stores their weights
        as (in, out, 4, 4), so that the first index is not the output."""
        super().initialise_from(sample, generator)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                # the fan-in: products in one output value
                products = module.weight.shape[0] * (UP_KERNEL // 2) ** 2
                module.weight.mul_(math.sqrt(module.weight[0].numel() / products))


class Conv(Spatial):
    maps_per_level = 4

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        widths = (self.maps_in, *config.channels)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        # the map between the convolutions and the code
        self.narrow = (config.channels[-1], *self.sides[-1])
        self.into = nn.Linear(math.prod(self.narrow), self.latents)
        self.out_of = nn.Linear(self.latents, math.prod(self.narrow))
        backs = (self.maps_out, *config.channels)
        self.up = nn.ModuleList(
            doubling(b, a, sides) for a, b, sides in zip(backs, backs[1:], self.sides)
        )

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.to_maps(x)
        for layer in self.down:
            maps = avg_pool2d(self.activation(layer(maps)), 2)
        return self.into(maps.flatten(1))

    def from_code(self, z: torch.Tensor) -> torch.Tensor:
        maps = self.out_of(z).unflatten(1, self.narrow)
        for layer in reversed(self.up):
            maps = layer(self.activation(maps))
        return self.from_maps(maps)

    def leaving_norms(self) -> torch.Tensor:
        return self.out_of.weight.norm(dim=0)


def doubling(maps_in: int, maps_out: int, sides: tuple[int, int]) -> nn.ConvTranspose2d:
    """(B,maps_in,h,w) -> (B,maps_out,*sides), where h, w are `sides` after pooling."""
    odd = (sides[0] % 2, sides[1] % 2)
    return nn.ConvTranspose2d(maps_in, maps_out, UP_KERNEL, stride=2, padding=1, output_padding=odd)

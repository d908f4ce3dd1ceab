"""`unet`: convolutions down and up again, with skip connections from every level of the way down to
the same level of the way up (Ronneberger et al. 2015, arXiv 1505.04597).

A level is two 3x3 convolutions. Down: `channels` maps per level, with pooling in between (means, as
in conv); at the bottom `latents` maps. Up: a transposed convolution, whose maps are concatenated
with the skipped ones, and a level; at the end a 1x1 convolution to the output. Borders are padded,
so that the output has the sides of the input.

The code is everything that the decoder sees. With skips that is the bottleneck followed by every
skipped map, more numbers than the input has: the bottleneck is bypassed, and copying the input is
easy. So skips are for a target that is not the input (colors, masks). Without them the code is only
the bottleneck map, and the model is an autoencoder. The model's `latents` is the length of the
code, that of the config the number of bottleneck maps.

Shapes: as in saekit.models.conv; n length of the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from saekit.errors import UsageError, opt
from saekit.models.conv import ConvConfig, Spatial, doubling
from saekit.options import Doc


@dataclass(frozen=True)
class UNetConfig(ConvConfig):
    latents: Annotated[int, Doc("Maps of the bottleneck.")] = 64
    skips: Annotated[bool, Doc("Skip connections around the bottleneck, one per level.")] = True

    model: ClassVar[str] = "unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skips and self.sparsity != "none":
            raise UsageError(
                f"{opt('sparsity', self.sparsity)}: skip connections bypass the bottleneck, so a"
                " sparse code has no effect",
                opt("skips", False),
            )


class Level(nn.Module):
    """Two 3x3 convolutions, (B,maps_in,h,w) -> (B,maps_out,h,w), before the second activation
    function."""

    def __init__(
        self, maps_in: int, maps_out: int, activation: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(maps_in, maps_out, 3, padding=1)
        self.second = nn.Conv2d(maps_out, maps_out, 3, padding=1)
        self.activation = activation

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.second(self.activation(self.first(maps)))


class UNet(Spatial):
    maps_per_level = 12

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = (self.maps_in, *config.channels, config.latents)
        levels = range(len(config.channels))
        inputs = 2 if config.skips else 1  # of a level on the way up
        self.down = nn.ModuleList(Level(widths[i], widths[i + 1], self.activation) for i in levels)
        self.bottom = Level(widths[-2], config.latents, self.activation)
        self.enlarge = nn.ModuleList(
            doubling(widths[i + 2], widths[i + 1], self.sides[i]) for i in levels
        )
        self.up = nn.ModuleList(
            Level(inputs * widths[i + 1], widths[i + 1], self.activation) for i in levels
        )
        self.outlet = nn.Conv2d(widths[1], self.maps_out, 1)
        # shapes of the maps in the code, in order
        self.map_shapes = [(config.latents, *self.sides[-1])]
        if config.skips:
            self.map_shapes += [(widths[i + 1], *self.sides[i]) for i in levels]
        self.latents = sum(map(math.prod, self.map_shapes))

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        """(B,n): the bottleneck, flat, and with skips the maps of every level after it, the finest
        first."""
        *skipped, bottleneck = self._descend(x)
        maps = (bottleneck, *skipped)[: len(self.map_shapes)]
        return torch.cat([level.flatten(1) for level in maps], 1)

    def from_code(self, z: torch.Tensor) -> torch.Tensor:
        bottleneck, *skipped = self._split(z)
        return self.from_maps(self.outlet(self._climb(bottleneck, skipped)[-1]))

    def leaving_norms(self) -> torch.Tensor:
        """(n,), without skips: every place of a bottleneck map has the same outgoing weights."""
        h, w = self.sides[-1]
        weight = self.enlarge[-1].get_parameter("weight")
        return weight.flatten(1).norm(dim=1).repeat_interleave(h * w)

    @torch.no_grad()
    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps of every level for raw x, (B,C,h,w) each, named down0, down1, ..., bottleneck,
        ..., up1, up0; 0 is the finest."""
        down = self._descend(self.normalized(x))[:-1]
        bottleneck, *skipped = self._split(self.encode(x).view(-1, self.latents))
        up = self._climb(bottleneck, skipped)
        maps = {f"down{level}": level_maps for level, level_maps in enumerate(down)}
        maps["bottleneck"] = bottleneck
        return maps | {f"up{len(up) - 1 - i}": level_maps for i, level_maps in enumerate(up)}

    def _descend(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps of every level, the finest first, the bottleneck (before the code's activation
        function) last."""
        levels, maps = [], self.to_maps(x)
        for level in self.down:
            levels.append(self.activation(level(maps)))
            maps = avg_pool2d(levels[-1], 2)
        return [*levels, self.bottom(maps)]

    def _climb(
        self, bottleneck: torch.Tensor, skipped: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The maps of every level on the way up, the finest last."""
        levels, maps = [], bottleneck
        for i in range(len(self.up) - 1, -1, -1):
            maps = self.enlarge[i](maps)
            if skipped:
                maps = torch.cat([maps, skipped[i]], 1)
            maps = self.activation(self.up[i](maps))
            levels.append(maps)
        return levels

    def _split(self, z_Bn: torch.Tensor) -> list[torch.Tensor]:
        flat = z_Bn.split([math.prod(shape) for shape in self.map_shapes], 1)
        return [maps.unflatten(1, shape) for maps, shape in zip(flat, self.map_shapes)]

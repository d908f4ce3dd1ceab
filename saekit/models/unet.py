"""`unet`: convolutions down and up again, with the maps of every level handed across to the way up
(Ronneberger et al. 2015, arXiv 1505.04597).

A level is two 3x3 convolutions. Down: `channels` maps a level, pooled in between (by means, as in
conv); at the bottom `latents` maps. Up: a transposed convolution, the skipped maps beside it, a
level; a 1x1 convolution to the output ends it. Borders are padded, so that the output has the sides
of the input.

The code is what the decoder is given. With skips that is the bottleneck followed by every skipped
map, more numbers than the input has: the bottleneck is bypassed, and copying the input is easy. So
skips are for a target that is not the input (colours, masks). Without them the code is the
bottleneck map alone, and the model an autoencoder. The model's `latents` is the length of the code,
the config's the bottleneck's maps.

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
    """Two 3x3 convolutions, (B,maps_in,h,w) -> (B,maps_out,h,w), before the second bend."""

    def __init__(
        self, maps_in: int, maps_out: int, bend: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(maps_in, maps_out, 3, padding=1)
        self.second = nn.Conv2d(maps_out, maps_out, 3, padding=1)
        self.bend = bend

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.second(self.bend(self.first(maps)))


class UNet(Spatial):
    maps_each = 12

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = (self.maps_in, *config.channels, config.latents)
        levels = range(len(config.channels))
        beside = 2 if config.skips else 1
        self.down = nn.ModuleList(Level(widths[i], widths[i + 1], self.bend) for i in levels)
        self.bottom = Level(widths[-2], config.latents, self.bend)
        self.enlarge = nn.ModuleList(
            doubling(widths[i + 2], widths[i + 1], self.sides[i]) for i in levels
        )
        self.up = nn.ModuleList(
            Level(beside * widths[i + 1], widths[i + 1], self.bend) for i in levels
        )
        self.outlet = nn.Conv2d(widths[1], self.maps_out, 1)
        bottleneck, skipped = (
            (config.latents, *self.sides[-1]),
            [(widths[i + 1], *self.sides[i]) for i in levels],
        )
        # shapes of the maps in the code, in order
        self.parts = [bottleneck, *skipped] if config.skips else [bottleneck]
        self.latents = sum(map(math.prod, self.parts))

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        """(B,n): the bottleneck, flat, and with skips every level's map behind it, from the
        finest."""
        *skipped, bottleneck = self._descend(x)
        return torch.cat([part.flatten(1) for part in (bottleneck, *skipped)[: len(self.parts)]], 1)

    def from_code(self, z_Bn: torch.Tensor) -> torch.Tensor:
        bottleneck, *skipped = self._split(z_Bn)
        return self.from_maps(self.outlet(self._climb(bottleneck, skipped)[-1]))

    def leaving_norms(self) -> torch.Tensor:
        """(n,), without skips: every place of a bottleneck map leaves through the same weights."""
        h, w = self.sides[-1]
        return self.enlarge[-1].weight.flatten(1).norm(dim=1).repeat_interleave(h * w)

    @torch.no_grad()
    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What every level makes of raw x: (B,C,h,w) each, named down0, down1, ..., bottleneck,
        ..., up1, up0; 0 is the finest."""
        skipped = self._descend(self.normalised(x))[:-1]
        bottleneck, *handed = self._split(self.encode(x).view(-1, self.latents))
        risen = self._climb(bottleneck, handed)
        found = {f"down{level}": maps for level, maps in enumerate(skipped)} | {
            "bottleneck": bottleneck
        }
        return found | {f"up{len(risen) - 1 - i}": maps for i, maps in enumerate(risen)}

    def _descend(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps of every level from the finest, the bottleneck (before the code's activation)
        last."""
        made, maps = [], self.to_maps(x)
        for level in self.down:
            made.append(self.bend(level(maps)))
            maps = avg_pool2d(made[-1], 2)
        return [*made, self.bottom(maps)]

    def _climb(
        self, bottleneck: torch.Tensor, skipped: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Maps of every level on the way up, the finest last."""
        made, maps = [], bottleneck
        for i in range(len(self.up) - 1, -1, -1):
            maps = self.enlarge[i](maps)
            if skipped:
                maps = torch.cat([maps, skipped[i]], 1)
            maps = self.bend(self.up[i](maps))
            made.append(maps)
        return made

    def _split(self, z_Bn: torch.Tensor) -> list[torch.Tensor]:
        flat = z_Bn.split([math.prod(shape) for shape in self.parts], 1)
        return [part.unflatten(1, shape) for part, shape in zip(flat, self.parts)]

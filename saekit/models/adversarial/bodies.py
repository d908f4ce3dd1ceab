"""The networks of generators and discriminators, dense and of convolutions.

A discriminator gives one logit per row. Where rows have classes, the generator reads the class
beside its code, and the discriminator adds a vector per class to the values of its first layer,
which is the class as further inputs of that layer (Mirza and Osindero 2014, arXiv 1411.1784).

Shapes: B rows, D width of a row, F code, K classes, C maps, h w sides of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import leaky_relu, one_hot

from saekit.models.adversarial.layers import BatchNorm, SpectralConv2d, SpectralLinear
from saekit.models.classic import ACTIVATIONS
from saekit.models.conv import UP_KERNEL, doubling

LEAK = 0.2  # slope below 0 (Radford et al. 2015, section 3)


@dataclass(frozen=True)
class Images:
    """Examples that are maps, (H,W,C) or flat rows of them, and the sides of every level of
    strided convolutions."""

    shape: tuple[int, ...]
    is_grid: bool
    """Whether an example is (H,W,C), not a flat row."""
    levels: int

    @property
    def example(self) -> tuple[int | None, ...]:
        return self.shape if self.is_grid else (math.prod(self.shape),)

    @property
    def sides(self) -> list[tuple[int, int]]:
        H, W, _ = self.shape
        return [(H >> level, W >> level) for level in range(self.levels + 1)]

    def to_maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B,H,W,C) or (B,H*W*C) -> (B,C,H,W)."""
        return rearrange(x.reshape(len(x), *self.shape), "B H W C -> B C H W")

    def from_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        return rearrange(maps, "B C H W -> B H W C" if self.is_grid else "B C H W -> B (H W C)")


class Conditional(nn.Module):
    """A network that may read a class: `classes` 0 means that it does not."""

    numbers_per_row: int
    """About how many numbers are kept per row for the backward pass, to estimate memory."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def with_class(self, z_BF: torch.Tensor, y_B: torch.Tensor | None) -> torch.Tensor:
        """(B,F+K): the code, and the class with a mean square of 1 as the code's entries have."""
        if y_B is None:
            return z_BF
        of_class_BK = one_hot(y_B, self.classes).to(z_BF.dtype) * math.sqrt(self.classes)
        return torch.cat([z_BF, of_class_BK], 1)


class DenseGenerator(Conditional):
    """(B,F) -> (B,D), as the way down of a dense autoencoder: F, hidden reversed, D."""

    def __init__(
        self, latents: int, hidden: Sequence[int], width: int, activation: str, classes: int = 0
    ) -> None:
        super().__init__(classes)
        widths = (latents + classes, *reversed(hidden), width)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activate = ACTIVATIONS[activation]
        self.numbers_per_row = 2 * sum(widths)

    def forward(self, z_BF: torch.Tensor, y_B: torch.Tensor | None = None) -> torch.Tensor:
        h = self.with_class(z_BF, y_B)
        for number, layer in enumerate(self.layers):
            h = layer(self.activate(h) if number else h)
        return h


class DenseDiscriminator(Conditional):
    """(B,D) -> (B,): D, hidden, one logit."""

    def __init__(
        self, width: int, hidden: Sequence[int], classes: int = 0, spectral: bool = False
    ) -> None:
        super().__init__(classes)
        linear = SpectralLinear if spectral else nn.Linear
        widths = (width, *hidden, 1)
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.numbers_per_row = 2 * sum(widths)
        if classes:
            self.of_class = nn.Parameter(torch.zeros(classes, widths[1]))

    def forward(self, x_BD: torch.Tensor, y_B: torch.Tensor | None = None) -> torch.Tensor:
        h = self.layers[0](x_BD)
        if y_B is not None:
            h = h + self.of_class[y_B]
        for layer in self.layers[1:]:
            h = layer(leaky_relu(h, LEAK))
        return h[:, 0]


class ConvGenerator(Conditional):
    """(B,F) -> (B,C,H,W) by transposed convolutions of stride 2, batch norm and ReLU after each
    but the last; the first makes the smallest maps of the code. No dense hidden layers (Radford et
    al. 2015, arXiv 1511.06434, section 3)."""

    def __init__(
        self,
        latents: int,
        channels: Sequence[int],
        images: Images,
        classes: int = 0,
    ) -> None:
        super().__init__(classes)
        sides = images.sides
        self.first = nn.ConvTranspose2d(latents + classes, channels[-1], sides[-1], bias=False)
        widths = (images.shape[-1], *channels)
        self.up = nn.ModuleList(
            doubling(b, a, size) for a, b, size in zip(widths, widths[1:], sides)
        )
        self.norms = nn.ModuleList(BatchNorm(count) for count in channels)
        self.numbers_per_row = _maps(channels, images)

    def forward(self, z_BF: torch.Tensor, y_B: torch.Tensor | None = None) -> torch.Tensor:
        maps = self.first(rearrange(self.with_class(z_BF, y_B), "B F -> B F 1 1"))
        for layer, norm in zip(reversed(self.up), reversed(self.norms)):
            maps = layer(torch.relu(norm(maps)))
        return maps


class ConvDiscriminator(Conditional):
    """(B,C,H,W) -> (B,) by convolutions of stride 2 with leaky ReLU, and one over the smallest
    maps. Batch norm after each but the first; with spectral norm there is none, since it would undo
    the division."""

    def __init__(
        self,
        channels: Sequence[int],
        images: Images,
        classes: int = 0,
        spectral: bool = False,
    ) -> None:
        super().__init__(classes)
        conv = SpectralConv2d if spectral else nn.Conv2d
        self.down = nn.ModuleList(
            conv(a, b, UP_KERNEL, 2, 1) for a, b in pairwise((images.shape[-1], *channels))
        )
        self.last = conv(channels[-1], 1, images.sides[-1], 1, 0)
        self.norms = nn.ModuleList(
            nn.Identity() if spectral or not level else BatchNorm(count)
            for level, count in enumerate(channels)
        )
        self.numbers_per_row = _maps(channels, images)
        if classes:
            self.of_class = nn.Parameter(torch.zeros(classes, channels[0]))

    def forward(self, maps: torch.Tensor, y_B: torch.Tensor | None = None) -> torch.Tensor:
        for level, (layer, norm) in enumerate(zip(self.down, self.norms)):
            maps = layer(maps)
            if y_B is not None and not level:
                maps = maps + rearrange(self.of_class[y_B], "B C -> B C 1 1")
            maps = leaky_relu(norm(maps), LEAK)
        return self.last(maps).flatten()


def _maps(channels: Sequence[int], images: Images) -> int:
    """Values of the maps of all levels: convolution, batch norm, activation."""
    return sum(3 * count * H * W for count, (H, W) in zip(channels, images.sides[1:]))


@torch.no_grad()
def start(network: nn.Module, generator: torch.Generator) -> None:
    """Weights from N(0, 2 / fan-in) (He et al. 2015), biases 0, batch norm 1 and 0, vectors of
    classes from N(0, 1)."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            W = module.weight
            products = W[0].numel()
            if isinstance(module, nn.ConvTranspose2d):  # (in, out, ...): products in one value
                many = W.shape[0] * (UP_KERNEL // 2) ** 2
                products = many if module.stride[0] > 1 else W.shape[0]
            W.copy_(torch.randn(W.shape, generator=generator) * math.sqrt(2 / products))
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(module, BatchNorm):
            module.reset_parameters()
        vectors = getattr(module, "of_class", None)
        if isinstance(vectors, nn.Parameter):
            vectors.copy_(torch.randn(vectors.shape, generator=generator))

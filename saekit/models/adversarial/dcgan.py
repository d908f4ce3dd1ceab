"""`dcgan`: gan with convolutions, for images and grids of patches (Radford, Metz and Chintala 2015,
arXiv 1511.06434), after the list of its section 3:

    strided convolutions (discriminator) and transposed ones (generator), no pooling
    batch norm in both, but not in the generator's last and the discriminator's first layer
    no dense hidden layers
    ReLU in the generator, its output tanh; leaky ReLU (slope 0.2) in the discriminator

The losses are those of gan. Every entry of `channels` halves height and width; kernels are 4x4 with
stride 2, so that all values are sums of equally many products (saekit.models.conv). Odd sides are
rounded down on the way down and restored on the way up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from saekit.errors import DataError, UsageError, opt
from saekit.models.adversarial import bodies
from saekit.models.adversarial.gan import AdversarialConfig, Drawing
from saekit.options import Doc
from saekit.types import Takes

CHANNELS, LEAST_SIDE = 32, 4  # of the first level; of the smallest maps by default


@dataclass(frozen=True)
class DCGANConfig(AdversarialConfig):
    channels: Annotated[
        tuple[int, ...] | None,
        Doc(
            "Maps of each level, from the image on; every level halves height and width (default:"
            " 32, doubled per level, while both stay at least 4)."
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        images_of(self, "dcgan", self.channels)


def levels_of(config: AdversarialConfig, channels: tuple[int, ...] | None) -> tuple[int, ...]:
    """The channels of every level, chosen by the sides where they are not given."""
    if channels is not None:
        return channels
    side = min(side or 1 for side in config.shape[:2])
    levels = max((side // LEAST_SIDE).bit_length() - 1, 1)
    return tuple(CHANNELS << level for level in range(levels))


def images_of(
    config: AdversarialConfig, model: str, channels: tuple[int, ...] | None
) -> bodies.Images:
    """What the convolutions see. Raises DataError for rows that are not images or grids, UsageError
    for channels that they cannot have."""
    shape = tuple(size or 0 for size in config.shape)
    if len(shape) != 3 or 0 in shape or config.d_in not in (shape[2], math.prod(shape)):
        raise DataError(
            f"{model} takes images or grids; these rows have no shape (H,W,C)",
            f"harvest raw:pixels, or with {opt('layout', 'grid')}; or {opt('model', 'gan')}",
        )
    if min(shape[:2]) < 2:
        raise DataError(
            f"sides of {shape[0]}x{shape[1]} are too small for {model}, which halves both",
            opt("model", "gan"),
        )
    levels, most = levels_of(config, channels), min(shape[:2]).bit_length() - 1
    if not levels or min(levels) < 1:
        raise UsageError(
            f"{opt('channels', levels)}: at least one number, each at least 1",
            opt("channels", [32, 64]),
        )
    if len(levels) > most:
        raise UsageError(
            f"{opt('channels', levels)} halves the sides {len(levels)} times, and"
            f" {shape[0]}x{shape[1]} are too small",
            opt("channels", levels[:most]),
        )
    return bodies.Images(shape, config.d_in == shape[2], len(levels))


class DCGAN(Drawing):
    takes: ClassVar[Takes] = "grid"

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__(config)
        channels = levels_of(config, config.channels)
        self.images = images_of(config, "dcgan", config.channels)
        self.generator = bodies.ConvGenerator(self.latents, channels, self.images)
        self.discriminator = bodies.ConvDiscriminator(
            channels, self.images, spectral=config.spectral_norm
        )

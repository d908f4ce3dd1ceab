"""Pictures in [0,1], black to white: the unit of every budget, and the map to what a model takes.

The map of an image processor's normalization is measured, not read from its config: a black, a gray
and a white picture go through it. So it holds for every processor whose pixels are linear in the
picture's, and others are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.images import prepared
from saekit.harvesting.models import LiveModel
from saekit.harvesting.named_pictures import named_picture

if TYPE_CHECKING:
    from PIL.Image import Image

LEVELS = 255
TOLERANCE = 1e-4
"""Of the gray picture, relative to the range."""
Picture = str | Path | torch.Tensor


@dataclass(frozen=True)
class PixelScale:
    """pixel_values = black + x (white - black), by channel; x (B,C,h,w) in [0,1]."""

    black_C11: torch.Tensor
    white_C11: torch.Tensor

    def to_model(self, x: torch.Tensor) -> torch.Tensor:
        """Differentiable in x."""
        return torch.lerp(self.black_C11, self.white_C11, x)

    def to_unit(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """In [0,1]; resizing may overshoot by rounding, which is clamped."""
        x = (pixel_values - self.black_C11) / (self.white_C11 - self.black_C11)
        return x.clamp(0, 1)


def pixel_scale(live: LiveModel) -> PixelScale:
    """The scale of a vision model's image processor, on the model's device, in its dtype. Raises
    DataError where pixel values are not linear in the picture's."""
    black, gray, white = (_constant(live, level) for level in (0, 127, LEVELS))
    expected = torch.lerp(black, white, 127 / LEVELS)
    range_C11 = (white - black).abs()
    if not bool((range_C11 > 0).all()) or not bool(
        ((gray - expected).abs() <= TOLERANCE * range_C11).all()
    ):
        raise DataError(
            f"the image processor of {live.name} does not map pixels linearly, so a budget in units"
            " of the pixel range has no meaning",
            "use a processor that rescales and normalizes only",
        )
    scale = [level.to(live.device, live.dtype) for level in (black, white)]
    return PixelScale(*scale)


def pixels_of(picture: Picture, live: LiveModel, scale: PixelScale) -> torch.Tensor:
    """(1,C,h,w) in [0,1], as the image processor cuts and resizes it, on the model's device.

    picture: a file; an image of an embedded data set by its number or name, such as
        `embedded:digits:8`; or pixels (C,h,w) in [0,1] of the size that the model takes.

    Raises UsageError, DataError, MissingError.
    """
    if isinstance(picture, torch.Tensor):
        return _checked(picture, live)
    return pixels_of_image(named_picture(picture), live, scale)


def pixels_of_image(image: Image, live: LiveModel, scale: PixelScale) -> torch.Tensor:
    """The same of a PIL image. Raises DataError."""
    layout = live.image_tokens
    assert layout is not None, "a vision model"
    converted = image.convert("L" if layout.channels == 1 else "RGB")
    pixel_values = prepared([converted], live.processor)
    return scale.to_unit(pixel_values.to(live.device, live.dtype))


def in_8_bits(x: torch.Tensor) -> torch.Tensor:
    """As a PNG holds it: the nearest of 256 levels."""
    return (x * LEVELS).round() / LEVELS


def _constant(live: LiveModel, level: int) -> torch.Tensor:
    """(C,1,1): the pixel values of a picture of one gray level. Raises DataError where they
    differ between pixels."""
    from PIL import Image

    layout = live.image_tokens
    assert layout is not None, "a vision model"
    mode, color = ("L", level) if layout.channels == 1 else ("RGB", (level,) * 3)
    image = Image.new(mode, (layout.size[1], layout.size[0]), color)
    values_Chw = prepared([image], live.processor)[0].double()
    constant_C11 = values_Chw.mean((1, 2), keepdim=True)
    if not torch.allclose(values_Chw, constant_C11.expand_as(values_Chw), atol=1e-5):
        raise DataError(
            f"the image processor of {live.name} pads pictures or changes single pixels",
            "use a processor that resizes, rescales and normalizes only",
        )
    return constant_C11


def _checked(pixels: torch.Tensor, live: LiveModel) -> torch.Tensor:
    layout = live.image_tokens
    assert layout is not None, "a vision model"
    x = pixels[None] if pixels.ndim == 3 else pixels
    shape = (1, layout.channels, *layout.size)
    if x.shape != shape:
        raise UsageError(
            f"{opt('image')} has the shape {tuple(pixels.shape)}, not {shape[1:]}", "give one image"
        )
    x = x.to(live.device, live.dtype)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError(f"{opt('image')} has pixels outside of [0,1]", "divide 8-bit pixels by 255")
    return x

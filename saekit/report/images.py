"""Sheets of small images, for pages and reports: every pixel of the data is a square of `zoom`
pixels, gaps are transparent."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from saekit.errors import DataError, NumericsError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

GAP = 4  # pixels between images
CAPTION = 12  # pixels of a caption's letters
# contrast above 4 to 1 on white and on near black, since the background is not known
INK = (122, 122, 122, 255)


def sheet(
    images: torch.Tensor | np.ndarray,
    columns: int,
    captions: Sequence[str] | None = None,
    zoom: int = 4,
) -> Image.Image:
    """Images (N,H,W) or (N,H,W,C), C 1 or 3, in [0,1], as one RGBA picture, row by row; values
    outside are clipped.

    A caption is below its image; cells are as wide as the widest. Raises DataError, NumericsError
    (NaN, inf).
    """
    from PIL import Image, ImageDraw

    assert columns >= 1 and zoom >= 1
    pixels = _rgb(images)
    N, H, W, _ = pixels.shape
    if captions is not None and len(captions) != N:
        raise DataError(f"{len(captions)} captions for {N} images")
    font, room = _font(), CAPTION + 8 if captions is not None else 0
    widest = max((font.getlength(text) for text in captions or ()), default=0)
    cell_w, cell_h = max(W * zoom, int(widest) + 1), H * zoom + room
    columns, rows = min(columns, N), -(-N // columns)
    canvas = Image.new(
        "RGBA", (columns * (cell_w + GAP) - GAP, rows * (cell_h + GAP) - GAP), (0, 0, 0, 0)
    )
    draw = ImageDraw.Draw(canvas)
    for i in range(N):
        x, y = i % columns * (cell_w + GAP), i // columns * (cell_h + GAP)
        enlarged = Image.fromarray(pixels[i]).resize((W * zoom, H * zoom), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (x + (cell_w - W * zoom) // 2, y))
        if captions is not None:
            draw.text((x + cell_w / 2, y + H * zoom + 2), captions[i], INK, font, anchor="mt")
    return canvas


def png_data_uri(image: Image.Image) -> str:
    """The picture as text for <img src>."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def _rgb(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """(N,H,W,3) uint8."""
    x = (
        images.detach().float().cpu().numpy()
        if isinstance(images, torch.Tensor)
        else np.asarray(images, np.float32)
    )
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or 0 in x.shape:
        raise DataError(
            f"images of shape {tuple(images.shape)}: (N,H,W), (N,H,W,1) or (N,H,W,3) is wanted"
        )
    if not np.isfinite(x).all():
        raise NumericsError("images: a pixel is NaN or infinite")
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8).repeat(3 // x.shape[-1], axis=-1)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(CAPTION)

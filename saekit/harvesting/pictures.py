"""The reader of all pictures: for folders, tables, the hub, raw pixels and queries.

A picture is returned upright (EXIF orientation), in 8 bits, as its first frame. Its mode is one
that PIL converts to gray or RGB without clipping; this drops alpha, as torchvision and datasets do.
Only picture formats are tried, for any file name: PIL would start Ghostscript for an EPS.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.errors import DataError, MissingError, opt, unreadable
from saekit.harvesting.documents import refuse_pointer

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
DEEP = "bits"  # key of `image.info`: 16 when the picture was scaled to 8
_CONVERTED = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
)
# A picture with more pixels, and more pixels per byte, than this is blank or an attack; as RGB it
# would take over a GB.
_MANY_PIXELS, _PIXELS_PER_BYTE = 1 << 26, 100
_SKIP = f"remove or repair the file, or skip broken files with {opt('skip_broken', True)}"


def read_picture(source: Path | bytes, name: str | None = None, remedy: str = _SKIP) -> Image:
    """The picture in a file or in bytes. `name` (for bytes) and the hint `remedy` are for errors.

    Raises DataError when it cannot be read, has more pixels than PIL allows (178,956,970) or values
    that do not fit 8 bits, MissingError when there is no such file.
    """
    from PIL import Image, ImageOps

    # Open, with limits.
    what = name if name is not None else str(source)
    if isinstance(source, Path) and not source.is_file():
        if not source.exists():
            raise MissingError(f"there is no image at {what}", "check the path")
        raise DataError(f"{what} is not a file", "give the path of a picture")
    with unreadable(f"{what} cannot be read as an image", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata, and on sizes below the limit
        known = [name for name in FORMATS if name in _registered()]
        try:
            if isinstance(source, Path):
                refuse_pointer(source)
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=known
            )
            _refuse_bomb(
                image,
                len(source) if isinstance(source, bytes) else source.stat().st_size,
                what,
                remedy,
            )
            image.load()
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{what} is too large a picture: {str(error).split(', could')[0]}",
                f"make it smaller, or {remedy}",
            ) from error
        # The first frame, in 8 bits, upright.
        if getattr(image, "is_animated", False):
            image = image.copy()  # releases the file
        image = _eight_bits(image, what, remedy)
        bits = image.info.get(DEEP)
        image = ImageOps.exif_transpose(image)
        if bits:
            image.info[DEEP] = bits
        return image


def _refuse_bomb(image: Image, size: int, what: str, remedy: str) -> None:
    pixels = image.size[0] * image.size[1]
    if pixels > _MANY_PIXELS and size * _PIXELS_PER_BYTE < pixels:
        raise DataError(
            f"{what} is too large a picture: {pixels:,} pixels, almost all alike, from {size:,}"
            " bytes",
            f"make it smaller, or {remedy}",
        )


def _registered() -> set[str]:
    """Formats that this build of PIL supports; requesting another is an error."""
    from PIL import Image

    Image.init()
    return set(Image.OPEN)


def _eight_bits(image: Image, what: str, remedy: str) -> Image:
    """16-bit gray as 8-bit gray; other modes as they are. PIL's conversion would clip at 255
    instead of scaling."""
    if image.mode in _CONVERTED:
        return image
    import numpy as np
    from PIL import Image

    # PIL reads a 16-bit PGM in mode I, scaled to 65,535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        values = np.asarray(image).astype(np.uint32)
        scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        scaled.info = {**image.info, DEEP: 16}
        scaled.getexif().update(image.getexif())
        return scaled
    why = (
        "its values do not fit 0 to 255"
        if image.mode[0] in "IF"
        else "it is not gray, RGB, CMYK or a variant of these"
    )
    cause = f"image {what} has mode {image.mode}: {why}"
    raise DataError(cause, f"convert it to 8 bits first, or {remedy}")

"""embedded:photos and embedded:photos-grey: 32x32 crops of scikit-learn's two sample photographs,
in color and in gray.

Crops are side by side and do not overlap, so a held-out crop is new to a model, though its
photograph is not. Gray is PIL's luma of the color crop (ITU-R 601). Both sets have the same names
in the same order, so two harvests with the same seed are row-aligned: gray in, color out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE = STRIDE = 32


@functools.lru_cache(maxsize=1)
def photographs() -> dict[str, np.ndarray]:
    """'china' and 'flower', (427, 640, 3) uint8 each."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    return {
        Path(name).stem: pixels for name, pixels in zip(bunch.filenames, bunch.images, strict=True)
    }


@functools.lru_cache(maxsize=1)
def _places() -> tuple[tuple[str, int, int], ...]:
    """(photograph, top, left) of every crop."""
    return tuple(
        (name, top, left)
        for name, pixels in sorted(photographs().items())
        for top in range(0, pixels.shape[0] - SIZE + 1, STRIDE)
        for left in range(0, pixels.shape[1] - SIZE + 1, STRIDE)
    )


def names() -> list[str]:
    """'china-016-032': the photograph, and the pixel row and column of the crop's corner."""
    return [f"{name}-{top:03d}-{left:03d}" for name, top, left in _places()]


def image(index: int) -> Image.Image:
    """Crop `index` in mode 'RGB', 32x32."""
    from PIL import Image

    name, top, left = _places()[index]
    return Image.fromarray(photographs()[name][top : top + SIZE, left : left + SIZE])


def grey_image(index: int) -> Image.Image:
    """The same crop in mode 'L'."""
    return image(index).convert("L")


def label(index: int) -> str:
    return _places()[index][0]


def content() -> list[str]:
    """The pixels, for a digest; the decoder of the photographs may change between versions of
    PIL."""
    return [pixels.tobytes().hex() for _, pixels in sorted(photographs().items())]

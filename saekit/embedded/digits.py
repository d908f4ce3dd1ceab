"""embedded:digits: scikit-learn's 1,797 handwritten digits as images, 8x8 gray pixels, with their
labels.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), its test part.
Ink is stored as 0..16 and scaled to 0..255, so that 255 is full ink.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE = 8
FULL_INK = 16


@functools.lru_cache(maxsize=1)
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """(pixels (1797, 8, 8) uint8, labels (1797,) int64)."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = np.rint(bunch.images * (255 / FULL_INK)).astype(np.uint8)
    return pixels, bunch.target.astype(np.int64)


def count() -> int:
    return len(arrays()[0])


def image(index: int) -> Image.Image:
    """Digit `index` in mode 'L', 8x8."""
    from PIL import Image

    return Image.fromarray(arrays()[0][index])


def label(index: int) -> str:
    return str(int(arrays()[1][index]))

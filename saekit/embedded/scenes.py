"""embedded:scenes and embedded:scene-masks: handwritten digits on crops of photographs, and masks
of their pixels.

For segmentation: both sets have the same names in the same order, so two harvests with the same
seed are row-aligned, scene in, mask out. Scene i is digit i of embedded:digits, enlarged to 24x24,
somewhere on a 32x32 gray crop of embedded:photos; position, crop and ink are drawn by a hash of i,
so all machines draw the same. The ink is white or black and covers the texture with OPACITY. It is
neither always the lightest nor always the darkest part of a scene, so a threshold cannot find it;
on a texture of about the same brightness, the other ink is used. There are 520 textures for 1,797
scenes: most held-out scenes have a texture that training has seen under another digit.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from saekit.embedded import digits, photos

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE, DIGIT = photos.SIZE, 24
OPACITY = 0.6
LEAST_CONTRAST = 100  # gray levels between ink and the mean of the texture under it


@functools.lru_cache(maxsize=1)
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """(scenes, masks), both (1797, 32, 32) uint8; a mask is 255 where more than half of a pixel is
    ink, and 0 elsewhere."""
    import numpy as np

    crops = len(photos.names())
    drawn = [_scene(index, crops) for index in range(digits.count())]
    return np.stack([scene for scene, _ in drawn]), np.stack([mask for _, mask in drawn])


def _scene(index: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np
    from PIL import Image

    draw = hashlib.blake2b(f"scene:{index}".encode(), digest_size=8).digest()
    texture = np.asarray(photos.grey_image(int.from_bytes(draw[:4], "little") % crops), np.float64)
    top, left = draw[4] % (SIZE - DIGIT + 1), draw[5] % (SIZE - DIGIT + 1)
    enlarged = digits.image(index).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
    ink = np.zeros((SIZE, SIZE))
    ink[top : top + DIGIT, left : left + DIGIT] = np.asarray(enlarged, np.float64) / 255
    shade = 255.0 * (draw[6] % 2)
    if abs(shade - np.average(texture, weights=ink)) < LEAST_CONTRAST:
        shade = 255.0 - shade
    cover = OPACITY * ink
    scene = (1 - cover) * texture + cover * shade
    return np.rint(scene).astype(np.uint8), np.where(ink > 0.5, 255, 0).astype(np.uint8)


def scene(index: int) -> Image.Image:
    """Scene `index` in mode 'L', 32x32."""
    from PIL import Image

    return Image.fromarray(arrays()[0][index])


def mask(index: int) -> Image.Image:
    """Its mask in mode 'L'."""
    from PIL import Image

    return Image.fromarray(arrays()[1][index])

"""A picture as a user gives it: by the name of a file or of an image of an embedded data set, or in
memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from saekit.embedded import PREFIX, data_set, is_embedded
from saekit.errors import DataError, did_you_mean
from saekit.harvesting.memory_data import as_image
from saekit.harvesting.pictures import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image


class InMemory(Protocol):
    """A PIL image."""

    def getbands(self) -> tuple[str, ...]: ...


PictureLike = str | Path | np.ndarray | torch.Tensor | InMemory


def named_picture(name: PictureLike, remedy: str = "give another file") -> Image:
    """The picture in a file, or of an embedded data set by its number or name there
    (`embedded:digits:8`, `embedded:openmoji:crab #0`, or `crab` for the first), or one in memory as
    `as_image` takes it: a PIL image, or pixels (H,W), (H,W,C) or (C,H,W), uint8 or floats from 0 to
    1.

    `remedy` is the hint for a file that cannot be read. Raises DataError, MissingError.
    """
    if not isinstance(name, (str, Path)):
        image = as_image(name, "the image")
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    text = str(name)
    if not is_embedded(text):
        return read_picture(Path(name), remedy=remedy)
    set_name, _, which = text.removeprefix(PREFIX).partition(":")
    known = data_set(PREFIX + set_name)
    if known.modality != "image":
        raise DataError(f"{PREFIX}{set_name} holds texts", "give images")
    names = list(known.names)
    for full in (which, f"{which} #0"):  # the first of several by their common name
        if full in names:
            return known.load(names.index(full))
    if not which.isdecimal() or int(which) >= len(names):
        raise DataError(
            f"{PREFIX}{set_name} has no image {which!r}",
            f"{did_you_mean(which, names)}give a name, or a number below {len(names):,}",
        )
    return known.load(int(which))

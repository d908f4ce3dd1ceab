"""A picture by the name that a user gives it: a file, or an image of an embedded data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saekit.embedded import PREFIX, data_set, is_embedded
from saekit.errors import DataError, did_you_mean
from saekit.harvesting.pictures import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image


def named_picture(name: str | Path, remedy: str = "give another file") -> Image:
    """The picture in a file, or of an embedded data set by its number or name there
    (`embedded:digits:8`, `embedded:openmoji:crab #0`).

    `remedy` is the hint for a file that cannot be read. Raises DataError, MissingError.
    """
    text = str(name)
    if not is_embedded(text):
        return read_picture(Path(name), remedy=remedy)
    set_name, _, which = text.removeprefix(PREFIX).partition(":")
    known = data_set(PREFIX + set_name)
    if known.modality != "image":
        raise DataError(f"{PREFIX}{set_name} holds texts", "give images")
    names = list(known.names)
    if which in names:
        return known.load(names.index(which))
    if not which.isdecimal() or int(which) >= len(names):
        raise DataError(
            f"{PREFIX}{set_name} has no image {which!r}",
            f"{did_you_mean(which, names)}give a name, or a number below {len(names):,}",
        )
    return known.load(int(which))

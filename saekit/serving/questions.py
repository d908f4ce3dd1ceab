"""What a client may ask, read from the JSON of a request and checked."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from saekit.errors import UsageError, opt
from saekit.harvesting.pictures import read_picture
from saekit.intervention.doses import check_dose
from saekit.intervention.steered_text import Span
from saekit.typed import MisfitError, build

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 16 << 20  # of a request with an image; base64 takes 4/3 of its file
MOST_TEXT_BYTES = 256 << 10  # of one with a text
MOST_CHARACTERS = 20_000
MOST_NEW_TOKENS = 512
MOST_LATENTS = 32  # steered together
MOST_DOSES = 9
MOST_TARGETS = 32
MOST_FOUND = 200
ASKED = ("text", "token", "label", "near", "explained")
T = TypeVar("T")


@dataclass(frozen=True)
class TextQuestion:
    """Which latents a text activates."""

    text: str

    def __post_init__(self) -> None:
        _check_length("text", self.text)


@dataclass(frozen=True)
class SearchQuestion:
    """What `saekit.features` takes: one of text, token, label, near and explained."""

    text: str | None = None
    versus: str | None = None
    token: str | None = None
    label: str | None = None
    near: int | None = None
    explained: str | None = None
    by: str | None = None
    min_density: float | None = None
    max_density: float | None = None
    not_bos: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ASKED if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(f"give exactly one of {', '.join(ASKED)}")
        if self.versus is not None and self.text is None:
            raise UsageError("versus contrasts another text with text")
        for name in ("text", "versus", "token", "label", "explained"):
            _check_length(name, getattr(self, name) or "")

    @property
    def asked(self) -> str:
        return next(name for name in ASKED if getattr(self, name) is not None)


@dataclass(frozen=True)
class ImageQuestion:
    """Which latents are active in an image."""

    image: str
    """A file, in base64."""


@dataclass(frozen=True)
class Edits:
    """Latents that are added or ablated, as `saekit.steer` takes them."""

    latents: dict[str, float] = field(default_factory=dict)
    """Number -> strength."""
    ablate: list[int] = field(default_factory=list)
    raw: bool = False
    error: bool = True
    dose: list[float] = field(default_factory=list)
    """Strengths of the one latent, each measured beside its controls."""
    targets: list[str] = field(default_factory=list)
    """Tokens, or the class, that doses are measured on; []: those that the largest dose raises."""

    def __post_init__(self) -> None:
        if len(self.dose) > MOST_DOSES:
            raise UsageError(f"at most {MOST_DOSES} doses are measured at once")
        if not self.latents and not self.ablate:
            raise UsageError("no latent to steer", "choose one, and move its slider")
        if len(self.latents) + len(self.ablate) > MOST_LATENTS:
            raise UsageError(f"more than {MOST_LATENTS} latents to steer")
        if wrong := [name for name in self.latents if not (name.isascii() and name.isdigit())]:
            raise UsageError(f"{wrong[0][:40]!r} is not the number of a latent")
        check_dose(self.dose, self.strengths, self.ablate)
        if len(self.targets) > MOST_TARGETS:
            raise UsageError(f"at most {MOST_TARGETS} targets")
        if self.targets and not self.dose:
            raise UsageError(f"{opt('targets')} are what doses are measured on", opt("dose"))

    @property
    def strengths(self) -> dict[int, float]:
        return {int(name): value for name, value in self.latents.items()}


@dataclass(frozen=True)
class SteerText(Edits):
    """What the model writes with edits, beside what it writes without."""

    prompt: str = ""
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0
    positions: Span = "all"
    chat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_length("prompt", self.prompt)
        if self.max_new_tokens > MOST_NEW_TOKENS:
            raise UsageError(f"at most {MOST_NEW_TOKENS} tokens are written at once")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"{opt('seed', self.seed)} must be 0 or more, and below 2^32")


@dataclass(frozen=True)
class SteerImage(Edits):
    """Which class the model sees with edits, beside the one that it sees without."""

    image: str = ""
    positions: str = "all"


def read_json(body: bytes, kind: type[T]) -> T:
    """Raises UsageError for what is not JSON, or not a `kind`."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        return build(kind, value, "the request")
    except MisfitError as error:
        raise UsageError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from None


def picture(image: str) -> Image:
    """Raises UsageError for what is not base64, and DataError for what is not an image."""
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the image is not in base64") from None
    return read_picture(content, "the image", "give another file")


def _check_length(name: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"the {name} has {len(text):,} characters, at most {MOST_CHARACTERS:,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"the {name} has half a character (a lone surrogate)")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")

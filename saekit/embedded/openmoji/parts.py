"""Which parts a drawing shows: eyes, hair, hands, hearts, leaves, stars, stripes, wheels, windows
and wings. Names of emoji do not say so, a few apart.

`parts.tsv` is saekit's own, made by looking at the drawings. A line has a part, "visible" or
"unclear", a subgroup of emoji and their names, between bars; "*" stands for all of the subgroup,
"* - a | b" for all but a and b. Unclear is what can be seen either way: the stripes of a flag with
three bands, an eye of two pixels. An emoji in no line of a part does not show it.
"""

from __future__ import annotations

import functools
from pathlib import Path

from saekit.embedded.openmoji.table import table

FILE = Path(__file__).parent / "parts.tsv"
VISIBLE, UNCLEAR = "visible", "unclear"


def names_of(entry: str, subgroup: list[str]) -> list[str]:
    """The names that the last column of a line stands for."""
    listed = [name for name in entry.removeprefix("*").removeprefix(" - ").split(" | ") if name]
    if entry.startswith("*"):
        return [name for name in subgroup if name not in listed]
    return listed


@functools.lru_cache(maxsize=1)
def parts() -> dict[str, dict[str, str]]:
    """Of every part, in alphabetical order: names of emoji and VISIBLE or UNCLEAR."""
    subgroups: dict[str, list[str]] = {}
    for emoji in table():
        subgroups.setdefault(emoji.subgroup, []).append(emoji.name)
    found: dict[str, dict[str, str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        part, seen, subgroup, entry = line.split("\t")
        names = names_of(entry, subgroups[subgroup])
        found.setdefault(part, {}).update(dict.fromkeys(names, seen))
    return found

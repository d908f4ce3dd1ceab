"""The names and groups of OpenMoji's emoji, which its font does not hold.

`emoji.tsv` has a line for every emoji without a skin tone: code points, group, subgroup, name, and
the code points of its variants with a skin tone. It was written from data/openmoji.csv of OpenMoji
17.0.0 (npm package openmoji; CC BY-SA 4.0) without OpenMoji's own additions to Unicode and without
components, which are parts of other emoji: see `make_table`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "emoji.tsv"
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}


@dataclass(frozen=True)
class Emoji:
    """An emoji and its variants with a skin tone; `drawn` holds the texts of all, the emoji's own
    first."""

    name: str
    group: str
    subgroup: str
    codes: tuple[str, ...]  # "1F9D1-1F3FB-200D-1F373"

    @property
    def drawn(self) -> tuple[str, ...]:
        return tuple(
            "".join(chr(int(code, 16)) for code in codes.split("-")) for codes in self.codes
        )

    def variant_name(self, variant: int) -> str:
        """ "cook", "cook: light skin tone"."""
        tones = [TONES[code] for code in self.codes[variant].split("-") if code in TONES]
        return (
            f"{self.name}: {', '.join(f'{tone} skin tone' for tone in tones)}"
            if tones
            else (self.name)
        )


@functools.lru_cache(maxsize=1)
def table() -> tuple[Emoji, ...]:
    """In Unicode's order: smileys, people, animals, food, places, activities, objects, symbols,
    flags."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return tuple(
        Emoji(name, group, subgroup, (code, *variants.split()))
        for code, group, subgroup, name, variants in (line.split("\t") for line in lines)
    )

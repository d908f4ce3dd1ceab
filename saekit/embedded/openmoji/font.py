"""A font in which every emoji is one character.

OpenMoji's font draws sequences (a skin tone, a flag, a family) through ligatures, which need a
shaping engine; Pillow loads FriBiDi for it from the system, which slim images lack. So the
ligatures are looked up here once, and the copy of the font in memory has a character of the
private use area for each emoji. Formats: OpenType 1.9.1, cmap format 12, GSUB lookup type 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

FIRST = 0xF0000  # of the private use plane


def one_character_each(font: bytes, emoji: Sequence[str]) -> bytes:
    """The font with character FIRST + i for `emoji[i]`, and no other character.

    Raises ValueError for an emoji that the font has no glyph for.
    """
    tables = _tables(font)
    glyph_of = dict(_characters(font, tables[b"cmap"][0]))
    ligatures = dict(_ligatures(font, tables[b"GSUB"][0]))
    glyphs = [_glyph(text, glyph_of, ligatures) for text in emoji]
    return _with_table(font, b"cmap", _cmap(glyphs))


def _glyph(text: str, glyph_of: dict[int, int], ligatures: dict[tuple[int, ...], int]) -> int:
    try:
        parts = tuple(glyph_of[ord(character)] for character in text)
        return parts[0] if len(parts) == 1 else ligatures[parts]
    except KeyError:
        raise ValueError(f"the font has no glyph for {text!r}") from None


def _tables(font: bytes) -> dict[bytes, tuple[int, int]]:
    """(offset, length) of every table, and by b"at " + tag where its entry stands."""
    (count,) = struct.unpack_from(">H", font, 4)
    entries = [struct.unpack_from(">4s3L", font, 12 + 16 * i) for i in range(count)]
    return {tag: (offset, length) for tag, _, offset, length in entries}


def _characters(font: bytes, cmap: int) -> Iterator[tuple[int, int]]:
    """(code point, glyph) of the first subtable of format 12."""
    (count,) = struct.unpack_from(">H", font, cmap + 2)
    for i in range(count):
        _, _, offset = struct.unpack_from(">HHL", font, cmap + 4 + 8 * i)
        at = cmap + offset
        if struct.unpack_from(">H", font, at) == (12,):
            (groups,) = struct.unpack_from(">L", font, at + 12)
            for group in range(groups):
                first, last, glyph = struct.unpack_from(">3L", font, at + 16 + 12 * group)
                yield from ((code, glyph + code - first) for code in range(first, last + 1))
            return
    raise ValueError("the font has no table of all characters (cmap format 12)")


def _ligatures(font: bytes, gsub: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """(glyphs, the glyph of all of them) of every ligature."""
    lookups = gsub + struct.unpack_from(">H", font, gsub + 8)[0]
    for lookup in _children(font, lookups, 0):
        (kind,) = struct.unpack_from(">H", font, lookup)
        if kind != 4:
            raise ValueError(f"lookup type {kind} of the font is not a ligature")
        for subtable in _children(font, lookup, 4):
            firsts = _coverage(font, subtable + struct.unpack_from(">H", font, subtable + 2)[0])
            for first, group in zip(firsts, _children(font, subtable, 4), strict=True):
                for at in _children(font, group, 0):
                    glyph, parts = struct.unpack_from(">HH", font, at)
                    yield (first, *struct.unpack_from(f">{parts - 1}H", font, at + 4)), glyph


def _children(font: bytes, base: int, at: int) -> list[int]:
    """Where the tables stand whose count and offsets from `base` begin at `base + at`."""
    (count,) = struct.unpack_from(">H", font, base + at)
    return [base + offset for offset in struct.unpack_from(f">{count}H", font, base + at + 2)]


def _coverage(font: bytes, at: int) -> list[int]:
    kind, count = struct.unpack_from(">HH", font, at)
    if kind == 1:
        return list(struct.unpack_from(f">{count}H", font, at + 4))
    ranges = [struct.unpack_from(">3H", font, at + 4 + 6 * i) for i in range(count)]
    return [glyph for first, last, _ in ranges for glyph in range(first, last + 1)]


def _cmap(glyphs: Sequence[int]) -> bytes:
    groups = b"".join(
        struct.pack(">3L", FIRST + i, FIRST + i, glyph) for i, glyph in enumerate(glyphs)
    )
    header = struct.pack(">2H2HL", 0, 1, 3, 10, 12)  # one subtable, for all of Unicode
    return header + struct.pack(">2H3L", 12, 0, 16 + len(groups), 0, len(glyphs)) + groups


def _with_table(font: bytes, tag: bytes, content: bytes) -> bytes:
    """The font with another content of one table, which is put at its end. Checksums stay as they
    were: FreeType does not read them."""
    changed = bytearray(font)
    changed += bytes(-len(changed) % 4)
    for at in range(12, 12 + 16 * struct.unpack_from(">H", font, 4)[0], 16):
        if font[at : at + 4] == tag:
            struct.pack_into(">2L", changed, at + 8, len(changed), len(content))
    return bytes(changed) + content

"""Figures and tokens as HTML, for what is drawn without a script: the same texts that the page of
`inspect` writes (assets/format.js)."""

from __future__ import annotations

import unicodedata
from html import escape

SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
JOINERS = "\u200c\u200d"  # of letters and emoji: meant to be unseen
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # general categories of Unicode


def figure(value: float | None, digits: int = 4) -> str:
    """Four (`digits`) significant digits, with a true minus sign; whole numbers from 10,000
    (10^digits) on."""
    if value is None:
        return "–"
    size = abs(value)
    if value == 0:
        text = "0"
    elif size >= 10**digits:
        text = f"{float(f'{size:.{digits}g}'):,.0f}"
    else:
        scientific, short = f"{size:.{digits - 1}e}", f"{size:#.{digits}g}".rstrip(".")
        text = scientific if size < 1e-4 else short
    return f"−{text}" if value < 0 else text


def percent(share: float | None) -> str:
    return "–" if share is None else f"{figure(100 * share)} %"


def visible(token: str, apart: bool = False) -> str:
    """A token as HTML. What cannot be seen, or would reorder the line, is written by a sign or its
    code point. `apart`: in a list, where a space at an end is a dot."""
    if token == "":
        return _mark("∅") if apart else '<span class="part"></span>'
    if token.strip(JOINERS) == "":
        return "".join(_mark(_code_point(character)) for character in token)
    if token.strip(" ") == "":
        return _mark("·" * len(token) if len(token) <= 8 else f"·×{len(token)}")
    body = token.strip(" ") if apart else token
    ends = token.partition(body)[::2] if apart else ("", "")
    before, after = (_mark("·" * len(end)) if end else "" for end in ends)
    return before + "".join(map(_character, body)) + after


def _character(character: str) -> str:
    if character in JOINERS or unicodedata.category(character) not in UNSEEN:
        return escape(character)
    return _mark(SIGNS.get(character) or _code_point(character))


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def _mark(text: str) -> str:
    return f'<span class="unseen">{escape(text)}</span>'


def plain(text: str) -> str:
    """A name or a label as HTML, with what cannot be seen marked."""
    return "".join(map(_character, text))


def seen(text: str) -> str:
    """Only what can be seen, for an attribute."""
    return "".join(c for c in text if unicodedata.category(c) not in UNSEEN)

"""What one latent does along a text or an image, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saekit_cli.screen import figure, table

BAR = 24  # characters of the largest activation on the store
SILENT = "."


def along_lines(values: Sequence[Any], largest: float) -> str:
    """`values`: FeatureRow.values. Bars end at `largest` (where it is 0, at that of the input)."""
    return _of_text(values, largest) if isinstance(values[0], dict) else _of_image(values)


def _of_text(values: Sequence[dict[str, Any]], largest: float) -> str:
    full = largest or max(abs(each["value"]) for each in values) or 1.0
    rows = [
        [
            repr(each["token"]),
            figure(each["value"], ".4g") if each["value"] else SILENT,
            "#" * min(round(BAR * abs(each["value"]) / full), BAR),
        ]
        for each in values
    ]
    return table(["token", "act", ""], rows, left=(0, 2))


def _of_image(values: Sequence[Sequence[float]]) -> str:
    header = ["patch", *map(str, range(len(values[0])))]
    rows = [
        [str(y), *(figure(value, ".3g") if value else SILENT for value in row)]
        for y, row in enumerate(values)
    ]
    return table(header, rows)

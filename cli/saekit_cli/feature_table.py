"""The rows of `features` as a table that fits the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saekit_cli.screen import cut, figure, table

if TYPE_CHECKING:
    from saekit.inspection.feature_rows import FeatureRow, FeatureRows

GAP = 2  # columns of the terminal between two of the table
LABEL, TOKENS = 28, 20  # columns that words need, where they are as long
BY_CHANCE = "*"
AUTOMATIC = "automatic label"


@dataclass
class Column:
    name: str
    cells: list[str]
    left: bool = False
    spare: int = 0
    """Where there is no room, columns of 1 are left out first, then those of 2 ...; 0: never."""

    @property
    def width(self) -> int:
        return max(map(len, (self.name, *self.cells)))


def feature_lines(rows: FeatureRows, scored: bool, quoted: bool, width: int | None) -> list[str]:
    """The table, then what chance reaches and what was left out. Rows that are ordered by a figure
    end where chance begins.

    scored: with the scores. quoted: `at` is a token. width: columns of the terminal; None: lines
    are as long as they have to be.
    """
    shown = [row for row in rows if rows.by not in (row.below_chance or ())]
    columns = [
        *_values(shown, quoted),
        *([Column("score", [figure(row.score, ".2f") for row in shown])] if scored else []),
        *_figures(shown, rows.by),
        _labels(shown),
        Column("fires most on", ["  ".join(map(repr, row.tokens)) for row in shown], left=True),
    ]
    left_out = [] if width is None else fit(columns, width)
    lines = _chances(rows, len(shown))
    if any(cell.endswith(BY_CHANCE) for column in columns for cell in column.cells):
        lines.append(f"{BY_CHANCE} no larger than what the best latent reaches by chance")
    if left_out and shown:
        lines.append(f"no room for {', '.join(left_out)}: a wider terminal shows them")
    if not shown:
        return lines
    left = [place for place, column in enumerate(columns) if column.left]
    cells = list(zip(*(column.cells for column in columns)))
    return [table([column.name for column in columns], cells, left), *lines]


def fit(columns: list[Column], width: int) -> list[str]:
    """Leave out and shorten columns, the last two of which are words, until they fit; the names of
    those that are left out."""
    left_out = []
    label, tokens = columns[-2:]
    least = min(label.width, LABEL) + min(tokens.width, TOKENS)
    room = lambda: width - sum(column.width + GAP for column in columns[:-2]) - GAP
    for column in sorted((c for c in columns if c.spare), key=lambda c: c.spare):
        if room() >= least:
            break
        columns.remove(column)
        left_out.append(column.name)
    enough = min(label.width, LABEL, room() - len(tokens.name))
    of_label = max(room() - tokens.width, enough, len(label.name))
    for column, columns_left in ((label, of_label), (tokens, room() - min(of_label, label.width))):
        widest = max(columns_left, len(column.name))
        column.cells = [cut(cell, widest) for cell in column.cells]
    return left_out


def _values(rows: list[FeatureRow], quoted: bool) -> list[Column]:
    """What every question has; `at` stands beside act, which it is about."""
    at = [(repr(row.at) if quoted else row.at) if row.at else "" for row in rows]
    return [
        Column("feature", [str(row.index) for row in rows], left=True),
        Column("act", [figure(row.act, ".4g") for row in rows]),
        *([Column("at", at, left=True)] if any(at) else []),
        Column("max", [figure(row.max, ".4g") for row in rows], spare=1),
        Column("density", [figure(row.density, ".3%") for row in rows]),
    ]


def _figures(rows: list[FeatureRow], by: str) -> list[Column]:
    """Those of the question. What chance reaches is one for all, below the table."""
    from saekit.inspection.search import CHANCES

    every = (rows[0].figures or {}) if rows else {}
    names = [name for name in every if not name.endswith("chance")]
    columns = []
    for name in names:
        marked = [name in (row.below_chance or ()) for row in rows]
        cells = [figure((row.figures or {}).get(name), ".3g") for row in rows]
        if any(marked):
            cells = [cell + (BY_CHANCE if mark else " ") for cell, mark in zip(cells, marked)]
        # what orders the rows stays, and what has a chance goes last
        tested = name in CHANCES
        spare = 0 if name == by or by not in names else 3 if tested else 2
        columns.append(Column(name, cells, spare=spare))
    return columns


def _labels(rows: list[FeatureRow]) -> Column:
    """What each latent is and raises. Who says so is in the name of the column where it is the same
    for all, else beside the label."""
    automatic = [row.labeled_by == "automatic" for row in rows if row.label]
    alike = bool(automatic) and all(automatic)
    cells = []
    for row in rows:
        label = row.label or ""
        if row.labeled_by == "automatic" and not alike:
            label += " (automatic)"
        raises = f"raises {row.raises!r}" if row.raises else ""
        cells.append(", ".join(filter(None, (label, raises))))
    return Column(AUTOMATIC if alike else "label", cells, left=True)


def _chances(rows: FeatureRows, shown: int) -> list[str]:
    lines = []
    for name, value in ((rows[0].figures or {}) if rows else {}).items():
        if name.endswith("chance"):
            lines.append(f"{name} {figure(value, '.3g')}")
    if hidden := len(rows) - shown:
        lines.append(
            f"{hidden} of {len(rows)} latents not shown: no larger {rows.by} than by chance"
        )
    return lines

"""What the user sees: progress on stderr (a bar on a terminal, else a line every ten seconds), data
on stdout."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from saekit.display import finite
from saekit.errors import spelled
from saekit_cli import interrupts
from saekit_cli.flags import flag

if TYPE_CHECKING:
    from saekit.types import Progress

PLAIN_SECONDS = 10.0
REDRAW_SECONDS = 0.1
BAR = 24  # columns
GAP = "  "
MORE = "…"


def take_any_encoding() -> None:
    """What stdout and stderr cannot encode is written as \\xNN or \\uNNNN: a locale must not end a
    command whose work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """One JSON value on stdout; dataclasses become objects, NaN and infinity null."""
    typer.echo(json.dumps(finite(_plain(value)), allow_nan=False))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def message(word: str, text: str) -> None:
    typer.echo(f"{word:<8}{text}", err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Aligned columns; those numbered in `left` are left-aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cut(text: str, width: int) -> str:
    """At most `width` characters, the last of which says that there were more."""
    return text if len(text) <= width else text[: max(width - 1, 0)].rstrip() + MORE


def columns_of_output() -> int | None:
    """Of the terminal that stdout goes to, or $COLUMNS; None for a file or a pipe, where lines may
    be as long as they are."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None or value != value else format(value, form)


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def _columns() -> int:
    """Of the terminal of stderr, where the bar is drawn."""
    try:
        return (
            os.get_terminal_size(sys.stderr.fileno()).columns or shutil.get_terminal_size().columns
        )
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


class Reporter:
    """A callback for the library. One phase at a time; leaving its `with` block ends the line. A
    Ctrl-C that Python dropped is raised here.

    A terminal has a bar, redrawn every tenth of a second; anything else is a log, which gets a line
    when the last one, of whichever phase, is ten seconds old: a command of a minute writes six.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar = sys.stderr.isatty() and not quiet
        self.phase = ""
        self.began = 0.0
        self.last = 0.0 if self.bar else time.monotonic()
        self.first = 0
        self.open_line = False

    def __call__(self, p: Progress) -> None:
        interrupts.check()
        if p.raw_message:
            self.close()
            message("note", spelled(p.raw_message, flag))
            return
        now = time.monotonic()
        if p.phase != self.phase:
            self.close()
            self.phase, self.began, self.first = p.phase, now, p.done
            if self.bar:
                self.last = 0.0
        finished = self.bar and p.total and p.done >= p.total
        wait = REDRAW_SECONDS if self.bar else PLAIN_SECONDS
        if self.quiet or (now - self.last < wait and not finished):
            return
        self.last = now
        # One column short: some terminals go to the next line when the last is written. A line
        # that wraps is never erased.
        text = self._line(p, now, max(_columns() - 1, 1))
        if self.bar:
            typer.echo(f"\r\x1b[2K{text}", err=True, nl=False)
            self.open_line = True
        else:
            typer.echo(text, err=True)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.open_line:
            typer.echo("", err=True)
        self.open_line, self.phase = False, ""

    def _line(self, p: Progress, now: float, width: int) -> str:
        """The phase and how far it is, then as much of the rest as there is room for: the time that
        is left, the figures, the speed, the bar."""
        from saekit.progress import FIGURES

        count = f"{p.done:,}/{p.total:,} {p.unit}" if p.total else f"{p.done:,} {p.unit}"
        rate = p.figures.get("rows_per_s") or (p.done - self.first) / max(now - self.began, 1e-9)
        filled = int(BAR * p.done / p.total) if p.total else 0
        left = int((p.total - p.done) / rate) if rate > 0 and p.done < p.total else 0
        # all parts in the order of the line, with the order in which they find room
        parts = [
            (0, f"{p.phase:<8}"),
            (9, f"{'#' * filled}{'-' * (BAR - filled)}" if self.bar and p.total else ""),
            (1, count),
            *(
                (3 + place, f"{name} {p.figures[name]:{form}}")
                for place, (name, form) in enumerate(FIGURES.items())
                if p.figures.get(name) is not None
            ),
            (8, f"{rate:,.0f} {p.unit}/s" if rate >= 1 else ""),
            (2, f"eta {left // 60}:{left % 60:02d}" if left else ""),
        ]
        shown: set[int] = set()
        room = width + len(GAP)
        for place, text in sorted(parts):
            if text and (len(text) + len(GAP) <= room or place == 0):
                room -= len(text) + len(GAP)
                shown.add(place)
        return GAP.join(text for place, text in parts if place in shown)[:width]

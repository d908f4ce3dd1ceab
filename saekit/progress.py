"""A progress bar for whoever watches: in a notebook, or at an interactive prompt on a terminal.

The library itself only calls back with a Progress (saekit.types) and prints nothing. The functions
of the package `saekit` pass such a callback on; where none is given and the session is interactive,
it is `Bars`. Scripts, pipes and tests stay silent.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from saekit.types import Progress

FIGURES = {"loss": ".4g", "fvu": ".4f", "l0": ".1f", "dead": ".1%"}  # beside the bar
SHORT_COUNT = 10_000  # from here on 12.3k instead of 12345

Callback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback that shows nothing."""


def is_interactive() -> bool:
    """Whether somebody sees a bar: in a notebook, or at Python's or IPython's prompt on a
    terminal."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return False
    return in_notebook() or (hasattr(sys, "ps1") and _is_terminal(sys.stderr))


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook, which shows what is written to stderr."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None under pythonw; a closed stream
        return False


@contextmanager
def reporter(progress: Callback | bool | None = None) -> Iterator[Callback]:
    """The callback for what the caller gave as `progress`: itself; True a bar, False nothing, None
    a bar where somebody sees it. Bars, which also show downloads, end with the block."""
    asked = is_interactive() if progress is None else progress
    if callable(asked):
        yield asked
    elif not asked or importlib.util.find_spec("tqdm") is None:
        yield silent
    else:
        from saekit.interop.hub import reporting

        with Bars() as bars, reporting(bars):
            yield bars


def _width() -> dict[str, Any]:
    """How wide a bar is: as the terminal, also when its size changes. Some terminals say that they
    have no columns and lines at all."""
    try:
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            size = shutil.get_terminal_size()
            return {"ncols": size.columns, "nrows": max(size.lines, 2)}
    except (OSError, ValueError):  # no terminal: a notebook, a file
        pass
    return {"dynamic_ncols": True}


class Bars:
    """A callback: one bar of tqdm for each phase, a widget where the notebook has these; messages
    are lines between the bars. TQDM_DISABLE=1 turns the bars off."""

    def __init__(self) -> None:
        self.phase, self.bar = "", None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, p: Progress) -> None:
        if p.message:
            self._tqdm().write(f"note    {p.message}", file=sys.stderr)
            return
        if self.bar is None or (p.phase, p.total) != (self.phase, self.bar.total or 0):
            self.close()
            self._open(p)
        assert self.bar is not None
        shown = {n: p.figures.get(n) for n in FIGURES}
        figures = {n: format(value, FIGURES[n]) for n, value in shown.items() if value is not None}
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(p.done - self.bar.n)
        if p.total and p.done >= p.total:
            self.close()

    def _open(self, p: Progress) -> None:
        self.phase = p.phase
        self.bar = self._tqdm()(
            desc=p.phase,
            total=p.total or None,
            initial=p.done if p.done < (p.total or p.done) else 0,
            unit="B" if p.unit == "bytes" else f" {p.unit}",
            unit_scale=max(p.total, p.done) >= SHORT_COUNT,
            file=sys.stderr,
            **_width(),
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.refresh()
            self.bar.close()
        self.phase, self.bar = "", None

    def _tqdm(self) -> Any:
        with warnings.catch_warnings():  # about widgets that are not installed
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

        return tqdm

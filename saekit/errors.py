"""What a user can get wrong, and the exit status that says so.

One exception class carries the cause, the next step and the exit status; the subclasses only fix
the status (DESIGN: command line). The library raises them; the CLI prints `error <cause>` and `try
<hint>` and exits. Programmers' mistakes are asserts.

A text names an option with `opt("k", 32)`, which a caller reads in the caller's language: Python
here (`k=32`), flags on the command line (`--k 32`), the estimator's parameters there. `spelled` is
the one place that does it.
"""

from __future__ import annotations

import difflib
import json
import numbers
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

# An option inside a text: its name, then each value as ASCII JSON. These characters belong to
# nobody (a private-use plane of Unicode).
_BEGIN, _VALUE, _END = "\U000f5ae0", "\U000f5ae1", "\U000f5ae2"
_MARK = re.compile(f"{_BEGIN}(\\w+)((?:{_VALUE}[^{_BEGIN}{_VALUE}{_END}]*)*){_END}")
# (name of an option, its values, of which there may be none) -> how a front end writes it
Style = Callable[[str, list[Any]], str]


def opt(name: str, *values: Any) -> str:
    """The option `name`, set to a value or to any of several, for use inside the text of an error,
    hint or message.

    `name` is the Python parameter. Values are numbers, booleans, None, texts, or sequences of
    these; anything else is taken as its text. A name that no parameter can have, from a user's
    file, stands as it is.
    """
    if not name.isidentifier():
        return name
    return _BEGIN + name + "".join(_VALUE + json.dumps(_plain(value)) for value in values) + _END


def spelled(text: str, style: Style | None = None) -> str:
    """`text` with its options as a front end writes them, by default as Python."""
    return _MARK.sub(
        lambda mark: (style or keyword)(
            mark[1], [json.loads(value) for value in mark[2].split(_VALUE)[1:]]
        ),
        text,
    )


def keyword(name: str, values: list[Any]) -> str:
    """As in a Python call: `k`, `k=32`, `schedule="linear" or "cosine"`."""
    return f"{name}={' or '.join(map(literal, values))}" if values else name


def literal(value: Any) -> str:
    """A value of an option as Python source, numbers in short."""
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return f"({', '.join(map(literal, items))}{',' if len(items) == 1 else ''})"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        items = cast("list[Any] | tuple[Any, ...]", value)
        return [_plain(item) for item in items]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


class SaekitError(Exception):
    """A user-facing failure. `str(error)` is the cause; `hint` is the next step to try (may be
    empty). Both read as Python.

    `option` is the name of the option that is wrong: the one that the cause begins with unless told
    otherwise, or None. `cause` and `remedy` are the two texts with their options still marked, for
    an error that wraps this one.
    """

    exit_status = 1

    def __init__(self, cause: str, hint: str = "", *, option: str | None = None) -> None:
        super().__init__(spelled(cause))
        self.cause, self.remedy = cause, hint
        first = _MARK.match(cause)
        self.option = option or (first[1] if first else None)

    @property
    def hint(self) -> str:
        return spelled(self.remedy)

    def spelled(self, style: Style) -> tuple[str, str]:
        """(cause, hint) for another front end."""
        return spelled(self.cause, style), spelled(self.remedy, style)


class UsageError(SaekitError):
    """Wrong by the command line alone."""

    exit_status = 2


class DataError(SaekitError):
    """A bad config file, input or data, known once these are read."""

    exit_status = 3


class MissingError(SaekitError):
    """A model, dataset, file or network connection is not there."""

    exit_status = 4


class BackendError(SaekitError):
    """The hardware or the kernel backend cannot do what was asked."""

    exit_status = 5


class NumericsError(SaekitError):
    """NaN, inf or divergence."""

    exit_status = 6


class QualityGateError(SaekitError):
    """A figure missed the bound that the user set."""

    exit_status = 7


@contextmanager
def unreadable(cause: str, hint: str) -> Generator[None]:
    """Around the reader of a foreign format: whatever it raises on a damaged file becomes a
    DataError `cause: reason`, chained.

    Such readers (PIL, NumPy, pyarrow, gguf) raise nearly every class there is, so this names none.
    """
    try:
        yield
    except SaekitError:
        raise
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        if isinstance(error, MemoryError):
            reason = "it needs more memory than there is"
        raise DataError(f"{cause}: {reason}", hint) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'did you mean kl? ' for a near miss of a known name, else ''."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def check_choice(option: str, value: object, known: Iterable[str]) -> None:
    """Raise UsageError unless `value`, which the caller gave for `option`, is one of `known`. Files
    give anything for a word."""
    known = list(known)
    if value not in known:
        guess = did_you_mean(value, known) if isinstance(value, str) else ""
        raise UsageError(f"{opt(option, value)}: {guess}choose {', '.join(known)}")

"""Errors for users, and their exit status.

One exception class carries the cause, the next step and the exit status; the subclasses only set
the status (docs/design.md). The library raises them; the CLI prints `error <cause>` and `try
<hint>` and exits. Programmers' mistakes are asserts.

A text names an option with `opt("k", 32)`, which every caller reads in its own language: Python
here (`k=32`), flags on the command line (`--k 32`), parameters in the estimator. `spelled` does the
translation.
"""

from __future__ import annotations

import difflib
import json
import numbers
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

# An option inside a text: its name, then its values as ASCII JSON, between characters of a
# private-use plane of Unicode.
_BEGIN, _VALUE, _END = "\U000f5ae0", "\U000f5ae1", "\U000f5ae2"
_MARK = re.compile(f"{_BEGIN}(\\w+)((?:{_VALUE}[^{_BEGIN}{_VALUE}{_END}]*)*){_END}")
# (name of an option, its values, possibly none) -> how a front end writes it
Style = Callable[[str, list[Any]], str]


def opt(name: str, *values: Any) -> str:
    """The option `name`, set to a value or to any of several, for use inside the text of an error,
    hint or message.

    `name` is the Python parameter. Values are numbers, booleans, None, strings, or sequences of
    these; anything else is converted to a string. A name that cannot be a parameter, from a user's
    file, is returned as it is.
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
    """In the style of a Python call: `k`, `k=32`, `schedule="linear" or "cosine"`."""
    return f"{name}={' or '.join(map(literal, values))}" if values else name


def literal(value: Any) -> str:
    """A value of an option as Python source, with short numbers."""
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
    """A user-facing failure. `message` is what is wrong, `hint` the next step to try (may be
    empty), and `str(error)`, with which a traceback ends, both. All write options as Python.

    `option` is the name of the option that is wrong, by default the one that the cause begins with,
    or None. `cause` and `remedy` are the two texts with their options still marked, for an error
    that wraps this one.
    """

    exit_status = 1

    def __init__(self, cause: str, hint: str = "", *, option: str | None = None) -> None:
        super().__init__(spelled(cause))
        self.cause, self.remedy = cause, hint
        first = _MARK.match(cause)
        self.option = option or (first[1] if first else None)

    def __str__(self) -> str:
        return f"{self.message}\ntry: {self.hint}" if self.remedy else self.message

    @property
    def message(self) -> str:
        return spelled(self.cause)

    @property
    def hint(self) -> str:
        return spelled(self.remedy)

    def spelled(self, style: Style) -> tuple[str, str]:
        """(cause, hint) for another front end."""
        return spelled(self.cause, style), spelled(self.remedy, style)


class UsageError(SaekitError):
    """Wrong arguments, for any data."""

    exit_status = 2


class DataError(SaekitError):
    """A bad config file, input or data."""

    exit_status = 3


class MissingError(SaekitError):
    """A model, dataset, file or network connection is missing."""

    exit_status = 4


class BackendError(SaekitError):
    """The hardware or the kernel backend cannot do what was requested."""

    exit_status = 5


class NumericsError(SaekitError):
    """NaN, inf or divergence."""

    exit_status = 6


class QualityGateError(SaekitError):
    """A metric missed the bound that the user set."""

    exit_status = 7


def message_of(error: BaseException) -> str:
    """What is wrong, without the hint, for use inside another text."""
    return error.message if isinstance(error, SaekitError) else str(error)


@contextmanager
def unreadable(cause: str, hint: str) -> Generator[None]:
    """Around the reader of a foreign format: any error on a damaged file becomes a DataError
    `cause: reason`, chained.

    Such readers (PIL, NumPy, pyarrow, gguf) raise errors of nearly every class, so all are caught.
    """
    try:
        yield
    except SaekitError:
        raise
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        if isinstance(error, MemoryError):
            reason = "not enough memory"
        raise DataError(f"{cause}: {reason}", hint) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'did you mean kl? ' when `word` is close to a known name, else ''."""
    near = nearest(word, known)
    return f"did you mean {near}? " if near else ""


ALIKE = 0.6  # how much a name must be like another one's to stand for a mistyped option, of 1


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like `word`, whatever its case, hyphens and underscores; None where none
    is as much like it as `cutoff` says, of 1."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(_letters(name), name)
    near = difflib.get_close_matches(_letters(word), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def _letters(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def check_choice(option: str, value: object, known: Iterable[str]) -> None:
    """Raise UsageError unless `value`, given for `option`, is one of `known`. A value from a file
    may have any type."""
    known = list(known)
    if value not in known:
        guess = did_you_mean(value, known) if isinstance(value, str) else ""
        raise UsageError(f"{opt(option, value)}: {guess}choose {', '.join(known)}")

"""What a user can get wrong, and the exit status that says so.

One exception class carries the cause, the next step and the exit status; the subclasses only fix the status (DESIGN: command
line). The library raises them; the CLI prints `error  <cause>` and `try    <hint>` and exits. Programmers' mistakes are asserts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SaekitError(Exception):
    """A user-facing failure. `str(error)` is the cause; `hint` is the next step to try (may be empty)."""

    exit_status = 1

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause)
        self.hint = hint


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
def unreadable(cause: str, hint: str) -> Iterator[None]:
    """Around the reader of a foreign format: whatever it raises on a damaged file becomes a DataError `cause: reason`, chained.

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


def check_choice(flag: str, value: object, known: Iterable[str]) -> None:
    """Raise UsageError unless `value` is one of `known`; `flag` is how the user spells it. Files give anything for a word."""
    known = list(known)
    if value not in known:
        guess = did_you_mean(value, known) if isinstance(value, str) else ""
        raise UsageError(f"{flag} {value}: {guess}choose {', '.join(known)}")

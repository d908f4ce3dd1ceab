"""Errors of the operating system in the user's words: a full disk, a folder without permission, a
name that is too long."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from saekit.errors import DataError, opt

_HINTS = {
    errno.ENOSPC: (
        f"free some space or choose an OUT on another disk; then {opt('resume', True)}, if the"
        " command has that option"
    ),
    errno.EDQUOT: (
        f"free some of your quota or choose an OUT on another disk; then {opt('resume', True)}, if"
        " the command has that option"
    ),
    errno.EROFS: "choose an OUT on a writable file system",
    errno.EACCES: "choose another OUT, or change the permissions of the folder",
    errno.EPERM: "choose another OUT, or change the permissions of the folder",
    errno.ENAMETOOLONG: "choose an OUT with a shorter name",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "close other programs: the system has no file handles left",
    errno.EFBIG: (
        f"a smaller {opt('shard_mb')}, or another file system: this one limits the size of a file"
    ),
    errno.EIO: "check the disk: it reports a read or write error",
}


def user_error(error: OSError, path: Path | str | None = None) -> DataError:
    """The DataError for a system error about `path`, by default the file in the error."""
    number = error.errno if error.errno is not None else errno.EIO
    subject = str(path or error.filename or "the file")
    return DataError(
        f"{subject}: {os.strerror(number)}",
        _HINTS.get(number, "check the path, the disk and its permissions"),
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise DataError when the system refuses to read `path` or a file below it."""
    _need_path(path)
    try:
        yield
    except OSError as error:
        number = error.errno if error.errno is not None else errno.EIO
        hint = (
            _HINTS[number]
            if number in (errno.EMFILE, errno.ENFILE, errno.EIO)
            else "check the path and its permissions"
        )
        raise DataError(
            f"{error.filename or path} cannot be read: {os.strerror(number)}", hint
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DataError when the system refuses to write `path`. safetensors reports a full disk only
    in the text of its error."""
    _need_path(path)
    try:
        yield
    except OSError as error:
        raise user_error(error, path) from error
    except SafetensorError as error:
        text = str(error)
        number = next(
            (n for n in _HINTS if os.strerror(n) in text or f"os error {n}" in text), None
        )
        if number is None:
            raise
        raise user_error(OSError(number, os.strerror(number)), path) from error


def _need_path(path: Path | str) -> None:
    if "\0" in str(path):
        cause = f"{str(path)!r} is not a path: it contains a NUL character"
        raise DataError(cause, "check the path")

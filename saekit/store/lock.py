"""One command writes a folder at a time: flock on a file beside the folder, which the system
releases when its holder dies.

The file names its holder, for error messages. It is beside the folder rather than in it, because
`overwrite` exchanges the folder itself; it is inside only when the parent cannot be written.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saekit.errors import DataError
from saekit.store.oserrors import writing
from saekit.typed import as_type

IN_FOLDER = ".lock"  # the name of the file inside the folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (absolute, resolved). Raises DataError, with process and command,
    when another command has it."""
    path = _path(folder)
    with writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, folder)
    try:
        with writing(path):
            os.truncate(descriptor, 0)
            os.pwrite(
                descriptor, json.dumps({"pid": os.getpid(), "command": _command()}).encode(), 0
            )
        yield
    finally:
        # Before releasing it: another process that opens the name now creates a new file.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def holder(folder: Path) -> str | None:
    """'process 123 (saekit train ...)': the command that is writing `folder`, if any."""
    path = _path(Path(os.path.realpath(folder)))
    try:
        # O_NONBLOCK: a FIFO of that name would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _acquire(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = _named(descriptor)
            os.close(descriptor)
            raise DataError(
                f"{folder} is being written by {name}",
                "wait until it finishes, stop it, or choose another OUT",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise DataError(
                f"{path.parent} does not support file locks ({error.strerror}), so saekit cannot"
                " tell whether another command is writing there",
                "choose an OUT on a file system with locks",
            ) from None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it after we opened it and before we locked it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _path(folder: Path) -> Path:
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    return (
        folder.with_name(f".{folder.name}.lock")
        if os.access(parent, os.W_OK)
        else folder / IN_FOLDER
    )


def _named(descriptor: int) -> str:
    try:
        lock = as_type(json.loads(os.pread(descriptor, 10_000, 0)), dict[str, Any], "lock")
        return (
            f"process {as_type(lock.get('pid'), int, 'pid')}"
            f" ({as_type(lock.get('command'), str, 'command')})"
        )
    except (ValueError, RecursionError, OSError):
        return "another process"  # which has not written its name yet


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]

"""Kill a command before each of its file operations, or at any moment: what kill -9, a crash or a
preemption can leave."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

# Events of Python's audit hooks, raised before the operation:
# https://docs.python.org/3/library/audit_events.html
OPERATIONS = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "ctypes.dlopen",
}


def killed_before(operation: int, folder: Path, command: Callable[[], object]) -> bool:
    """Run `command` in its own process, which is killed before its n-th file operation under
    `folder`. Returns whether it got that far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event == "open":
                path, _mode, flags = arguments
                counts = isinstance(path, str | bytes) and flags & (
                    os.O_WRONLY | os.O_RDWR | os.O_CREAT
                )
            else:
                path, counts = arguments[0] if arguments else "", event in OPERATIONS
            under = isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(
                str(folder)
            )
            if counts and (event == "ctypes.dlopen" or under):
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        _run_and_exit(command, lambda: sys.addaudithook(hook))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"the command failed by itself before operation {operation}"
    return False


def killed_after(file: Path, seconds: float, command: Callable[[], object]) -> None:
    """Run `command` in its own process and kill it `seconds` after `file` appears, which may be in
    the middle of an operation."""
    child = os.fork()
    if child == 0:
        _run_and_exit(command)
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert file.exists() and os.WIFSIGNALED(status), "the command ended before it could be killed"


def _run_and_exit(
    command: Callable[[], object], prepare: Callable[[], None] = lambda: None
) -> NoReturn:
    """The whole life of a forked process, which must not return into the test."""
    status = 1
    try:
        torch.set_num_threads(1)  # a pool of threads does not survive the fork
        prepare()
        command()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

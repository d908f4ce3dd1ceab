"""Ctrl-C, remembered. Python drops a KeyboardInterrupt that arrives in a callback of its own, as
while it imports, and an interrupted import may end in an error of another kind. So it is asked
later whether there was one.

This module imports next to nothing, so that it is there before the rest of the command.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from types import FrameType

_seen = False


def remember() -> None:
    """From now on, unless the process ignores SIGINT or handles it in another way."""
    with suppress(ValueError):  # not the main thread: signals are not ours
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def seen() -> bool:
    """Whether there was one since the last `forget`."""
    return _seen


def forget() -> None:
    """It was answered."""
    global _seen
    _seen = False


def check() -> None:
    """Raise the KeyboardInterrupt that was dropped; one that is being handled was not."""
    if _seen and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    signal.default_int_handler(number, frame)

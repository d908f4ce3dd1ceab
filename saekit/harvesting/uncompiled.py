"""While hooks act on a model, code that torch.compile has compiled runs uncompiled: compiled code
does not check for hooks that are added later, and would run without them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock, _stance = threading.Lock(), ExitStack()
_holders = 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """The stance is that of the whole process, so the first that enters sets it and the last that
    leaves restores it, in whatever order they end."""
    global _holders
    with _lock:
        if not _holders:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _stance.close()

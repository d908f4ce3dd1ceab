"""How much memory a step takes beyond what its model holds all the time."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from saekit_kernels.memory import LARGEST_BLOCK, M_MMAP_THRESHOLD, keep_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): what resets VmHWM
OWN_PAGES = 1 << 18  # bytes; the system takes back larger blocks as soon as they are freed


def peak_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """By how many MB (1e6 bytes) memory grows at most during one call: of the device, or on a CPU
    resident pages of the process, whichever thread or allocator they belong to. None where the
    system does not say."""
    if device.type == "cuda":
        return _peak_on_device(call, device)
    if not sys.platform.startswith("linux"):
        return None
    with _freed_at_once():
        try:
            CLEAR.write_text(RESET_PEAK)
            before = _resident("VmRSS")
            call()
            return round((_resident("VmHWM") - before) / 1e6, 1)
        except OSError:
            return None


@contextmanager
def _freed_at_once() -> Iterator[None]:
    """Undoes `keep_freed_memory` for a while: pages that the process keeps would hide what a call
    takes, and holes between its blocks would add to it."""
    libc = ctypes.CDLL(None)
    if not keep_freed_memory():
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, OWN_PAGES)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)


def _resident(name: str) -> int:
    """Bytes."""
    line = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert line is not None, f"{STATUS} has no {name}"
    return 1024 * int(line[1])


def _peak_on_device(call: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    constant = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - constant) / 1e6, 1)

"""Which device to run on."""

from __future__ import annotations

import torch

from saekit.errors import BackendError, UsageError, opt

CPU = torch.device("cpu")


def pick_device(name: str) -> torch.device:
    """The torch device of that name, which the calling thread then uses (`use_device`); `auto` is
    CUDA if torch finds a device. Raises UsageError for an unknown name, BackendError for CUDA
    without such a device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{opt('device', name)}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"{opt('device', name)}: torch sees no CUDA device", opt("device", "cpu")
        )
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise BackendError(
            f"{opt('device', name)}: torch sees {count} CUDA devices", opt("device", "cuda:0")
        )
    use_device(device)
    return device


def use_device(device: torch.device) -> None:
    """Make a numbered CUDA device the current one of the calling thread. Triton launches kernels on
    the current device, wherever the tensors are; every new thread begins with the first one."""
    numbered = device.index is not None  # pyright: ignore[reportUnnecessaryComparison]
    if device.type == "cuda" and numbered:
        torch.cuda.set_device(device)

"""Which device to run on."""

from __future__ import annotations

import torch

from saekit.errors import BackendError, UsageError, opt


def pick_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is CUDA if torch finds a device. Raises UsageError for
    an unknown name, BackendError for CUDA without a device."""
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
    return device

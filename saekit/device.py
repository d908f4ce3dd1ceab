"""Which device to run on."""

from __future__ import annotations

import torch

from saekit.errors import BackendError, UsageError, opt


def pick_device(asked: str) -> torch.device:
    """`auto` is CUDA where torch sees it. Raises UsageError for what is no device, BackendError for
    one that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(f"{opt('device', asked)}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"{opt('device', asked)}: torch sees no CUDA device", opt("device", "cpu")
        )
    return device

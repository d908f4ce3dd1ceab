"""Which implementation runs, chosen once and told to the caller; nothing falls back silently."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

VARIABLE = "SAEKIT_KERNELS"  # what `auto` means: torch | triton


@dataclass(frozen=True)
class Backend:
    name: str  # triton | torch
    reason: str


def resolve_backend(asked: str, device_type: str) -> Backend:
    """auto: the Triton kernels on a CUDA device, torch elsewhere; the variable SAEKIT_KERNELS
    stands in for auto.

    Raises ValueError for an unknown name, RuntimeError when what was asked for cannot run on this
    device.
    """
    why = "asked for"
    if asked == "auto" and os.environ.get(VARIABLE, "auto") != "auto":
        asked, why = os.environ[VARIABLE], f"{VARIABLE} is set"
    if asked not in ("auto", "triton", "torch"):
        raise ValueError(f"backend {asked}: choose auto, triton, torch")
    installed = importlib.util.find_spec("triton") is not None
    if asked == "auto":
        if device_type == "cuda" and installed:
            return Backend("triton", "the device is a GPU")
        return Backend(
            "torch",
            (
                "triton is not installed"
                if device_type == "cuda"
                else f"Triton kernels do not run on {device_type}"
            ),
        )
    if asked == "triton":
        if not installed:
            raise RuntimeError("triton is not installed")
        if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            hint = "" if why == "asked for" else f" ({why})"
            raise RuntimeError(
                f"Triton kernels need a CUDA device, not {device_type}{hint}; TRITON_INTERPRET=1"
                " interprets them, slowly"
            )
    return Backend(asked, why)

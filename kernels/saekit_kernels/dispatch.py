"""Which implementation runs: chosen once and reported to the caller; nothing falls back
silently."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

VARIABLE = "SAEKIT_KERNELS"  # what `auto` means: torch | triton


@dataclass(frozen=True)
class Backend:
    name: str  # triton | torch
    reason: str


def resolve_backend(requested: str, device_type: str) -> Backend:
    """auto: the Triton kernels on a CUDA device, torch elsewhere; the environment variable
    SAEKIT_KERNELS overrides auto.

    Raises ValueError for an unknown name, RuntimeError when the requested backend cannot run on
    this device.
    """
    why = "requested"
    if requested == "auto" and os.environ.get(VARIABLE, "auto") != "auto":
        requested, why = os.environ[VARIABLE], f"{VARIABLE} is set"
    if requested not in ("auto", "triton", "torch"):
        raise ValueError(f"backend {requested}: choose auto, triton, torch")
    installed = importlib.util.find_spec("triton") is not None
    if requested == "auto":
        if device_type == "cuda" and installed:
            return Backend("triton", "the device is a GPU")
        if device_type == "cuda":
            return Backend("torch", "triton is not installed")
        return Backend("torch", f"Triton kernels do not run on {device_type}")
    if requested == "triton":
        if not installed:
            raise RuntimeError("triton is not installed")
        if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            hint = "" if why == "requested" else f" ({why})"
            raise RuntimeError(
                f"Triton kernels need a CUDA device, not {device_type}{hint}; TRITON_INTERPRET=1"
                " interprets them, slowly"
            )
    return Backend(requested, why)

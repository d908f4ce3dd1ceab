"""Which implementation runs, chosen once and told to the caller; nothing falls back silently."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    name: str  # triton | torch
    reason: str


def resolve_backend(asked: str, device_type: str) -> Backend:
    """Raises ValueError for an unknown name, RuntimeError when what was asked for cannot run on this device."""
    if asked not in ("auto", "triton", "torch"):
        raise ValueError(f"backend {asked}: choose auto, triton, torch")
    if asked == "triton":
        raise RuntimeError("this version has no Triton kernels yet; the torch path runs on every device")
    why = "asked for" if asked == "torch" else f"the only implementation for {device_type} in this version"
    return Backend("torch", why)

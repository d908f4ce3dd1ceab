"""Buffers that live from step to step.

A fresh temporary of the size of a code matrix is page-faulted in every step, which costs a tenth of
the step on a CPU.
"""

from __future__ import annotations

import threading

import torch


class Workspaces:
    """A Workspace per thread: two threads that encode with one model must not write the same
    buffers. A copy of a model starts with none."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def current(self) -> Workspace:
        """The calling thread's workspace."""
        if not hasattr(self._of_thread, "workspace"):
            self._of_thread.workspace = Workspace()
        return self._of_thread.workspace

    def __reduce__(self) -> tuple:
        return Workspaces, ()


class Workspace:
    """Reused buffers, one per name, for one thread and the workers it waits for."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def get(
        self,
        name: str,
        shape: tuple[int, ...],
        like: torch.Tensor,
        fill: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """A buffer of `shape` with the dtype and device of `like`; `fill` is written when the
        buffer is allocated, not later."""
        dtype = dtype or like.dtype
        buffer = self._buffers.get(name)
        if (
            buffer is None
            or buffer.shape != shape
            or buffer.dtype != dtype
            or buffer.device != like.device
            # A buffer made under inference_mode cannot be written outside it.
            or (buffer.is_inference() and not torch.is_inference_mode_enabled())
        ):
            buffer = (
                like.new_empty(shape, dtype=dtype)
                if fill is None
                else like.new_full(shape, fill, dtype=dtype)
            )
            self._buffers[name] = buffer
        return buffer

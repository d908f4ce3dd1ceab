"""Buffers that live from step to step.

A fresh temporary of the size of a code matrix is page-faulted in every step, which costs a tenth of
the step on a CPU.
"""

from __future__ import annotations

import threading

import torch


class Workspaces:
    """A Workspace for each thread: two that encode with one model must not write the same buffers.
    A copy of a model starts with none."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def own(self) -> Workspace:
        """The calling thread's."""
        if not hasattr(self._of_thread, "workspace"):
            self._of_thread.workspace = Workspace()
        return self._of_thread.workspace

    def __reduce__(self) -> tuple:
        return Workspaces, ()


class Workspace:
    """Reused buffers, one for each name, of one thread and what it waits for."""

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
        buffer is made, not later."""
        dtype = dtype or like.dtype
        have = self._buffers.get(name)
        # A buffer made under inference_mode cannot be written outside it.
        stale = have is None or (have.is_inference() and not torch.is_inference_mode_enabled())
        if stale or have.shape != shape or have.dtype != dtype or have.device != like.device:
            have = (
                like.new_empty(shape, dtype=dtype)
                if fill is None
                else like.new_full(shape, fill, dtype=dtype)
            )
            self._buffers[name] = have
        return have

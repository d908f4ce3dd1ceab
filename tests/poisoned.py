"""Code that reads memory which nothing has written gives other results when new tensors hold NaN,
or the largest integer, than when they hold what the allocator has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def new_memory(poisoned: bool) -> Iterator[None]:
    """torch fills new tensors while it uses deterministic algorithms; these it uses either way."""
    settings = torch.utils.deterministic
    was, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = poisoned
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*determinis")
            yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        settings.fill_uninitialized_memory = filled


def reads_only_what_was_written(operation: Callable[[], Sequence[torch.Tensor]]) -> None:
    """The results are finite, and the same bits with and without the poison."""
    results = []
    for poisoned in (False, True):
        torch.manual_seed(1)
        with new_memory(poisoned):
            results.append(operation())
    for number, (first, again) in enumerate(zip(*results, strict=True)):
        assert bool(first.isfinite().all()), f"result {number} is not finite"
        assert torch.equal(first, again), f"result {number} depends on what memory held"

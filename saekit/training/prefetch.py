"""Batches for a GPU: a thread reads them and copies them to the device while steps are computed.

Rows go through pinned buffers, of which each batch uses one of DEPTH in turn, in the dtype of the
store, on a stream of its own. So neither reading nor copying is in the time of a step, unless it
takes longer than a step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import torch

from saekit.device import use_device
from saekit.types import ActivationBatch

DEPTH = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    batches: Iterable[ActivationBatch], device: torch.device
) -> Generator[ActivationBatch]:
    """The same batches on the device. On a CPU they are read when they are asked for, since reading
    would take its cores from the step."""
    if device.type != "cuda":
        yield from batches
        return
    with closing(ahead(batches, _Copies(device), partial(use_device, device))) as copies:
        for copy in copies:
            yield copy.wait()


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    begin: Callable[[], object] = lambda: None,
    depth: int = DEPTH,
) -> Generator[Result]:
    """work(item) for every item, in order, computed by a thread up to `depth` items before they
    are asked for. `begin` is called first in that thread. What it raises is raised here. When this
    ends early, the thread ends too."""
    done: queue.Queue[tuple[bool, Any]] = queue.Queue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def read() -> None:
        try:
            begin()
            source = iter(items)
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                done.put((True, work(next(source))))
        except StopIteration:
            done.put((False, None))
        except BaseException as error:  # of whatever kind: the caller is to see it
            done.put((False, error))

    thread = threading.Thread(target=read, name="saekit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_result, value = done.get()
            if not is_result:
                if value is not None:
                    raise value
                return
            # the next one is begun when this one is asked for: at most `depth` are in memory
            room.release()
            yield value
    finally:
        stopped.set()
        room.release()
        thread.join()


class _Copy:
    """A batch on its way to the device."""

    def __init__(self, batch: ActivationBatch, arrived: torch.cuda.Event) -> None:
        self.batch, self.arrived = batch, arrived

    def wait(self) -> ActivationBatch:
        """The batch; work of the current stream that is launched from now on finds it there."""
        stream = torch.cuda.current_stream(self.batch.x.device)
        stream.wait_event(self.arrived)

        def used(_: str, value: torch.Tensor) -> torch.Tensor:
            value.record_stream(stream)  # its memory is not reused before the step is done
            return value

        return self.batch.changed(used)


class _Copies:
    """Copies batches to a device, in the thread that reads them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.buffers: list[dict[str, torch.Tensor]] = [{} for _ in range(DEPTH)]
        self.arrived: list[torch.cuda.Event | None] = [None] * DEPTH
        self.count = 0

    def __call__(self, batch: ActivationBatch) -> _Copy:
        slot, self.count = self.count % DEPTH, self.count + 1
        if (before := self.arrived[slot]) is not None:
            before.synchronize()  # the buffer is free again

        def copied(name: str, value: torch.Tensor) -> torch.Tensor:
            buffer = self.buffers[slot].get(name)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = self.buffers[slot][name] = torch.empty_like(value, pin_memory=True)
            return buffer.copy_(value).to(self.device, non_blocking=True)

        with torch.cuda.stream(self.stream):
            copy = batch.changed(copied)
            event = torch.cuda.Event()
            event.record(self.stream)
        self.arrived[slot] = event
        return _Copy(copy, event)

"""One pass over the training rows for several runs at once: the rows of a sweep.

Each run has its own thread and asks its own source for batches, as always; all of them get the same
ones, which are read, or computed by a live model, once. A run may be AHEAD batches before the
slowest. At most `workers` runs compute at a time: a run releases its permit between two steps. What
a run computes does not depend on the others, nor on the order in which they wait.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saekit.rows import Adapter, Rows
from saekit.training.inputs import BatchNormalizer, estimate
from saekit.types import ActivationBatch, Split

AHEAD = 4


class SharedPass:
    """`rows` gives the training batches, `store` everything else. `members` is the number of runs:
    no batch is read before each of them has asked for its first one, or has left. `reader_threads`:
    torch's number of threads while a batch is computed; 0: as in the run that asks for it."""

    def __init__(
        self, store: Rows, rows: Rows, members: int, workers: int, reader_threads: int = 0
    ) -> None:
        self.store, self.rows, self.reader_threads = store, rows, reader_threads
        self._waited_for = members  # runs that have neither asked for a batch nor left
        self._permits = threading.Semaphore(workers)
        self._changed = threading.Condition()
        # the number, in the pass, of the batch that each run takes next
        self._next: dict[int, int] = {}
        self._queue: deque[ActivationBatch] = deque()
        self._first = 0  # number of the first batch in the queue
        self._batches: Iterator[ActivationBatch] | None = None
        self._order: tuple[int, int] | None = None
        self._reading, self._stopped = False, False
        self._estimates: dict[tuple[str, int], tuple[BatchNormalizer, torch.Tensor]] = {}
        self._estimating = threading.Lock()
        self._error: BaseException | None = None

    @contextmanager
    def member(self) -> Iterator[SharedRows]:
        """For the thread of one run: its source, and a permit to compute."""
        source = SharedRows(self)
        with self._permits:
            try:
                yield source
            finally:
                self._leave(source)

    def estimated(
        self, mode: str, seed: int, device: torch.device
    ) -> tuple[BatchNormalizer, torch.Tensor]:
        """saekit.training.inputs.estimate on the store's rows, once for all runs that ask for the
        same."""
        with self._estimating:
            if (mode, seed) not in self._estimates:
                self._estimates[mode, seed] = estimate(self.store, mode, seed, device)
            return self._estimates[mode, seed]

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """End the rows of all runs, which then save their state."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # -- for SharedRows

    def enter(self, source: SharedRows, batch: int, seed: int, start: int) -> None:
        with self._changed:
            assert self._order in (None, (batch, seed)) and start % batch == 0, (
                "runs of a pass share batch and order"
            )
            assert self._batches is None, "the pass has begun"
            self._order = batch, seed
            self._next[id(source)] = start // batch
            self._waited_for -= 1
            self._changed.notify_all()

    def take(self, source: SharedRows) -> ActivationBatch | None:
        """The run's next batch; None when the pass was stopped. Other runs compute while this one
        waits."""
        self._permits.release()
        try:
            with self._changed:
                while True:
                    # checked first: a stopped run saves its state even if reading has failed
                    if self._stopped:
                        return None
                    if self._error is not None:
                        raise self._error
                    # a batch from the queue
                    ahead = self._next[id(source)] - self._first
                    if self._batches is not None and 0 <= ahead < len(self._queue):
                        return self._taken(source, ahead)
                    # else read one, if all runs have asked, nobody reads and the queue has room
                    has_room = self._batches is None or len(self._queue) < AHEAD
                    if self._waited_for == 0 and not self._reading and has_room:
                        self._read()
                    else:
                        self._changed.wait()
        finally:
            self._permits.acquire()

    def _taken(self, source: SharedRows, ahead: int) -> ActivationBatch:
        batch = self._queue[ahead]
        self._next[id(source)] += 1
        self._drop()
        return batch

    def _drop(self) -> None:
        """Drop the batches that all runs have taken."""
        while self._queue and self._next and min(self._next.values()) > self._first:
            self._queue.popleft()
            self._first += 1
        self._changed.notify_all()

    def _read(self) -> None:
        """Read one batch, with the lock released meanwhile."""
        self._reading = True
        # The first batch is the earliest that a run starts from.
        if self._batches is None:
            assert self._order is not None
            size, seed = self._order
            self._first = min(self._next.values())
            self._batches = self._opened(size, seed, self._first * size)
        # Read without the lock.
        self._changed.release()
        batch, error = None, None
        threads_before = torch.get_num_threads()
        try:
            if self.reader_threads:
                torch.set_num_threads(self.reader_threads)
            batch = next(self._batches)
        except BaseException as raised:  # every run must be told
            error = raised
        finally:
            torch.set_num_threads(threads_before)
            self._changed.acquire()
        # Tell the others.
        self._reading, self._error = False, error
        if batch is not None:
            self._queue.append(batch)
        self._drop()  # the batch may come before the start of all remaining runs

    def _opened(self, batch: int, seed: int, start: int) -> Iterator[ActivationBatch]:
        yield from self.rows.batches(batch, seed, start, "train")

    def _leave(self, source: SharedRows) -> None:
        with self._changed:
            if self._next.pop(id(source), None) is None:
                self._waited_for -= 1  # it never asked for a batch
            self._drop()


class SharedRows(Adapter):
    """The source of one run: the store, except for the training rows, which come from the pass."""

    def __init__(self, shared: SharedPass) -> None:
        super().__init__(shared.store)
        self._shared = shared

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`. Training rows in random order come from the pass; they end early when
        it is stopped."""
        if split != "train" or seed is None:
            yield from super().batches(batch_size, seed, start, split, examples)
            return
        self._shared.enter(self, batch_size, seed, start)
        while (batch := self._shared.take(self)) is not None:
            yield dataclasses.replace(batch)  # its own batch, with the same tensors

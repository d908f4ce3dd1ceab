"""One pass over the training rows for several runs at once: what a sweep reads.

Each run asks its own source for batches, as always, from a thread of its own; all of them are
handed the same ones, which are read, or computed by a live model, once. A run may be AHEAD batches
in front of the slowest. At most `workers` runs compute at a time: a run lays down its permit
between two steps. What a run computes does not depend on the others, nor on who waited for whom.
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
    """`rows` gives the training batches, `store` all else. `members` is how many runs there are: no
    batch is read before each of them has asked for its first one, or left. `reader_threads`: what
    torch may use while a batch is made; 0: what the run that asks for it has."""

    def __init__(
        self, store: Rows, rows: Rows, members: int, workers: int, reader_threads: int = 0
    ) -> None:
        self.store, self.rows, self.reader_threads = store, rows, reader_threads
        self._waited_for = members  # runs that have neither asked nor left
        self._permits = threading.Semaphore(workers)
        self._changed = threading.Condition()
        # the batch, by number from the beginning of the pass, that each run takes next
        self._next: dict[int, int] = {}
        self._held: deque[ActivationBatch] = deque()
        self._first = 0  # number of the first one held
        self._batches: Iterator[ActivationBatch] | None = None
        self._order: tuple[int, int] | None = None
        self._reading, self._stopped = False, False
        self._estimates: dict[tuple[str, int], tuple[BatchNormalizer, torch.Tensor]] = {}
        self._estimating = threading.Lock()
        self._error: BaseException | None = None

    @contextmanager
    def member(self) -> Iterator[SharedRows]:
        """For the thread of one run: its source, while it has leave to compute."""
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
        """All runs find that there are no more rows, and save their state."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # -- for SharedRows
    # ----------------------------------------------------------------------------------------------

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
        """The run's next batch; None when the pass was stopped. Others may compute meanwhile."""
        self._permits.release()
        try:
            with self._changed:
                while True:
                    # first: whoever is stopped saves its state, whatever the reader has met
                    if self._stopped:
                        return None
                    if self._error is not None:
                        raise self._error
                    ahead = self._next[id(source)] - self._first
                    if self._batches is not None and 0 <= ahead < len(self._held):
                        return self._taken(source, ahead)
                    if (
                        self._waited_for == 0
                        and not self._reading
                        and (self._batches is None or len(self._held) < AHEAD)
                    ):
                        self._read()
                    else:
                        self._changed.wait()
        finally:
            self._permits.acquire()

    def _taken(self, source: SharedRows, ahead: int) -> ActivationBatch:
        found = self._held[ahead]
        self._next[id(source)] += 1
        self._drop()
        return found

    def _drop(self) -> None:
        """Let go of what all runs have had."""
        while self._held and self._next and min(self._next.values()) > self._first:
            self._held.popleft()
            self._first += 1
        self._changed.notify_all()

    def _read(self) -> None:
        """Read one batch with the lock laid down."""
        self._reading = True
        if self._batches is None:
            batch, seed = self._order
            self._first = min(self._next.values())
            self._batches = self._opened(batch, seed, self._first * batch)
        self._changed.release()
        found, error = None, None
        own_threads = torch.get_num_threads()
        try:
            if self.reader_threads:
                torch.set_num_threads(self.reader_threads)
            found = next(self._batches)
        except BaseException as raised:  # every run has to hear of it
            error = raised
        finally:
            torch.set_num_threads(own_threads)
            self._changed.acquire()
        self._reading, self._error = False, error
        if found is not None:
            self._held.append(found)
        self._drop()  # what is read may lie before the start of all who are left

    def _opened(self, batch: int, seed: int, start: int) -> Iterator[ActivationBatch]:
        yield from self.rows.batches(batch, seed, start, "train")

    def _leave(self, source: SharedRows) -> None:
        with self._changed:
            if self._next.pop(id(source), None) is None:
                self._waited_for -= 1  # it never asked
            self._drop()


class SharedRows(Adapter):
    """The source of one run: the store, but for the training rows, which come from the pass."""

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
        """As `Store.batches`. Training rows in random order come from the pass; it ends early where
        it is stopped."""
        if split != "train" or seed is None:
            yield from super().batches(batch_size, seed, start, split, examples)
            return
        self._shared.enter(self, batch_size, seed, start)
        while (found := self._shared.take(self)) is not None:
            yield dataclasses.replace(found)  # a batch of its own, over the same tensors

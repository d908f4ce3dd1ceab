"""The one thread that runs the model, and the queue before it.

A model, its hooks and torch's random state are for one caller at a time, so requests wait for each
other here, in the order in which they came. The queue is short: a client is told to come again
rather than kept waiting for minutes. Work of a client that has gone ends at its next sign of life,
for a text at the next token, and what waits for such a client is never begun.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from saekit.device import use_device

Tell = Callable[[Any], None]
"""Sends an event to the client, None being nothing but a sign of life; raises Cancelled once the
client has gone."""
Work = Callable[[Tell], None]
MOST_WAITING = 16
LONGEST_WAIT = 60  # seconds that a client is told to wait


class Cancelled(BaseException):
    """Ends work whose client has gone. Not an Exception: nothing that retries may catch it."""


class Busy(Exception):
    """The queue is full. `seconds`: when it may be worth another try."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"try again in {seconds} s")
        self.seconds = seconds


class Job:
    """Work that was submitted, seen from the event loop of its client."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._gone = threading.Event()

    async def next(self) -> Any | None:
        """The next event; None after the last. Raises what the work raised."""
        kind, value = await self._events.get()
        if kind == "raised":
            raise value
        return value if kind == "event" else None

    def cancel(self) -> None:
        """The client has gone."""
        self._gone.set()

    def abandon(self) -> None:
        """It will not be begun."""
        self.cancel()
        self._put("end", None)

    @property
    def cancelled(self) -> bool:
        return self._gone.is_set()

    # -- in the worker's thread

    def run(self) -> None:
        try:
            self._work(self._tell)
        except Cancelled:
            self._put("end", None)
        # the client gets it, whatever it is: the thread goes on with the next job
        except Exception as error:
            self._put("raised", error)
        except BaseException as error:  # would end the client's event loop
            self._put("raised", RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            self._put("end", None)

    def _tell(self, event: Any) -> None:
        if self.cancelled:
            raise Cancelled
        if event is not None:
            self._put("event", event)

    def _put(self, kind: str, value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))
        except RuntimeError:  # the loop has ended, and the client with it
            self.cancel()


class Worker:
    """`submit` from an event loop, `close` from anywhere."""

    def __init__(self, device: Any, most_waiting: int = MOST_WAITING) -> None:
        """`device`: the one that the work runs on."""
        self.most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.0  # that a job takes, of late
        self._thread = threading.Thread(
            target=self._work, args=(device,), name="saekit-serve", daemon=True
        )
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Raises Busy where as many wait as may."""
        job = Job(work)
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            if self._closed or len(self._waiting) >= self.most_waiting:
                raise Busy(self._wait())
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _wait(self) -> int:
        expected = math.ceil(self._seconds * (len(self._waiting) + 1) / 2)
        return min(max(expected, 1), LONGEST_WAIT)

    def close(self) -> None:
        """Cancel all work, and take no more."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.abandon()
            if self._running is not None:
                self._running.cancel()
            self._waiting.clear()
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """After `close`: wait for the running job to notice, at most so long."""
        self._thread.join(seconds)

    def _work(self, device: Any) -> None:
        use_device(device)
        while (job := self._next()) is not None:
            began = time.monotonic()
            job.run()
            taken = time.monotonic() - began
            self._seconds = taken if not self._seconds else 0.7 * self._seconds + 0.3 * taken

    def _next(self) -> Job | None:
        """Waits for the next job that somebody wants; None: the worker is closed."""
        with self._changed:
            self._running = None
            while True:
                while self._waiting:
                    job = self._waiting.popleft()
                    if not job.cancelled:
                        self._running = job
                        return job
                if self._closed:
                    return None
                self._changed.wait()

"""Chunks of rows on several threads, with single-threaded operations in each.

A chunk goes through some forty operations. With every operation split over all cores, each ends in
a barrier; on a machine that does anything else at the same time those barriers dominate
(docs/notes/kernels.md), and what cannot be split leaves cores idle. One chunk per thread needs a
single barrier, at the end. That is faster only for long chunks: OpenMP's own workers still spin for
some milliseconds after the last split operation, on the cores that the chunks need. Results do not
depend on which thread computed them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_inside = threading.local()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Workers whose operations use one thread. torch keeps that setting per thread, and one for
    future threads, which is restored here."""
    with _lock:
        if threads not in _pools:
            ready = threading.Barrier(threads + 1)

            def start() -> None:
                # Otherwise the thread's first parallel operation would reset its number of threads.
                torch.get_num_threads()
                torch.set_num_threads(1)
                _inside.worker = True
                ready.wait()

            pool = ThreadPoolExecutor(threads, thread_name_prefix="saekit-rows")
            for _ in range(threads):
                pool.submit(start)
            ready.wait()
            torch.set_num_threads(threads)
            _pools[threads] = pool
        return _pools[threads]


def _after_fork() -> None:
    """Threads do not survive a fork."""
    global _lock
    _pools.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def map_chunks(
    work: Callable[[slice, int], T], chunks: Sequence[slice], threaded: bool = True
) -> list[T]:
    """[work(chunk, slot) ...] in order. `slot` < torch.get_num_threads() is the worker's number,
    for buffers of its own.

    Without `threaded`, or when the caller is a worker itself, chunks run one after another, with
    each operation split over all cores. When one fails, no other is started, and the error is
    raised after all workers have stopped.
    """
    threads = (
        min(torch.get_num_threads(), len(chunks))
        if threaded and not getattr(_inside, "worker", False)
        else 1
    )
    if threads <= 1:
        return [work(chunk, 0) for chunk in chunks]
    # Workers take chunk after chunk until none is left or one fails.
    results: list = [None] * len(chunks)
    remaining, lock = iter(range(len(chunks))), threading.Lock()
    inference, failed = torch.is_inference_mode_enabled(), threading.Event()

    def run(slot: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            while not failed.is_set():
                with lock:
                    index = next(remaining, None)
                if index is None:
                    return
                results[index] = work(chunks[index], slot)

    running = [_pool(torch.get_num_threads()).submit(run, slot) for slot in range(threads)]
    # All of them stop before an error is raised.
    try:
        for done in running:
            done.result()
    except BaseException:
        failed.set()
        wait(running)
        raise
    return results


def spans(stop: int, length: int, start: int = 0) -> list[slice]:
    """start:stop in slices of `length`."""
    return [slice(at, min(at + length, stop)) for at in range(start, stop, length)]

"""Chunks of rows on several threads, each thread running its operations alone.

A chunk goes through some forty operations. With every operation split over all cores, each ends in a barrier; on a machine that does
anything else at the same time those barriers dominate (docs/kernels.md), and what cannot be split leaves cores idle. One chunk a thread
needs a single barrier, at the end. Results do not depend on which thread made them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Workers whose operations use one thread. torch keeps that setting for each thread, and one for threads to come, put back here."""
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="saekit-rows")
    for _ in range(threads):
        pool.submit(start)
    ready.wait()
    torch.set_num_threads(threads)
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def map_chunks(work: Callable[[slice, int], T], chunks: Sequence[slice]) -> list[T]:
    """[work(chunk, slot) ...] in order. `slot` < torch.get_num_threads() is the calling worker's number, for buffers of its own."""
    threads = min(torch.get_num_threads(), len(chunks))
    if threads <= 1:
        return [work(chunk, 0) for chunk in chunks]
    results: list = [None] * len(chunks)
    remaining, lock = iter(range(len(chunks))), threading.Lock()
    inference = torch.is_inference_mode_enabled()

    def run(slot: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with lock:
                    index = next(remaining, None)
                if index is None:
                    return
                results[index] = work(chunks[index], slot)

    for done in [_pool(torch.get_num_threads()).submit(run, slot) for slot in range(threads)]:
        done.result()
    return results

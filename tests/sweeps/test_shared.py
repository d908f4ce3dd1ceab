"""Runs that share a pass get the rows that each would read by itself, whichever is fast or slow,
and one may leave or stop at any time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from made_stores import write_store

from saekit.errors import NumericsError
from saekit.store.reader import Store
from saekit.training.shared import AHEAD, SharedPass


@pytest.fixture
def store(tmp_path):
    return Store(write_store(tmp_path / "store", 900))


def read(shared, count, start=0, pause=0.0, leave_at=None):
    found = []
    with shared.member() as source:
        if leave_at == 0:
            return found
        for batch in source.batches(64, 5, start * 64, "train"):
            found.append(batch.rows)
            time.sleep(pause)
            if len(found) in (count, leave_at):
                break
    return found


def alone(store, count, start=0):
    batches = store.batches(64, 5, start * 64, "train")
    return [next(batches).rows for _ in range(count)]


def together(jobs):
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(job) for job in jobs]]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_fast_and_slow_runs_get_the_same_rows(store, workers):
    shared = SharedPass(store, store, 3, workers)
    found = together([lambda p=p: read(shared, 30, pause=p) for p in (0.0, 0.002, 0.0)])
    expected = alone(store, 30)
    for rows in found:
        assert len(rows) == 30 and all(torch.equal(a, b) for a, b in zip(rows, expected))


def test_runs_that_resume_elsewhere_get_their_own_rows(store):
    shared = SharedPass(store, store, 2, 2)
    early, late = together([lambda: read(shared, 20, start=3), lambda: read(shared, 10, start=9)])
    assert all(torch.equal(a, b) for a, b in zip(early, alone(store, 20, 3)))
    assert all(torch.equal(a, b) for a, b in zip(late, alone(store, 10, 9)))


@pytest.mark.parametrize("leave_at", [0, 1, 7])
def test_a_run_that_leaves_holds_nobody_up(store, leave_at):
    shared = SharedPass(store, store, 2, 1)
    rest, gone = together([lambda: read(shared, 25), lambda: read(shared, 99, leave_at=leave_at)])
    assert len(rest) == 25 and len(gone) == leave_at


def test_the_hindmost_may_leave_before_the_others_begin(store):
    shared = SharedPass(store, store, 2, 2)
    late, early = together(
        [lambda: read(shared, 5, start=30), lambda: read(shared, 99, leave_at=5)]
    )
    assert len(early) == 5 and all(torch.equal(a, b) for a, b in zip(late, alone(store, 5, 30)))


def test_every_run_has_batches_of_its_own(store):
    shared, found = SharedPass(store, store, 2, 2), []

    def first():
        with shared.member() as source:
            found.append(next(source.batches(64, 5, 0, "train")))

    together([first, first])
    assert found[0] is not found[1] and found[0].x is found[1].x


def test_nobody_runs_far_ahead(store):
    class Counting:
        read = 0

        def batches(self, *args):
            for batch in store.batches(*args):
                Counting.read += 1
                yield batch

    shared, started = SharedPass(store, Counting(), 2, 2), threading.Event()

    def slow():
        with shared.member() as source:
            batches = source.batches(64, 5, 0, "train")
            next(batches)
            started.wait(10)

    with ThreadPoolExecutor(2) as pool:
        waiting, fast = pool.submit(slow), pool.submit(read, shared, 40)
        time.sleep(0.5)
        assert Counting.read <= AHEAD + 1 and not fast.done()
        started.set()
        waiting.result(timeout=10)
        assert len(fast.result(timeout=10)) == 40


def test_an_error_of_the_reader_reaches_every_run(store):
    class Bad:
        def batches(self, *args):
            yield next(store.batches(*args))
            raise NumericsError("NaN in a row")

    shared = SharedPass(store, Bad(), 2, 2)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(read, shared, 9) for _ in range(2)]:
            with pytest.raises(NumericsError, match="NaN in a row"):
                future.result(timeout=10)


def test_stopping_ends_all_passes(store):
    shared = SharedPass(store, store, 2, 1)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(read, shared, 10**6, 0, 0.001) for _ in range(2)]
        time.sleep(0.2)
        shared.stop()
        assert all(0 < len(future.result(timeout=10)) < 10**6 for future in futures)


def test_other_rows_are_the_stores(store):
    with SharedPass(store, store, 1, 1).member() as source:
        assert (
            source.count() == len(store)
            and source.spec == store.spec
            and source.count("holdout") == store.count("holdout")
        )
        assert torch.equal(
            next(source.batches(10, split="holdout")).x, next(store.batches(10, split="holdout")).x
        )

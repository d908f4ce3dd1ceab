"""Workers: one thread each, results in order, and stopped before an error is raised."""

import threading
import time

import pytest
import torch
from saekit_kernels.threads import map_chunks, spans

pytestmark = pytest.mark.usefixtures("two_threads")


def test_results_come_in_order_and_slots_are_few():
    slots = set()

    def work(rows, slot):
        slots.add(slot)
        return rows.start

    assert map_chunks(work, spans(103, 10, 3)) == list(range(3, 103, 10))
    assert slots <= {0, 1}


def test_a_worker_runs_its_operations_on_one_thread_and_the_caller_keeps_its_own():
    def work(rows, slot):
        a = torch.randn(200, 200)
        (a @ a).exp_().sum()
        return torch.get_num_threads(), threading.current_thread().name

    seen = map_chunks(work, spans(8, 1))
    assert {threads for threads, _ in seen} == {1} and all(
        "saekit-rows" in name for _, name in seen
    )
    assert torch.get_num_threads() == 2


def test_a_failure_stops_the_others_before_it_is_raised():
    begun = []

    def work(rows, slot):
        begun.append(rows.start)
        if rows.start == 0:
            raise RuntimeError("the first one")
        time.sleep(0.02)

    with pytest.raises(RuntimeError, match="the first one"):
        map_chunks(work, spans(50, 1))
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count < 50
    assert map_chunks(lambda rows, slot: rows.start, spans(4, 1)) == [0, 1, 2, 3]


def test_work_within_work_is_done_in_turn():
    def outer(rows, slot):
        return sum(map_chunks(lambda inner, _: inner.start, spans(5, 1)))

    assert map_chunks(outer, spans(6, 1)) == [10] * 6


def test_gradients_are_off_and_inference_mode_is_kept():
    with torch.inference_mode():
        assert all(map_chunks(lambda rows, slot: torch.is_inference_mode_enabled(), spans(4, 1)))
    assert not any(map_chunks(lambda rows, slot: torch.is_grad_enabled(), spans(4, 1)))

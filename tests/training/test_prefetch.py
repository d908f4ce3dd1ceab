"""Reading ahead changes neither the batches nor their order, and ends when training ends."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from batches import batch_of
from made_stores import write_store

import saekit
from saekit.errors import NumericsError
from saekit.training import prefetch
from saekit.training.prefetch import DEPTH, ahead, prefetched

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def readers():
    return [t for t in threading.enumerate() if t.name == "saekit-prefetch"]


def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_items_come_in_order_from_a_thread_which_then_ends():
    names = []

    def work(item):
        names.append(threading.current_thread().name)
        return item * item

    assert list(ahead(range(50), work)) == [n * n for n in range(50)]
    assert set(names) == {"saekit-prefetch"} and not readers()
    assert list(ahead([], work)) == []


def test_it_is_at_most_two_items_ahead():
    """A third would overwrite the buffer that the step's rows are copied from."""
    begun = []
    items = ahead(range(100), begun.append)
    for taken in range(1, 20):
        next(items)
        assert until(lambda taken=taken: len(begun) == taken + DEPTH)
        time.sleep(0.002)
        assert len(begun) == taken + DEPTH
    items.close()
    assert not readers() and len(begun) <= 20 + DEPTH


def test_an_error_is_raised_where_its_item_is_asked_for():
    def work(item):
        if item == 3:
            raise NumericsError("NaN or inf in the data: row 3")
        return item

    items = ahead(range(10), work)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NumericsError, match="row 3"):
        next(items)
    assert not readers()


def test_a_source_that_stops_early_stops_the_batches():
    """A stopped pass ends its batches in the middle."""

    def source():
        yield from range(4)

    assert list(ahead(source(), str)) == ["0", "1", "2", "3"] and not readers()


def test_the_thread_uses_the_device_before_it_reads(monkeypatch):
    """A new thread begins with the first device, and whatever a source computes there, or the
    allocation of a pinned buffer, would occupy memory of that one."""
    events, device = [], torch.device("cuda:1")
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda to: events.append((threading.current_thread().name, to))
    )
    monkeypatch.setattr(prefetch, "_Copies", lambda to: Arrived)

    def source():
        for number in range(3):
            events.append((threading.current_thread().name, number))
            yield batch_of(torch.full((2, 3), float(number)))

    assert [int(batch.x[0, 0]) for batch in prefetched(source(), device)] == [0, 1, 2]
    assert events == [("saekit-prefetch", step) for step in (device, 0, 1, 2)]


class Arrived:
    """A copy that is there."""

    def __init__(self, batch):
        self.wait = lambda: batch


def test_on_a_cpu_batches_are_read_when_they_are_asked_for():
    read = []

    def source():
        for number in range(5):
            read.append(number)
            yield batch_of(torch.full((2, 3), float(number)))

    batches = prefetched(source(), torch.device("cpu"))
    assert next(batches).x[0, 0] == 0 and read == [0] and not readers()


@pytest.mark.gpu
@needs_gpu
def test_prefetched_rows_train_the_same_model(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", 3000)
    options = dict(latents=64, k=4, rows=12_000, batch=256, device="cuda")
    first = saekit.train(store, **options).model
    monkeypatch.setattr(prefetch, "prefetched", lambda batches, device: batches)
    monkeypatch.setattr("saekit.training.loop.prefetched", lambda batches, device: batches)
    second = saekit.train(store, **options).model
    for a, b in zip(first.state_dict().values(), second.state_dict().values()):
        assert torch.equal(a, b)
    assert not readers()

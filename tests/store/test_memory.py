"""An array as a source of rows: orders, epochs, the cursor that a resume needs."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from saekit.store.memory import ArraySource

N = 23


def source(target=None):
    return ArraySource(np.arange(N * 2, dtype=np.float32).reshape(N, 2), target=target)


def taken(batches, count):
    return [batch.rows.tolist() for batch in islice(batches, count)]


def test_without_a_seed_rows_come_once_in_order():
    batches = list(source().batches(5))
    assert [b.rows.tolist() for b in batches] == [
        [*range(i, min(i + 5, N))] for i in range(0, N, 5)
    ]
    assert torch.equal(torch.cat([b.x for b in batches]), source().x)
    assert [b.rows.tolist() for b in source().batches(5, start=12)] == [
        [12, 13, 14, 15, 16],
        [17, 18, 19, 20, 21],
        [22],
    ]
    assert list(source().batches(5, start=N)) == []


def test_a_batch_traces_its_rows():
    for batch in islice(source().batches(5, seed=0), 6):
        assert torch.equal(batch.x, source().x[batch.rows])
        assert torch.equal(batch.doc_id, batch.rows) and torch.equal(batch.example_id, batch.rows)
        assert (
            batch.position.dtype == torch.int32
            and not batch.position.any()
            and batch.mask is None
            and batch.target is None
        )
    assert source().locate(7) == "the array, row 7"


@pytest.mark.parametrize("size", [1, 5, N, 40, 100])
def test_every_shuffled_batch_is_full_and_every_epoch_holds_every_row_once(size):
    steps = -(-5 * N // size)
    batches = taken(source().batches(size, seed=3), steps)
    assert all(len(batch) == size for batch in batches)
    order = [row for batch in batches for row in batch]
    epochs = [order[i * N : (i + 1) * N] for i in range(5)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5 and list(range(N)) not in epochs


def test_the_order_is_a_function_of_the_seed():
    assert taken(source().batches(5, seed=3), 9) == taken(source().batches(5, seed=3), 9)
    assert taken(source().batches(5, seed=3), 9) != taken(source().batches(5, seed=4), 9)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_cursor_continues_exactly(size):
    whole = [row for batch in taken(source().batches(size, seed=3), 200 // size) for row in batch]
    for done in range(0, min(200 // size, 30)):
        rest = [
            row
            for batch in taken(
                source().batches(size, seed=3, start=done * size), 200 // size - done
            )
            for row in batch
        ]
        assert rest == whole[done * size :], done
    # A cursor counts rows, and another batch size reads on in the same order.
    assert [
        row for batch in taken(source().batches(7, seed=3, start=11), 5) for row in batch
    ] == whole[11:46]


def test_all_rows_are_training_rows():
    assert source().count() == source().count("train") == N and source().count("holdout") == 0
    assert taken(source().batches(5, seed=1, split="train"), 5) == taken(
        source().batches(5, seed=1, split="all"), 5
    )


def test_targets_follow_their_rows():
    target = np.arange(N * 3, dtype=np.float64).reshape(N, 3)
    for batches in (source(target).batches(5), islice(source(target).batches(5, seed=0), 9)):
        for batch in batches:
            assert torch.equal(batch.target, torch.from_numpy(target)[batch.rows])


def test_the_spec_says_what_the_rows_are():
    spec = source().spec
    assert (
        spec.is_raw
        and spec.d_in == 2
        and spec.shape == (2,)
        and spec.dtype == "float32"
        and spec.layout == "flat"
    )
    image = ArraySource(torch.zeros(3, 24), shape=(4, 2, 3)).spec
    assert image.shape == (4, 2, 3)

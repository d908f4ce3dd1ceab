"""What becomes rows: paths, stores, tensors, arrays, blocks of these, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from made_stores import write_store

from saekit.errors import DataError, MissingError, UsageError
from saekit.store.memory import ArraySource
from saekit.store.opening import open_rows, open_stores
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

X_ND = torch.arange(200.0).view(100, 2)


def all_of(rows, **options):
    return torch.cat([batch.x for batch in rows.batches(7, **options)])


def test_paths_and_stores(tmp_path):
    path, other = (
        write_store(tmp_path / name, 200, width=width) for name, width in (("a", 16), ("b", 8))
    )
    store = open_rows(path)
    assert (
        isinstance(store, Store)
        and open_rows(str(path)).content == store.content
        and open_rows(store) is store
    )
    assert open_rows([path]).path == path
    stack = open_rows([path, Store(other)])
    assert isinstance(stack, StackedStore) and stack.parts == (16, 8) and open_rows(stack) is stack
    with pytest.raises(MissingError, match="nowhere"):
        open_rows(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "rows",
    [
        X_ND,
        X_ND.numpy(),
        [X_ND[:30], X_ND[30:].numpy()],
        (X_ND[i : i + 9] for i in range(0, 100, 9)),
        X_ND.numpy().astype(">f4"),
        X_ND.int(),
        pd.DataFrame(X_ND.numpy(), columns=["a", "b"]),
    ],
    ids=["tensor", "array", "list", "generator", "byte order", "integers", "data frame"],
)
def test_rows_in_memory_are_the_same_whatever_holds_them(rows):
    source = open_rows(rows)
    assert (
        isinstance(source, ArraySource)
        and source.spec.dtype == "float32"
        and torch.equal(all_of(source), X_ND)
    )
    assert source.content == ArraySource(X_ND, holdout=0.05).content


def test_where_a_row_must_be_traced_rows_in_memory_are_refused(tmp_path):
    store = Store(write_store(tmp_path / "s", 200))
    assert open_stores(store) is store
    with pytest.raises(UsageError, match="do not say which token or patch"):
        open_stores(X_ND)


def test_a_tensor_is_neither_copied_nor_changed_and_its_graph_is_dropped():
    x = X_ND.clone().requires_grad_()
    source = open_rows(x)
    assert source.x.data_ptr() == x.data_ptr() and not source.x.requires_grad and x.requires_grad


@pytest.mark.parametrize(
    "dtype,kept",
    [(torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float64, "float32")],
)
def test_types_of_numbers(dtype, kept):
    source = open_rows(X_ND.to(dtype))
    assert (
        source.spec.dtype == kept
        and all_of(source).dtype == getattr(torch, kept)
        and len(source.content) == 64
    )


def test_a_read_only_array_gives_no_warning(recwarn):
    x = X_ND.numpy().copy()
    x.flags.writeable = False
    open_rows(x)
    open_rows(np.flip(X_ND.numpy(), 0))  # of negative strides
    assert not recwarn


def test_a_twentieth_is_held_out_and_the_sides_are_apart():
    source = open_rows(X_ND)
    rows = {
        split: torch.cat([b.rows for b in source.batches(7, split=split)]).tolist()
        for split in ("train", "holdout", "all")
    }
    assert (
        len(rows["holdout"]) == source.count("holdout") == 5
        and len(rows["train"]) == source.count("train") == 95
    )
    assert sorted(rows["train"] + rows["holdout"]) == rows["all"] == list(range(100))
    shuffled = torch.cat(
        [b.rows for b, _ in zip(source.batches(19, seed=1, split="train"), range(5))]
    ).tolist()
    assert sorted(shuffled) == rows["train"] != shuffled


@pytest.mark.parametrize("n,held_out", [(4, 2), (39, 2), (41, 3)])
def test_at_least_two_rows_are_held_out(n, held_out):
    assert open_rows(X_ND[:n]).count("holdout") == held_out


def test_sequences_are_held_out_whole_and_their_rows_say_where_they_lie():
    x_NTD = torch.randn(40, 6, 3)
    source = open_rows(x_NTD)
    assert (
        source.spec.layout == "sequence"
        and source.spec.d_in == 3
        and source.spec.shape == (None, 3)
    )
    assert (
        source.count() == 240
        and source.count(examples=True) == 40
        and source.count("holdout") == 12
    )
    held = next(source.batches(240, split="holdout"))
    assert (
        torch.equal(held.x, x_NTD[held.example_id, held.position.long()])
        and held.position.tolist() == [*range(6)] * 2
    )
    whole = next(source.batches(2, split="holdout", examples=True))
    assert (
        whole.x.shape == (2, 6, 3)
        and torch.equal(whole.x.flatten(0, 1), held.x)
        and whole.mask is None
    )
    train = torch.cat([b.example_id for b in source.batches(5, split="train", examples=True)])
    assert len(train) == source.count("train", examples=True) == 38 and not set(
        train.tolist()
    ) & set(held.example_id.tolist())


def test_grids_are_examples():
    x_NHWD = torch.randn(10, 2, 4, 3)
    source = open_rows(x_NHWD)
    assert source.spec.layout == "grid" and source.spec.shape == (2, 4, 3) and source.count() == 80
    batch = next(source.batches(4, examples=True))
    assert torch.equal(batch.x, x_NHWD[:4]) and batch.rows.tolist() == [0, 8, 16, 24]


def test_taken_rows_are_those_of_the_numbers():
    batch = open_rows(X_ND).take(np.array([3, 50, 50]))
    assert torch.equal(batch.x, X_ND[[3, 50, 50]]) and batch.rows.tolist() == [3, 50, 50]


def test_content_tells_other_values_shapes_and_types_apart():
    x = X_ND.view(50, 4)
    several = [X_ND, X_ND + 1, x, x.view(25, 2, 4), X_ND.half()]
    assert len({open_rows(rows).content for rows in several}) == len(several)
    strided = torch.stack([X_ND, X_ND + 7], 2)[..., 0]
    assert open_rows(strided).content == open_rows(X_ND).content


@pytest.mark.parametrize(
    "rows,error,words",
    [
        (3, UsageError, "cannot read rows from int"),
        ({"x": X_ND}, UsageError, "cannot read rows from dict"),
        ([], UsageError, "there are no rows"),
        ([[1.0, 2.0]], UsageError, "block 0 is of type list"),
        (torch.zeros(4), DataError, r"the rows of shape \(4,\) cannot be rows"),
        (torch.zeros(4, 0), DataError, "cannot be rows"),
        (torch.zeros(3, 4), DataError, "3 rows or sequences are too few"),
        (
            [torch.zeros(3, 4), torch.zeros(3, 5)],
            DataError,
            r"block 1 has shape \(3, 5\), block 0 \(3, 4\)",
        ),
        (np.array([["a"]]), DataError, "the rows is an array of <U1"),
        (torch.zeros(3, 4, dtype=torch.complex64), DataError, "complex"),
    ],
)
def test_what_cannot_be_rows_is_refused(rows, error, words):
    with pytest.raises(error, match=words):
        open_rows(rows)

"""Whole examples of a store: padding, masks, order, cursor, labels; and how much of a store is held
out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_stores import make_rows, make_spec, write_store

from saekit.store.reader import open_store
from saekit.store.shards import StoredExample
from saekit.store.split import HOLDOUT_SHARE, split_rows
from saekit.store.writer import RowBlock, StoreWriter

LENGTHS = [3, 1, 4, 2, 5, 3, 2, 2]


@pytest.fixture
def uneven(tmp_path):
    """Eight contexts of LENGTHS rows, a document each but 2 and 3, which share one; positions begin
    at 1; three shards."""
    x = make_rows(sum(LENGTHS))
    options = {"shard_bytes": sum(LENGTHS[:4]) * 16 * 4}
    writer = StoreWriter(
        tmp_path / "s", make_spec(layout="sequence", dtype="float32"), {}, **options
    )
    documents, at = [0, 1, 2, 2, 4, 5, 6, 7], 0
    for e, rows in enumerate(LENGTHS):
        label = None if e == 1 else f"label {e}"
        example = StoredExample(
            100 + e, documents[e], 0, rows, list(range(rows)), f"ref {e}", label
        )
        ids = torch.full((2, rows), documents[e])
        ids[1] = 100 + e
        writer.append(
            RowBlock(
                x[at : at + rows], *ids, torch.arange(1, rows + 1, dtype=torch.int32), [example]
            )
        )
        at += rows
    writer.finish()
    opened = open_store(tmp_path / "s")
    assert [len(shard) for shard in opened.shards] == [10, 10, 2]
    return opened


def test_short_examples_are_padded_with_zeros_under_a_mask(uneven):
    first, second, third = uneven.batches(3, examples=True)
    x = make_rows(sum(LENGTHS))
    assert first.x.shape == (3, 4, 16) and third.x.shape == (2, 2, 16)
    assert first.mask.tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [True] * 4,
    ]
    assert (
        torch.equal(first.x[0, :3], x[0:3])
        and torch.equal(first.x[1, 0], x[3])
        and torch.equal(first.x[2], x[4:8])
    )
    assert not first.x[~first.mask].any()
    assert torch.equal(second.x[0, :2], x[8:10]) and torch.equal(second.x[1], x[10:15]), (
        "one batch, two shards"
    )
    assert third.mask is None, "two examples of two rows: nothing is padded"


def test_a_batch_of_examples_says_where_each_begins(uneven):
    batch = next(uneven.batches(8, examples=True))
    assert batch.rows.tolist() == [0, 3, 4, 8, 10, 15, 18, 20]
    assert batch.example_id.tolist() == list(range(100, 108)) and batch.doc_id.tolist() == [
        0,
        1,
        2,
        2,
        4,
        5,
        6,
        7,
    ]
    assert batch.position.tolist() == [1] * 8
    assert (batch.doc_id.dtype, batch.example_id.dtype, batch.position.dtype, batch.rows.dtype) == (
        torch.int64, torch.int64, torch.int32, torch.int64,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_grids_keep_their_rows_in_reading_order(tmp_path, dtype):
    opened = open_store(
        write_store(
            tmp_path / "g",
            240,
            layout="grid",
            grid=(2, 4),
            modality="image",
            context=None,
            dtype=dtype,
        )
    )
    batches = list(opened.batches(7, examples=True))
    assert [len(b.x) for b in batches] == [7, 7, 7, 7, 2] and all(b.mask is None for b in batches)
    x = torch.cat([b.x for b in batches])
    assert x.shape == (30, 2, 4, 16) and x.dtype == getattr(torch, dtype)
    assert torch.equal(x.flatten(0, 2), make_rows(240).to(x.dtype))
    assert torch.equal(x[5, 1, 2], make_rows(240)[5 * 8 + 1 * 4 + 2].to(x.dtype))


def test_examples_are_split_as_documents_are(tmp_path):
    opened = open_store(write_store(tmp_path / "s", 2000, layout="sequence"))
    sides = {
        split: [b for b in opened.batches(16, split=split, examples=True)]
        for split in ("train", "holdout")
    }
    rows = {
        split: sum(b.x.shape[0] * b.x.shape[1] for b in batches) for split, batches in sides.items()
    }
    assert rows == {split: len(opened.split(split)) for split in ("train", "holdout")}
    documents = {
        split: {int(d) for b in batches for d in b.doc_id} for split, batches in sides.items()
    }
    assert not documents["train"] & documents["holdout"]
    assert (
        opened.count("train", examples=True) + opened.count("holdout", examples=True)
        == opened.count(examples=True)
        == 250
    )
    assert opened.count("holdout", examples=True) == rows["holdout"] // 8


def test_a_shuffled_epoch_holds_every_example_once(tmp_path):
    opened = open_store(write_store(tmp_path / "s", 2000, layout="sequence"))
    n = opened.count("train", examples=True)
    stream = opened.batches(n, seed=3, split="train", examples=True)
    first, second = next(stream), next(stream)
    ids = torch.cat([b.example_id for b in opened.batches(64, split="train", examples=True)])
    for epoch in (first, second):
        assert torch.equal(epoch.example_id.sort().values, ids)
        assert torch.equal(epoch.x, make_rows(2000).half().view(-1, 8, 16)[epoch.example_id])
    assert not torch.equal(first.example_id, second.example_id) and not torch.equal(
        first.example_id, ids
    )
    other = next(opened.batches(n, seed=4, split="train", examples=True))
    assert not torch.equal(first.example_id, other.example_id)


@pytest.mark.parametrize("start", [1, 16, 100, 236, 237, 240, 711])
def test_a_cursor_in_examples_continues_the_pass_exactly(tmp_path, start):
    opened = open_store(write_store(tmp_path / "s", 2000, layout="sequence"))

    def ids(start, count):
        stream = opened.batches(16, seed=1, start=start, split="train", examples=True)
        return torch.cat([next(stream).example_id for _ in range(count)])

    whole = ids(0, 60)
    assert torch.equal(ids(start, 10), whole[start : start + 160])
    in_order = next(opened.batches(16, start=start % 200, examples=True)).example_id
    assert in_order.tolist() == list(range(start % 200, start % 200 + 16))


def test_batches_larger_than_an_epoch_are_full(uneven):
    batch = next(uneven.batches(20, seed=0, examples=True))
    assert len(batch.x) == 20 and batch.x.shape[1] == max(LENGTHS)
    times = np.bincount(batch.example_id.numpy() - 100, minlength=8)
    assert set(times.tolist()) == {2, 3}, "two epochs of eight and half of a third"


def test_a_flat_store_has_no_examples_to_give(store):
    with pytest.raises(AssertionError, match="holds rows, not whole examples"):
        next(store.batches(4, examples=True))


def test_labels_follow_rows_and_examples(uneven):
    of_examples = [None if e == 1 else f"label {e}" for e in range(8)]
    assert uneven.labels(examples=True) == of_examples
    assert uneven.labels() == [
        of_examples[e] for e, rows in enumerate(LENGTHS) for _ in range(rows)
    ]
    for split in ("train", "holdout"):
        batches = list(uneven.batches(100, split=split, examples=True))
        assert uneven.labels(split, examples=True) == [
            of_examples[int(e) - 100] for b in batches for e in b.example_id
        ]
        rows = torch.cat([b.example_id for b in uneven.batches(100, split=split)])
        assert uneven.labels(split) == [of_examples[int(e) - 100] for e in rows]


# -- the held-out share ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share,total,held",
    [(0.2, 5000, 1000), (0.05, 5000, 250), (0.07, 100, 7), (0.5, 3, 2), (0.999, 10, 9)],
)
def test_the_held_out_share_of_one_row_documents_is_exact(share, total, held):
    rows = np.arange(total)
    sides = [split_rows(rows, rows, total, 0, split, share) for split in ("holdout", "train")]
    assert len(sides[0]) == held and len(sides[1]) == total - held
    assert sorted(np.concatenate([side.numbers() for side in sides])) == list(range(total))


def test_a_store_keeps_its_own_share(tmp_path):
    options = {"shard_bytes": 1 << 20}
    sizes = {}
    for name, plan in (("default", {}), ("fifth", {"holdout": 0.2})):
        writer = StoreWriter(tmp_path / name, make_spec(), plan, **options)
        index = torch.arange(1000)
        examples = [StoredExample(i, i, i, 1, None, str(i), None) for i in range(1000)]
        writer.append(
            RowBlock(make_rows(1000), index, index, torch.zeros(1000, dtype=torch.int32), examples)
        )
        writer.finish()
        opened = open_store(tmp_path / name)
        sizes[name] = (
            len(opened.split("train")),
            len(opened.split("holdout")),
            opened.manifest.holdout,
        )
    assert sizes == {"default": (950, 50, HOLDOUT_SHARE), "fifth": (800, 200, 0.2)}
    assert "holdout" not in json.loads((tmp_path / "default" / "manifest.json").read_text())["plan"]


def test_membership_of_rows_in_a_side_of_the_split(store):
    for split in ("train", "holdout"):
        ranges = store.split(split)
        inside = ranges.contains(np.arange(2000))
        assert np.flatnonzero(inside).tolist() == ranges.numbers().tolist()
        assert (
            ranges.numbers().tolist()
            == torch.cat([b.rows for b in store.batches(300, split=split)]).tolist()
        )

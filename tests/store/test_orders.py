"""The order of rows is a contract: the same seed gives the same batches in every version. Digests
of row numbers, not of values."""

from __future__ import annotations

import hashlib
from itertools import islice

import pytest
import torch
from made_stores import write_store

from saekit.evaluation.controls import FlatExamples
from saekit.rows import Rows
from saekit.store.memory import ArraySource
from saekit.store.pair import PairedStore
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.stack import StackedStore


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    flat, other = (
        Store(write_store(folder / name, 2000, width=width))
        for name, width in (("a", 16), ("b", 24))
    )
    sequence = Store(write_store(folder / "sequence", 1003, layout="sequence", tokens=9))
    grid = {"layout": "grid", "grid": (2, 4), "modality": "image", "context": None}
    return {
        "store": flat,
        "several windows": Store(
            write_store(folder / "wide", 70_000, width=4, shard_bytes=200_000)
        ),
        "pair": PairedStore(flat, other),
        "stack": StackedStore([flat, other]),
        "sequence": sequence,
        "previous": WithPrevious(sequence),
        "flat examples": FlatExamples(Store(write_store(folder / "grid", 960, **grid)), 128),
        "array": ArraySource(torch.arange(200.0).view(100, 2)),
    }


def digest(batches, count: int) -> str:
    taken = hashlib.sha256()
    for batch in islice(batches, count):
        taken.update(batch.rows.numpy().astype("<i8"))
    return taken.hexdigest()[:12]


ORDERS = [
    # source, batch, seed, start, split, examples, batches, digest
    ("store", 64, None, 0, "holdout", False, 40, "a039a1522de0"),
    ("store", 64, 0, 0, "train", False, 90, "e8bed880f188"),
    ("store", 64, 5, 1999, "train", False, 40, "a701705ca4ea"),
    ("several windows", 4096, 0, 0, "train", False, 20, "a7bf20945a4b"),
    ("several windows", 4096, 0, 66000, "train", False, 20, "d4c6127a5669"),
    ("pair", 64, 3, 0, "train", False, 40, "947ba3c2b959"),
    ("stack", 64, 3, 0, "train", False, 40, "947ba3c2b959"),
    ("sequence", 16, 3, 0, "train", False, 40, "a234941535df"),
    ("sequence", 16, 3, 90, "train", True, 40, "33bcd9e4a1a9"),
    ("sequence", 7, None, 3, "all", True, 40, "07e9961b93ee"),
    ("previous", 64, 3, 7, "train", False, 40, "bbe1d6600258"),
    ("flat examples", 7, 3, 0, "train", False, 40, "77ece7388e1a"),
    ("array", 7, 3, 0, "train", False, 40, "9481d4d5ac1c"),
    ("array", 7, 3, 250, "all", False, 40, "8ec596cba79f"),
]


def test_every_source_has_all_members_of_the_protocol(sources):
    members = [name for name in vars(Rows) if not name.startswith("_")]
    assert len(members) == 9
    for name, source in sources.items():
        assert all(hasattr(source, member) for member in members), name


@pytest.mark.parametrize("name,size,seed,start,split,examples,count,expected", ORDERS)
def test_the_order_of_rows_is_that_of_every_version(
    sources, name, size, seed, start, split, examples, count, expected
):
    assert digest(sources[name].batches(size, seed, start, split, examples), count) == expected

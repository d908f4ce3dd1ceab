"""A store as an array, as a DataFrame, and at a prompt."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from made_stores import write_store

import saekit
from saekit.errors import MissingError
from saekit.store.memory import ArraySource
from saekit.store.opening import open_rows
from saekit.store.reader import Store
from saekit.store.stack import StackedStore


def in_order(store: Store, split="all") -> torch.Tensor:
    return torch.cat([batch.x for batch in store.batches(77, split=split)])


def test_a_store_has_the_shape_of_its_rows(store):
    assert store.shape == (2000, 16) == store.numpy().shape
    assert ArraySource(torch.zeros(6, 4, 3)).shape == (24, 3)


@pytest.mark.parametrize("split", ["all", "train", "holdout"])
def test_numpy_gives_the_rows_of_a_side_in_the_dtype_of_the_store(store, split):
    x_ND = store.numpy(split)
    assert x_ND.dtype == np.float16 and len(x_ND) == store.count(split)
    assert np.array_equal(x_ND, in_order(store, split).numpy())


def test_bfloat16_becomes_float32(tmp_path):
    store = Store(write_store(tmp_path / "b", 200, dtype="bfloat16"))
    x_ND = store.numpy()
    assert x_ND.dtype == np.float32
    assert np.array_equal(x_ND, in_order(store).float().numpy())


def test_numpy_reads_a_store_as_an_array(store):
    assert np.array_equal(np.asarray(store), store.numpy())
    assert np.asarray(store, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="always makes a copy"):
        np.array(store, copy=False)


def test_a_store_is_still_read_as_a_store(store):
    assert open_rows(store) is store  # not as an array in memory


def test_pandas_gets_rows_with_their_origin(store):
    frame = store.to_pandas("holdout")
    batch = store.take(store.split("holdout").numbers())
    assert list(frame.columns) == ["doc_id", "example_id", "position", "label", *range(16)]
    assert frame["label"].tolist() == store.labels("holdout")
    assert frame["position"].tolist() == batch.position.tolist()
    assert np.array_equal(frame[list(range(16))].to_numpy(), batch.x.float().numpy())


def test_without_labels_there_is_no_column_of_them(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(40, 3, dtype=np.float32))
    saekit.harvest("raw:array", tmp_path / "x.npy", tmp_path / "acts")
    frame = saekit.open_store(tmp_path / "acts").to_pandas()
    assert list(frame.columns) == ["doc_id", "example_id", "position", 0, 1, 2]


def test_without_pandas_the_error_says_so(store, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingError, match="pandas is not installed"):
        store.to_pandas()


def test_a_line_at_the_prompt_says_what_is_in_it(store, tmp_path):
    assert repr(store) == (
        f"Store('{store.path}', shape=(2000, 16), dtype='float16', layout='flat',"
        " model='synthetic', hook='blocks.0', dataset='synthetic')"
    )
    other = Store(write_store(tmp_path / "other", hook="blocks.1", width=8))
    both = StackedStore([store, other])
    assert both.shape == (2000, 24) and len(both) == 2000
    assert "parts=(16, 8), hooks=('blocks.0', 'blocks.1')" in repr(both)
    assert repr(open_rows(np.zeros((40, 3)))).startswith("ArraySource(shape=(40, 3), dtype=")


def test_a_notebook_shows_a_table(store):
    html = store._repr_html_()
    assert "<caption>Store</caption>" in html and "<td>(2000, 16)</td>" in html

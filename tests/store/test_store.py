"""Stores on disk: round trips, order, splits, damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_stores import make_rows, make_spec, write_store

from saekit.errors import DataError, MissingError, NumericsError
from saekit.store.reader import open_store
from saekit.store.split import HOLDOUT_SHARE
from saekit.store.writer import RowBlock, StoreWriter, other_settings


def collect(store, **options):
    batches = list(store.batches(**options))
    return {
        name: torch.cat([getattr(b, name) for b in batches])
        for name in ("x", "doc_id", "example_id", "position", "rows")
    }


def test_rows_come_back_in_order_with_their_origin(store):
    got = collect(store, batch_size=300)
    assert torch.equal(got["x"], make_rows(2000).half())
    assert torch.equal(got["rows"], torch.arange(2000))
    assert torch.equal(got["example_id"], torch.arange(2000) // 8)
    assert torch.equal(got["doc_id"], torch.arange(2000) // 24)
    assert torch.equal(got["position"], (torch.arange(2000) % 8).int())
    assert len(store.shards) > 2, "the test is about several shards"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_is_read_back_as_written(tmp_path, dtype):
    opened = open_store(write_store(tmp_path / "s", 200, dtype=dtype))
    got = collect(opened, batch_size=64)["x"]
    assert got.dtype == getattr(torch, dtype)
    assert torch.equal(got, make_rows(200).to(got.dtype))
    assert torch.equal(opened.take(np.array([3, 77, 199])).x, got[[3, 77, 199]])


def test_statistics_equal_those_of_the_stored_rows(store):
    x = make_rows(2000).half().double()
    np.testing.assert_allclose(store.stats["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(store.stats["std"], x.std(0, correction=0), rtol=1e-9)
    assert store.stats["mean_square_norm"] == pytest.approx(
        float(x.square().sum(1).mean()), rel=1e-12
    )
    assert store.stats["median_norm"] == pytest.approx(float(np.median(x.norm(dim=1))), rel=1e-6)


def test_rows_far_above_the_median_norm_are_counted(tmp_path):
    x = torch.ones(100, 16)
    x[:3] *= 11
    writer = StoreWriter(tmp_path / "s", make_spec(), {}, shard_bytes=1 << 20)
    index = torch.arange(100)
    writer.append(RowBlock(x, index, index, torch.zeros(100, dtype=torch.int32)))
    assert writer.finish().stats["high_norm_rows"] == 3


def test_a_shuffled_epoch_holds_every_training_row_once_and_no_held_out_one(store):
    train, held = (
        collect(store, batch_size=500, split="train"),
        collect(store, batch_size=500, split="holdout"),
    )
    n = len(store.split("train"))
    shuffled = store.batches(n, seed=3, split="train")
    first, second = next(shuffled), next(shuffled)
    for epoch in (first, second):
        assert torch.equal(epoch.rows.sort().values, train["rows"])
        assert torch.equal(epoch.x, make_rows(2000).half()[epoch.rows])
    assert not torch.equal(first.rows, second.rows) and not torch.equal(first.rows, train["rows"])
    assert not set(train["doc_id"].tolist()) & set(held["doc_id"].tolist())
    assert len(train["rows"]) + len(held["rows"]) == 2000
    assert HOLDOUT_SHARE <= len(held["rows"]) / 2000 < HOLDOUT_SHARE + 24 / 2000


@pytest.mark.parametrize("start", [1, 255, 256, 1000, 1899, 2500, 4001])
def test_a_cursor_continues_the_shuffled_pass_exactly(store, monkeypatch, start):
    import saekit.store.reader as reader

    monkeypatch.setattr(reader, "WINDOW_BLOCKS", 3)  # several windows an epoch
    monkeypatch.setattr(reader, "BLOCK_ROWS", 64)

    def rows(start, count):
        stream = store.batches(50, seed=1, start=start, split="train")
        return torch.cat([next(stream).rows for _ in range(count)])

    whole = rows(0, 100)
    assert torch.equal(rows(start, 10), whole[start : start + 500])


def test_order_depends_on_the_seed_alone(store):
    def first(seed):
        return next(store.batches(100, seed=seed, split="train")).rows

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_rows_can_be_traced_to_tokens_and_labels(store):
    for row in (0, 7, 8, 1234, 1999):
        example, first = store.example_at(row)
        assert example.id == row // 8 and example.doc_id == row // 24 and first == row // 8 * 8
        assert example.tokens[row - first] == row // 8 + row % 8
        assert example.ref == f"document {row // 24}" and example.label == str(row // 8 % 10)


def test_one_document_cannot_be_split(tmp_path):
    opened = open_store(write_store(tmp_path / "s", 24))
    with pytest.raises(DataError, match="one document"):
        opened.split("train")


@pytest.mark.parametrize("documents", [2, 3, 5])
def test_neither_side_of_the_split_is_ever_empty(tmp_path, documents):
    opened = open_store(write_store(tmp_path / "s", 24 * documents))
    assert len(opened.split("holdout")) >= 24 and len(opened.split("train")) >= 24


def test_a_flipped_byte_is_found_and_the_shard_named(store):
    path = store.shards[1].path
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00001\.safetensors is damaged: its sha256"):
        list(open_store(store.path).batches(100))


def test_a_short_or_missing_shard_is_named(store):
    path = store.shards[1].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"00001\.safetensors has .* bytes instead of"):
        open_store(store.path)
    path.unlink()
    with pytest.raises(DataError, match=r"00001\.safetensors is missing"):
        open_store(store.path)


def test_what_is_no_store_is_refused_with_the_nearest_one(tmp_path):
    write_store(tmp_path / "acts" / "text", 100)
    with pytest.raises(DataError, match=r"manifest\.json is missing") as error:
        open_store(tmp_path / "acts")
    assert str(tmp_path / "acts" / "text") in error.value.hint
    with pytest.raises(MissingError, match="no such folder"):
        open_store(tmp_path / "nothing")


def test_a_store_of_a_later_version_is_refused(store):
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["schema_version"] = 99
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="later saekit"):
        open_store(store.path)


def test_settings_that_forbid_a_resume_are_named(store):
    assert other_settings(store.path, make_spec(seed=5), {"rows": 2000}) == "seed 0 -> 5"
    assert other_settings(store.path, make_spec(), {"rows": 2000}) == ""


@pytest.mark.parametrize("value,words", [(float("nan"), "NaN or inf"), (1e6, "overflows float16")])
def test_values_that_cannot_be_stored_stop_the_harvest(tmp_path, value, words):
    x = torch.ones(4, 16)
    x[2, 3] = value
    writer = StoreWriter(tmp_path / "s", make_spec(), {}, shard_bytes=1 << 20)
    with pytest.raises(NumericsError, match=words) as error:
        writer.append(
            RowBlock(x, torch.arange(4), torch.arange(4) + 70, torch.arange(4, dtype=torch.int32))
        )
    assert "example 72, position 2" in str(error.value)


def test_an_unfinished_store_says_how_far_it_is(tmp_path):
    writer = StoreWriter(tmp_path / "s", make_spec(), {}, shard_bytes=1)
    writer.append(
        RowBlock(
            torch.ones(4, 16), torch.arange(4), torch.arange(4), torch.zeros(4, dtype=torch.int32)
        )
    )
    with pytest.raises(DataError, match="not finished: 4 rows"):
        open_store(tmp_path / "s")


def test_equal_specs_have_equal_fingerprints_and_unequal_ones_do_not():
    assert make_spec().fingerprint == make_spec().fingerprint
    changed = [
        make_spec(hook="blocks.1"),
        make_spec(seed=1),
        make_spec(dtype="float32"),
        make_spec(grid=(2, 2)),
    ]
    assert len({spec.fingerprint for spec in [make_spec(), *changed]}) == 5
    assert type(make_spec()).from_json(
        json.loads(json.dumps(make_spec(grid=(2, 3)).to_json()))
    ) == make_spec(grid=(2, 3))

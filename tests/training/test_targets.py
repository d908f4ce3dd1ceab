"""SAEs that read or write more than one store: transcoders, crosscoders, neighbours of a row."""

from __future__ import annotations

import made_stores
import pytest
import torch
from made_stores import write_store

import saekit
from saekit.errors import DataError, UsageError
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

SETTINGS = {"k": 4, "expansion": 4, "rows": 60_000, "batch": 256}


def bent(rows, width=6, seed=0, original=made_stores.make_rows):
    """What a module might make of the input's rows: another width, size and mean, half of it
    linear."""
    x = original(rows, made_stores.D, seed) - 3.0
    W = torch.randn(made_stores.D, width, generator=torch.Generator().manual_seed(5))
    return 5 * torch.relu(x @ W) + 2 * (x @ W) - 11.0


@pytest.fixture
def stores(tmp_path, monkeypatch):
    x = write_store(tmp_path / "x", 2000)
    monkeypatch.setattr(made_stores, "make_rows", bent)
    return x, write_store(tmp_path / "y", 2000, width=6)


def held_out(path):
    return torch.cat([batch.x.float() for batch in Store(path).batches(500, split="holdout")])


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "kl-sigmoid"])
def test_a_transcoder_gives_the_targets_raw_rows(stores, tmp_path, sparsity):
    x, y = stores
    settings = {**SETTINGS, "sparsity": sparsity}
    if sparsity == "kl-sigmoid":
        del settings["k"]
    result = saekit.train(x, tmp_path / "run", target_store=str(y), **settings)
    model = saekit.load(tmp_path / "run")
    out = model(held_out(x)).x_hat
    target = held_out(y)
    fvu = ((out - target).square().sum() / (target - target.mean(0)).square().sum()).item()
    assert fvu == pytest.approx(result.metrics["fvu"], rel=1e-3) and fvu < 0.5


def test_a_skip_takes_over_what_is_linear(stores, tmp_path):
    x, y = stores
    plain = saekit.train(x, tmp_path / "plain", target_store=str(y), **SETTINGS)
    skip = saekit.train(x, tmp_path / "skip", target_store=str(y), skip=True, **SETTINGS)
    assert skip.metrics["fvu"] < 0.9 * plain.metrics["fvu"]
    assert saekit.load(tmp_path / "skip").W_skip.shape == (6, 16)


def test_a_crosscoder_reconstructs_every_hook_from_one_code(stores, tmp_path):
    x, y = stores
    result = saekit.train(x, tmp_path / "run", stores=(str(y),), **SETTINGS)
    model = saekit.load(tmp_path / "run")
    both = torch.cat([held_out(x), held_out(y)], 1)
    x_hat = model(both).x_hat
    assert (
        model.config.parts == (16, 6) and x_hat.shape == both.shape and result.metrics["fvu"] < 0.5
    )
    # each hook is scaled by its own size, so neither is drowned
    for part in (slice(0, 16), slice(16, 22)):
        target = both[:, part]
        assert (x_hat[:, part] - target).square().sum() < 0.6 * (
            target - target.mean(0)
        ).square().sum()


def test_the_penalty_of_a_crosscoder_sums_the_norms_of_the_hooks(stores, tmp_path):
    x, y = stores
    settings = {name: value for name, value in SETTINGS.items() if name != "k"} | {"rows": 2000}
    saekit.train(x, tmp_path / "run", stores=(str(y),), sparsity="l1", target_l0=4, **settings)
    model = saekit.load(tmp_path / "run")
    expected = model.W_dec[:, :16].norm(dim=1) + model.W_dec[:, 16:].norm(dim=1)
    torch.testing.assert_close(model.decoder_norms(), expected)


def test_stores_side_by_side_must_be_row_aligned(stores, tmp_path):
    with pytest.raises(DataError, match="is not row-aligned"):
        StackedStore([Store(stores[0]), Store(write_store(tmp_path / "short", 1000))])
    with pytest.raises(UsageError, match='stores applies to model="sae" without target_store'):
        saekit.train(
            stores[0], tmp_path / "run", stores=(str(stores[1]),), target_store=str(stores[1])
        )


def test_the_row_before_is_that_of_the_same_example(tmp_path):
    store = Store(write_store(tmp_path / "s", 200, layout="sequence"))
    every = torch.cat([batch.x for batch in store.batches(200)])
    for batch in [next(WithPrevious(store).batches(100, seed=3, split="train"))]:
        assert torch.equal(batch.has_previous, batch.rows % 8 != 0)
        has = batch.has_previous
        assert torch.equal(batch.previous[has], every[batch.rows[has] - 1])
    with pytest.raises(DataError, match="layout flat"):
        WithPrevious(Store(write_store(tmp_path / "flat", 200)))


@pytest.mark.slow
def test_a_temporal_run_makes_neighbours_alike(tmp_path):
    store = write_store(tmp_path / "s", 4000, layout="sequence")
    contrast = []
    for weight in (0.0, 1.0):
        saekit.train(
            store, tmp_path / f"{weight}", sparsity="temporal", contrast=weight, **SETTINGS
        )
        lines = (tmp_path / f"{weight}" / "metrics.jsonl").read_text().splitlines()
        contrast.append(float(lines[-1].split('"contrast": ')[1].split(",")[0]))
    assert contrast[1] < contrast[0]

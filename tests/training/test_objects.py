"""train and evaluate on objects: tensors, arrays, blocks and open stores in, a model out, with or
without a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_stores import make_rows, write_store

import saekit
from saekit.errors import DataError, NumericsError, UsageError
from saekit.store.reader import Store
from saekit.training.config import TrainConfig

SMALL = {"sparsity": "topk", "k": 4, "latents": 64, "batch": 64, "rows": 640, "device": "cpu"}
X_ND = make_rows(1000)


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_without_out_nothing_is_written_and_the_result_has_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = X_ND.clone()
    result = saekit.train(X_ND, **{**SMALL, "rows": 60_000})
    assert result.path is None and list(tmp_path.iterdir()) == [] and torch.equal(X_ND, before)
    assert result.model.encode(X_ND[:8]).to_dense().shape == (8, 64) and not result.model.training
    assert result.metrics["fvu"] < 0.5
    held_out, every = (
        saekit.evaluate(result.model, X_ND, split=split)[0] for split in ("holdout", None)
    )
    assert held_out.rows == 50 and held_out.metrics["fvu"] == result.metrics["fvu"]
    assert (every.rows, every.split, every.checkpoint) == (1000, "all", type(result.model).__name__)
    x_hat = result.model(X_ND).x_hat.double()
    expected = (
        (X_ND - x_hat).square().sum() / (X_ND - X_ND.double().mean(0)).square().sum()
    ).item()
    assert every.metrics["fvu"] == pytest.approx(expected, rel=1e-6)


def test_the_same_rows_give_the_same_bits_whatever_holds_them(tmp_path):
    blocks = (X_ND[i : i + 300].numpy() for i in range(0, 1000, 300))
    model = saekit.train(X_ND, **SMALL).model
    for rows in (X_ND.numpy(), blocks, [X_ND]):
        assert same(saekit.train(rows, **SMALL).model, model)
    assert not same(saekit.train(X_ND, **SMALL, seed=1).model, model)
    written = saekit.train(X_ND, tmp_path / "run", **SMALL)
    assert (
        same(saekit.load(tmp_path / "run"), model)
        and same(written.model, model)
        and written.model is written.model
    )


def test_an_open_store_is_its_path(tmp_path):
    path = write_store(tmp_path / "s", 600)
    by_path, opened = (
        saekit.train(path, **SMALL),
        saekit.train(Store(path), tmp_path / "run", **SMALL),
    )
    assert same(by_path.model, opened.model) and by_path.metrics == opened.metrics
    assert f'store = "{path}"' in (tmp_path / "run" / "config.toml").read_text()


def test_stores_side_by_side_are_the_option_stores(tmp_path):
    x, y = (
        write_store(tmp_path / name, 600, width=width, hook=name)
        for name, width in (("x", 16), ("y", 8))
    )
    by_option = saekit.train(x, tmp_path / "a", stores=(str(y),), **SMALL)
    listed = saekit.train([x, y], tmp_path / "b", **SMALL)
    assert same(by_option.model, listed.model)
    a, b = ((tmp_path / name / "config.toml").read_text() for name in "ab")
    assert a == b


def test_a_run_on_a_tensor_is_resumed_with_the_same_rows_only(tmp_path, monkeypatch):
    from saekit.training.loop import Trainer

    whole = saekit.train(X_ND, tmp_path / "whole", **SMALL)
    step = Trainer.train_step

    def killed(trainer, raw):
        if trainer.step == 6:
            raise RuntimeError("killed")
        return step(trainer, raw)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            saekit.train(X_ND, tmp_path / "broken", **SMALL, save_seconds=1e-9)
    with pytest.raises(DataError, match="content"):
        saekit.train(X_ND + 1, tmp_path / "broken", **SMALL, save_seconds=1e-9, resume=True)
    resumed = saekit.train(
        X_ND.clone(), tmp_path / "broken", **SMALL, save_seconds=1e-9, resume=True
    )
    assert same(resumed.model, whole.model)
    assert "store" not in (tmp_path / "broken" / "config.toml").read_text()
    assert saekit.evaluate(tmp_path / "broken", X_ND)[0].split == "holdout"  # known by content


def test_what_only_a_folder_allows_is_refused_without_one():
    for option in ({"resume": True}, {"overwrite": True}, {"log": ("tensorboard",)}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} needs a folder"):
            saekit.train(X_ND, **SMALL, **option)


def test_options_override_the_config(tmp_path):
    config = TrainConfig.from_flat(SMALL)
    model = saekit.train(X_ND, config=config, k=8, seed=3, rows=128).model
    assert model.config.k == 8 and model.config.latents == 64
    assert same(model, saekit.train(X_ND, **{**SMALL, "k": 8, "seed": 3, "rows": 128}).model)
    assert config.options["k"] == 4 and config.seed == 0
    with pytest.raises(UsageError, match="colour"):
        saekit.train(X_ND, config=config, colour=1)


def test_rows_in_memory_are_normalized_unless_the_output_is_bounded(tmp_path):
    far = 1000 * X_ND
    saekit.train(far, tmp_path / "sae", **SMALL)
    saekit.train(
        torch.rand(200, 9),
        tmp_path / "bounded",
        model="dense",
        latents=3,
        output="bernoulli",
        batch=32,
        rows=64,
    )
    modes = [
        json.loads((tmp_path / name / "config.json").read_text())["training"]["normalize"]
        for name in ("sae", "bounded")
    ]
    assert modes == ["center+scale", "none"]
    assert saekit.train(far, **{**SMALL, "rows": 6400}).metrics["fvu"] == pytest.approx(
        saekit.train(X_ND, **{**SMALL, "rows": 6400}).metrics["fvu"], rel=1e-2
    )


@pytest.mark.parametrize(
    "model,options",
    [("pca", {"latents": 3}), ("recurrent", {"latents": 4, "batch": 8, "rows": 32})],
)
def test_sequences_in_memory(model, options):
    result = saekit.train(np.random.default_rng(0).normal(size=(60, 5, 4)), model=model, **options)
    assert result.model.d_in == 4 and np.isfinite(result.metrics["fvu"])


def test_neighbouring_tokens_of_sequences_in_memory():
    x_NTD = X_ND.view(125, 8, 16)
    result = saekit.train(x_NTD, **{**SMALL, "sparsity": "temporal"})
    assert np.isfinite(result.metrics["fvu"])
    with pytest.raises(DataError, match="layout"):
        saekit.train(X_ND, **{**SMALL, "sparsity": "temporal"})


def test_a_bad_value_is_named_by_its_row():
    x = X_ND.clone()
    x[17, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"(?m)the array, row 17$"):
        saekit.train(x, **SMALL)


def test_other_stores_do_not_go_with_rows_in_memory(tmp_path):
    path = str(write_store(tmp_path / "s", 1000))
    for option in ({"target_store": path}, {"stores": (path,)}):
        with pytest.raises(UsageError, match=f"{next(iter(option))}: rows in memory"):
            saekit.train(X_ND, **SMALL, **option)


def test_models_and_folders_are_judged_side_by_side(tmp_path):
    path = write_store(tmp_path / "s", 600)
    result = saekit.train(path, tmp_path / "run", **SMALL)
    model = saekit.load(tmp_path / "run").train()
    folder, judged = saekit.evaluate([tmp_path / "run", model], path, split="holdout")
    assert judged.metrics["fvu"] == folder.metrics["fvu"] == result.metrics["fvu"]
    # the caller's model stays as it is
    assert judged.metrics["dead_train"] is None and model.training
    assert [e.k for e in saekit.evaluate(model, path, k=[2, 4])] == [2, 4]
    with pytest.raises(DataError, match="takes 16 values per row, the array holds 3"):
        saekit.evaluate(model, torch.zeros(10, 3))
    with pytest.raises(UsageError, match="is given twice"):
        saekit.evaluate([model, model], path)

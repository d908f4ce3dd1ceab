"""Names that mean something else than they did: `kl` was the classical form with sigmoid codes, and
`kl-means` what `kl` is today. Checkpoints of that time have schema 1."""

from __future__ import annotations

import json

import pytest
import torch
from made_runs import break_off
from made_stores import make_rows, write_store

import saekit
from saekit.errors import DataError
from saekit.models.sae import SAEConfig
from saekit.models.sparsity.kl import KL, KLConfig, KLSigmoid
from saekit.training.config import TrainConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("acts") / "store", 2000)


def as_schema_1(folder, old, **options):
    """The config.json that the code of that time wrote."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["schema_version"] == 2
    config["schema_version"] = 1
    for part in ("config", "training"):
        config[part] |= {"sparsity": old, **options}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("model", ["sae", "dense"])
def test_kl_of_schema_1_has_sigmoid_codes(store, tmp_path, model):
    saekit.train(store, tmp_path / "r", model=model, sparsity="kl-sigmoid", latents=8, batch=64)
    x = make_rows(20)
    code = saekit.load(tmp_path / "r").encode(x)
    assert code.min() > 0 and code.max() < 1
    as_schema_1(tmp_path / "r", "kl")
    loaded = saekit.load(tmp_path / "r")
    assert torch.equal(loaded.encode(x), code) and loaded.config.sparsity == "kl-sigmoid"
    assert saekit.evaluate(tmp_path / "r", store)[0].metrics["fvu"] > 0


def test_kl_means_of_schema_1_is_kl(store, tmp_path):
    saekit.train(store, tmp_path / "r", sparsity="kl", target_l0=0, latents=8, batch=64)
    x = make_rows(20)
    code = saekit.load(tmp_path / "r").encode(x)
    assert (code == 0).any()
    as_schema_1(tmp_path / "r", "kl-means", target_l0=None)
    loaded = saekit.load(tmp_path / "r")
    assert isinstance(loaded, KL) and torch.equal(loaded.encode(x), code)
    assert loaded.config.target_l0 == 0, "it was trained without one"


def test_a_kl_of_today_is_not_changed(store, tmp_path):
    saekit.train(store, tmp_path / "r", sparsity="kl", latents=8, batch=64)
    assert isinstance(saekit.load(tmp_path / "r"), KL)
    saekit.train(store, tmp_path / "s", sparsity="kl-sigmoid", latents=8, batch=64)
    assert isinstance(saekit.load(tmp_path / "s"), KLSigmoid)


def test_a_run_that_began_with_sigmoid_codes_is_not_resumed_with_others(store, tmp_path):
    config = TrainConfig.from_flat({"sparsity": "kl", "latents": 8, "batch": 64, "rows": 640})
    break_off(store, tmp_path / "r", config, 5)
    marker = tmp_path / "r" / "run.json"
    written = json.loads(marker.read_text())
    assert written.pop("code") == "relu"
    marker.write_text(json.dumps(written))
    with pytest.raises(DataError, match="other settings: code"):
        saekit.train(store, tmp_path / "r", config=config, resume=True)


@pytest.mark.parametrize(
    "options,target,rate",
    [
        ({}, 32, 32 / 1024),
        ({"latents": 64}, 16, 1 / 4),
        ({"target_rate": 0.05}, 51.2, 0.05),
        ({"target_l0": 20}, 20, 20 / 1024),
        ({"target_l0": 0}, 0, 0.01),
        ({"target_l0": 0, "target_rate": 0.05}, 0, 0.05),
    ],
)
def test_the_target_l0_of_kl(options, target, rate):
    config: SAEConfig = KLConfig(d_in=16, **{"latents": 1024, **options}).resolved()
    assert config.target_l0 == pytest.approx(target) and config.target_rate == pytest.approx(rate)
    assert config.resolved() == config, "as a checkpoint has it"

"""What holds for all models of the catalog: evaluate, inspect, resume, dry runs, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from made_runs import digits_store, rows_store
from made_stores import write_store
from saekit_cli.app import main

import saekit
from saekit.errors import DataError
from saekit.models.catalog import CATALOG
from saekit.training.config import TrainConfig
from saekit.training.run import prepare

SMALL = {
    "sae": {"latents": 32, "k": 4}, "kmeans": {"latents": 6}, "pca": {"latents": 4},
    "linear": {"latents": 4},
    "dense": {"latents": 4, "hidden": (12,)}, "conv": {"latents": 4, "channels": (4,)},
    "unet": {"latents": 4, "channels": (4,)},
    "recurrent": {"latents": 4, "width": 8}, "vae": {"latents": 3, "hidden": (12,)},
    "gan": {"latents": 3, "hidden": (12,)}, "dcgan": {"latents": 3, "channels": (4,)},
    "cgan": {"latents": 3, "channels": (4,)}, "aae": {"latents": 3, "hidden": (12,)},
}  # fmt: skip
TRAINED = [name for name in CATALOG if name not in ("pca", "kmeans")]
VARIANTS = [
    *((name, {}) for name in CATALOG),
    ("dense", {"sparsity": "kl-sigmoid"}),
    ("sae", {"noise": "gaussian:0.1"}),
    ("sae", {"sparsity": "batchtopk"}),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return digits_store(tmp_path_factory.mktemp("images") / "store", rows=200, holdout=0.2)


def options(name, **more):
    training = {} if name in ("pca", "kmeans") else {"rows": 480, "batch": 48}
    return {"model": name, **SMALL[name], **training, **more}


def saekit_exit(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_every_model_has_a_small_size():
    assert set(SMALL) == set(CATALOG)


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=lambda value: str(value))
def test_evaluate_gives_the_figures_of_the_run(images, tmp_path, name, more):
    result = saekit.train(images, tmp_path / "run", **options(name, **more))
    (evaluation,) = saekit.evaluate(tmp_path / "run", images)
    encodes = CATALOG[name].model.encodes
    figure = "fvu" if encodes else "diversity"  # a model that only draws reconstructs nothing
    assert (
        evaluation.split == "holdout"
        and evaluation.metrics[figure] == result.metrics[figure]
        and math.isfinite(result.metrics[figure])
    )
    assert (evaluation.metrics["fvu"] is None) == (not encodes)
    assert (evaluation.metrics["l0"] is None) == (
        saekit.load(tmp_path / "run").active_above is None
    )


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=lambda value: str(value))
def test_inspect_makes_a_page_or_says_why_not(images, tmp_path, capsys, name, more):
    saekit.train(images, tmp_path / "run", **options(name, **more))
    code = saekit_exit(
        "inspect",
        tmp_path / "run",
        "--store",
        images,
        "--out",
        tmp_path / "page",
        "--features",
        "0-2",
        "-q",
    )
    model = saekit.load(tmp_path / "run")
    if model.takes == "rows" and not model.encodes:
        assert code == 2 and "has no encoder" in capsys.readouterr().err
    elif model.takes == "rows":
        assert code == 0 and (tmp_path / "page" / "index.html").exists()
    else:
        assert code == 3 and "whole examples" in capsys.readouterr().err


@pytest.mark.parametrize("name", CATALOG)
def test_compare_has_a_row_for_it_and_a_report(images, tmp_path, name):
    saekit.train(images, tmp_path / "run", **options(name))
    comparison = saekit.compare(tmp_path / "run", images, tmp_path / "report")
    model, row = CATALOG[name].model, comparison.rows[0]
    assert row.name == "run" and (row.metrics["fvu"] is None) == (not model.encodes)
    controls = {other.name for other in comparison.rows if other.role == "control"}
    assert (controls == {"raw input"}) == (not model.encodes)
    page = (tmp_path / "report" / "report.html").read_text()
    assert ("Samples" in page) == (model.generates and name != "vae")


@pytest.mark.parametrize("name", CATALOG)
def test_a_run_goes_on_under_its_own_config(images, tmp_path, capsys, name):
    saekit.train(images, tmp_path / "run", **options(name))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    config = tmp_path / "run" / "config.toml"
    (tmp_path / "run" / "model.safetensors").unlink()  # as if killed before the end
    assert (
        saekit_exit("train", images, tmp_path / "run", "--config", config, "--resume", "-q") == 0
    ), capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert (
        saekit_exit(
            "train", images, tmp_path / "run", "--config", config, "--seed", 7, "--resume", "-q"
        )
        == 3
    )


@pytest.mark.parametrize("name", TRAINED)
def test_the_plan_counts_parameters_and_memory(images, capsys, name):
    small, large = (
        prepare(images, config=TrainConfig.from_flat(options(name) | {"batch": batch})).plan()
        for batch in (40, 160)
    )
    model_bytes = 16 * small.parameters
    assert small.memory_bytes > model_bytes and large.memory_bytes > small.memory_bytes
    arguments = [
        f"--{key.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for key, v in options(name).items()
    ]
    assert saekit_exit("train", images, "nowhere", *arguments, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == small.parameters


def test_examples_of_another_shape_are_refused(images, tmp_path):
    saekit.train(images, tmp_path / "run", **options("conv"))
    flat = write_store(tmp_path / "flat", 400, width=64)
    with pytest.raises(DataError, match="shape"):
        saekit.evaluate(tmp_path / "run", flat)


def test_a_run_with_a_target_is_evaluated_on_the_target(tmp_path):
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    store = rows_store(tmp_path / "x", x, [None] * 400)
    for name, target in (("same width", x.flip(1) * 3 + 1), ("narrow", x[:, :2] - x[:, 2:4])):
        other = rows_store(tmp_path / name, target, [None] * 400)
        run = tmp_path / f"run {name}"
        result = saekit.train(
            store, run, model="linear", latents=6, target_store=str(other), rows=30_000, batch=100
        )
        assert result.metrics["fvu"] < 0.02, name
        (evaluation,) = saekit.evaluate(run, store)
        assert evaluation.metrics["fvu"] == result.metrics["fvu"]
        other.rename(tmp_path / f"moved {name}")
        (moved,) = saekit.evaluate(run, store, target_store=tmp_path / f"moved {name}")
        assert moved.metrics == evaluation.metrics


def test_kmeans_does_not_mind_sorted_rows(tmp_path):
    centers = 10 * torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(12_000, 5, generator=torch.Generator().manual_seed(2))
    x = centers.repeat_interleave(1000, 0) + noise
    store = rows_store(tmp_path / "sorted", x, [None] * len(x), holdout=0.05)
    result = saekit.train(store, tmp_path / "run", model="kmeans", latents=12)
    assert result.metrics["mse"] < 4 * 5, (
        "near 5, the squared distance of a row to its center; two clusters per center give more"
    )


def test_rows_that_do_not_vary_are_not_called_divergence(tmp_path):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    store = rows_store(tmp_path / "three", x, [None] * 3, holdout=0.1)
    with pytest.raises(DataError, match="do not vary"):
        saekit.train(store, tmp_path / "run", model="pca", latents=1)


def test_each_half_of_a_vae_shapes_the_code(images, tmp_path):
    """The reconstruction term by itself spreads the codes, the KL by itself puts all rows at the
    prior's mean; with both, codes stay within the prior."""
    spread = {}
    for name, weights in (
        ("reconstruction", {"beta": 0.0}),
        ("kl", {"likelihood_weight": 0.0}),
        ("both", {}),
    ):
        settings = {
            "latents": 2,
            "hidden": (32,),
            "output": "bernoulli",
            "rows": 24_000,
            "batch": 40,
            **weights,
        }
        saekit.train(images, tmp_path / name, model="vae", **settings)
        x = torch.cat([batch.x for batch in saekit.open_store(images).batches(256, split="train")])
        spread[name] = float(saekit.load(tmp_path / name).encode(x).std(0).mean())
    assert (
        spread["kl"] < 0.1 < 0.4 < spread["both"] < 1.3
        and spread["reconstruction"] > 1.5 * spread["both"]
    )

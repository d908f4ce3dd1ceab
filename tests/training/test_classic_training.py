"""The classic models in the one loop: they learn, resume bit for bit, take raw data as it is, and
say what they were told."""

from __future__ import annotations

import json
import tomllib

import made_stores
import numpy as np
import pytest
import torch
from made_runs import break_off, equal, tensors
from made_stores import write_store
from saekit_cli import app
from sklearn.decomposition import PCA as SklearnPCA

import saekit
from saekit.errors import DataError, UsageError
from saekit.models.catalog import build
from saekit.store.memory import ArraySource
from saekit.store.reader import open_store
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolved
from saekit.training.fit import fit, holdout_figures

SMALL = {"model": "dense", "hidden": (24,), "latents": 6, "batch": 64}


def steps_of(path):
    return [
        {k: v for k, v in json.loads(line).items() if k != "rows_per_s"}
        for line in open(path / "metrics.jsonl")
    ]


def images(rows, width=16, seed=0):
    """Values in [0, 1] that three numbers explain."""
    gen = torch.Generator().manual_seed(seed)
    return torch.sigmoid(
        torch.randn(rows, 3, generator=gen)
        @ torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    )


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A store of data itself, not of hidden states."""
    with monkeypatch.context() as patched:
        patched.setattr(made_stores, "make_rows", images)
        path = write_store(
            tmp_path / "raw",
            1200,
            model="raw:array",
            hook="array",
            modality="array",
            dtype="float32",
        )
    return open_store(path)


@pytest.mark.parametrize(
    "options",
    [
        {"noise": "gaussian:0.3"},
        {"noise": "masking:0.3", "sparsity": "l1", "tied": True},
        {"sparsity": "kl-sigmoid", "contractive": 0.1, "clip": 1.0, "weight_decay": 0.1},
        {"model": "linear", "hidden": None},
        {"model": "vae"},
        {"model": "vae", "noise": "masking:0.2", "beta": 4.0},
    ],
)
def test_ten_steps_are_five_steps_a_resume_and_five_steps(store, tmp_path, options):
    settings = {
        key: value for key, value in {**SMALL, "rows": 640, **options}.items() if value is not None
    }
    config = TrainConfig.from_flat(settings)
    saekit.train(store.path, tmp_path / "whole", config=config)

    break_off(store.path, tmp_path / "broken", config, 5)
    torch.manual_seed(99)  # the state of the global generator does not affect a run
    saekit.train(store.path, tmp_path / "broken", config=config, resume=True)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "broken"))
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "broken")
    saekit.train(store.path, tmp_path / "other", **{**settings, "seed": 1})
    assert not equal(tensors(tmp_path / "whole"), tensors(tmp_path / "other"))


@pytest.mark.parametrize(
    "options,times",
    [
        ({}, 3),
        ({"noise": "gaussian:0.1"}, 3),
        # of a few rectified latents, some die
        ({"sparsity": "l1", "coef": 0.01, "latents": 32}, 2),
        ({"contractive": 1e-4}, 3),
        ({"tied": True}, 3),
        ({"model": "vae", "beta": 0.1}, 5),
    ],
)
def test_classic_models_come_near_pca_on_what_three_numbers_explain(raw, tmp_path, options, times):
    result = saekit.train(
        raw.path, tmp_path / "run", **{**SMALL, "rows": 60_000, "lr": 3e-3, **options}
    )
    train, held = (
        torch.cat([b.x for b in raw.batches(500, split=s)]).double().numpy()
        for s in ("train", "holdout")
    )
    pca = SklearnPCA(3).fit(train)
    floor = (
        np.square(held - pca.inverse_transform(pca.transform(held))).sum()
        / np.square(held - held.mean(0)).sum()
    )
    assert result.metrics["fvu"] < times * floor < 0.15


def test_the_step_s_own_fvu_is_logged_whatever_the_loss(raw, tmp_path):
    saekit.train(
        raw.path, tmp_path / "run", **{**SMALL, "rows": 30_000, "output": "bernoulli", "lr": 3e-3}
    )
    last = steps_of(tmp_path / "run")[-1]
    assert last["fvu"] < 0.3 and last["reconstruction"] > 1, (
        "cross-entropy does not go to 0, the squared error does"
    )
    assert last["fvu"] == pytest.approx(
        last["squared_error"] / torch.cat([b.x for b in raw.batches(500)]).var(0).sum().item(),
        rel=0.3,
    )


def test_raw_data_are_taken_as_they_are_and_hidden_states_are_normalized(raw, store, tmp_path):
    for name, source, own in (("as they are", raw, True), ("hidden", store, False)):
        saekit.train(source.path, tmp_path / name, **{**SMALL, "rows": 64})
        model = saekit.load(tmp_path / name)
        assert (model.input_scale == 1 and not model.input_mean.any()) == own
        assert (model.output_scale == 1 and not model.output_mean.any()) == own
    saekit.train(raw.path, tmp_path / "asked", **{**SMALL, "rows": 64, "normalize": "center+scale"})
    train = torch.cat([b.x for b in raw.batches(500, split="train")])
    torch.testing.assert_close(saekit.load(tmp_path / "asked").input_mean, train.mean(0))
    with pytest.raises(
        DataError, match=r'output="bernoulli" gives values in .* the data range from'
    ):
        saekit.train(
            raw.path,
            tmp_path / "no",
            **{**SMALL, "rows": 64, "normalize": "center+scale", "output": "bernoulli"},
        )


@pytest.mark.parametrize("model", ["pca", "kmeans"])
def test_closed_forms_take_raw_data(raw, tmp_path, model):
    result = saekit.train(raw.path, tmp_path / "run", model=model, latents=3)
    train, held = (
        torch.cat([b.x for b in raw.batches(500, split=s)]).double().numpy()
        for s in ("train", "holdout")
    )
    variance = np.square(held - held.mean(0)).sum()
    loaded = saekit.load(tmp_path / "run")
    if model == "pca":
        pca = SklearnPCA(3).fit(train)
        assert result.metrics["fvu"] == pytest.approx(
            np.square(held - pca.inverse_transform(pca.transform(held))).sum() / variance, rel=1e-4
        )
        np.testing.assert_allclose(loaded.mean.numpy(), train.mean(0), rtol=1e-5)
    else:
        centroids = loaded.centroids.double().numpy()
        distances = np.square(held[:, None] - centroids[None]).sum(2)
        assert result.metrics["fvu"] == pytest.approx(distances.min(1).sum() / variance, rel=1e-4)
        assert result.metrics["l0"] == pytest.approx(1.0) and 0.1 < result.metrics["fvu"] < 0.9
    assert result.rows == len(raw.split("train")) and result.step == 1


@pytest.mark.parametrize("model", ["dense", "linear", "vae", "pca", "kmeans"])
def test_kernels_for_sparse_codes_are_refused_where_there_are_none(store, tmp_path, model):
    with pytest.raises(UsageError, match='backend="triton": this model has no sparse code'):
        saekit.train(store.path, tmp_path / "run", model=model, latents=4, backend="triton")
    assert not (tmp_path / "run").exists()
    result = saekit.train(store.path, tmp_path / "run", model=model, latents=4, rows=256)
    assert result.backend == "torch"


def test_the_decay_reaches_the_weights(store, tmp_path):
    norms = []
    for decay in (0.0, 1.0):
        saekit.train(
            store.path,
            tmp_path / str(decay),
            **{**SMALL, "rows": 64 * 200, "lr": 3e-3, "weight_decay": decay},
        )
        norms.append(
            sum(
                t.square().sum().item()
                for name, t in tensors(tmp_path / str(decay)).items()
                if "W_" in name
            )
        )
    assert norms[1] < 0.8 * norms[0]
    with pytest.raises(UsageError, match="weight_decay=-1 must not be negative"):
        TrainConfig.from_flat({"weight_decay": -1.0})


@pytest.mark.parametrize("output", ["linear", "bernoulli"])
def test_a_vae_reports_its_bound_on_held_out_rows(raw, tmp_path, output):
    result = saekit.train(
        raw.path,
        tmp_path / "run",
        **{**SMALL, "model": "vae", "rows": 120_000, "lr": 1e-2, "output": output},
    )
    model = saekit.load(tmp_path / "run")
    held = torch.cat([b.x for b in raw.batches(500, split="holdout")])
    draws = torch.stack(
        [model.elbo(held, torch.Generator().manual_seed(seed)).mean() for seed in range(50)]
    )
    assert result.metrics["elbo"] == pytest.approx(draws.mean().item(), abs=5 * draws.std().item())
    # A model that knows mean and variance of every value and nothing else.
    mean, variance = held.mean(0), held.var(0)
    constant = -0.5 * (torch.log(2 * torch.pi * variance) + 1).sum()
    if output == "bernoulli":
        constant = (held * mean.log() + (1 - held) * (1 - mean).log()).sum(1).mean()
    assert result.metrics["elbo"] > constant.item() - 0.2, (
        "grey values tell a Bernoulli little, so that its bound is nearly this"
    )
    if output == "linear":
        assert result.metrics["elbo"] > constant.item() + 2


def test_the_figures_of_a_sparse_code_are_counted_and_those_of_a_dense_one_are_none(
    store, tmp_path
):
    dense = saekit.train(store.path, tmp_path / "dense", **SMALL, rows=6_400).metrics
    assert dense["l0"] is None and dense["dead"] is None and "dead_train" not in dense
    for sparsity, above in (("l1", 0.0), ("kl-sigmoid", 0.5)):
        metrics = saekit.train(
            store.path, tmp_path / sparsity, **SMALL, rows=6_400, sparsity=sparsity
        ).metrics
        held = torch.cat([b.x for b in store.batches(500, split="holdout")]).float()
        code = saekit.load(tmp_path / sparsity).encode(held)
        assert metrics["l0"] == pytest.approx((code > above).sum(1).double().mean().item())
        assert metrics["dead"] == pytest.approx((~(code > above).any(0)).double().mean().item())


CLI_RUNS = [
    (
        "dense",
        (
            "--hidden",
            "24,12",
            "--noise",
            "masking:0.2",
            "--sparsity",
            "l1",
            "--tied",
            "--contractive",
            "0.1",
        ),
    ),
    (
        "dense",
        (
            "--hidden",
            "24",
            "--activation",
            "sigmoid",
            "--pretrain",
            "rbm",
            "--pretrain-share",
            "0.3",
        ),
    ),
    ("linear", ("--weight-decay", "0")),
    ("vae", ("--hidden", "24", "--beta", "2", "--output", "bernoulli")),
    ("kmeans", ("--seed", "1")),
    ("pca", ()),
]


@pytest.mark.parametrize("model,flags", CLI_RUNS)
def test_the_resolved_config_of_a_run_can_be_given_back(raw, tmp_path, capsys, model, flags):
    def status(*arguments):
        return app._status([str(a) for a in arguments])

    given = (
        "--model",
        model,
        "--latents",
        5,
        *flags,
        *(() if model in ("pca", "kmeans") else ("--batch", 64, "--rows", 640)),
    )
    assert status("train", raw.path, tmp_path / "a", *given, "-q") == 0, capsys.readouterr().err
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert config["model"] == model and config["latents"] == 5
    assert (
        status("train", raw.path, tmp_path / "b", "--config", tmp_path / "a" / "config.toml", "-q")
        == 0
    ), capsys.readouterr().err
    assert equal(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    again = tomllib.loads((tmp_path / "b" / "config.toml").read_text())
    assert again == config
    assert saekit.load(tmp_path / "a").config == saekit.load(tmp_path / "b").config


def test_the_seed_reaches_every_model(raw, tmp_path):
    for model in ("dense", "linear", "vae", "kmeans"):
        runs = []
        for seed in (0, 1):
            options = {} if model == "kmeans" else {"rows": 640, "batch": 64}
            saekit.train(
                raw.path, tmp_path / f"{model}{seed}", model=model, latents=12, seed=seed, **options
            )
            runs.append(tensors(tmp_path / f"{model}{seed}"))
        assert not equal(*runs), model


def test_an_array_trains_as_a_store_does_and_without_a_folder(tmp_path):
    x = images(600)
    options = {
        "model": "dense",
        "hidden": (24,),
        "latents": 3,
        "batch": 64,
        "rows": 40_000,
        "lr": 3e-3,
    }
    config = TrainConfig.from_flat(options)
    model = build("dense", 16, config.options)
    config = resolved(config, model, len(x))
    source = ArraySource(x.numpy())
    fitted = fit(model, source, config, config.rows // config.batch, torch.device("cpu"))
    assert fitted.rows == fitted.done == 64 * fitted.steps and fitted.figures == {}
    outside = build("dense", 16, config.options)
    outside.load_state_dict(fitted.tensors)
    held = images(300, seed=7)
    fvu = (outside(held).x_hat - held).square().sum() / (held - held.mean(0)).square().sum()
    assert fvu < 0.1
    again = build("dense", 16, config.options)
    repeated = fit(again, ArraySource(x), config, config.rows // config.batch, torch.device("cpu"))
    assert equal(fitted.tensors, repeated.tensors)


def test_an_array_with_a_target_is_judged_and_scaled_by_the_target():
    x = images(600)
    target = 50 + 20 * x[:, :5] - 7 * x[:, 5:10]
    config = TrainConfig.from_flat(
        {
            "model": "dense",
            "hidden": (24,),
            "latents": 4,
            "batch": 64,
            "rows": 40_000,
            "lr": 3e-3,
            "normalize": "center+scale",
        }
    )
    model = build("dense", 16, config.options, d_out=5)
    config = resolved(config, model, len(x))
    fitted = fit(model, ArraySource(x, target=target), config, 600, torch.device("cpu"))
    outside = build("dense", 16, config.options, d_out=5)
    outside.load_state_dict(fitted.tensors)
    torch.testing.assert_close(outside.output_mean, target.mean(0), rtol=1e-4, atol=1e-4)
    residual = (outside(x).x_hat - target).square().sum() / (target - target.mean(0)).square().sum()
    assert residual < 0.08


def test_figures_of_part_of_the_rows_are_those_of_the_first_ones(raw, tmp_path):
    saekit.train(raw.path, tmp_path / "run", **SMALL, rows=640)
    model = saekit.load(tmp_path / "run")
    figures = holdout_figures(model, raw, "train", rows=100)
    x = next(raw.batches(100, split="train")).x.double()
    error = (model(x.float()).x_hat.double() - x).square().sum()
    assert figures.rows == 100 and figures["fvu"] == pytest.approx(
        (error / (x - x.mean(0)).square().sum()).item(), rel=1e-6
    )

"""The loop: what it learns, what a checkpoint holds, and that a resumed run has the bits of an
unbroken one."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from kills import killed_after
from made_runs import break_off, equal, tensors
from made_stores import damage, make_rows, write_store

import saekit
from saekit.errors import DataError, MissingError, NumericsError, UsageError
from saekit.models.catalog import build
from saekit.models.sae import SAE
from saekit.store.checkpoint import read_checkpoint
from saekit.store.files import sha256_of
from saekit.store.opening import open_rows
from saekit.store.reader import open_store
from saekit.training.config import TrainConfig
from saekit.training.dead import (
    DeadTracker,
    dead_rows,
    resampling_steps,
    revive_rows,
)
from saekit.training.inputs import estimate
from saekit.training.loop import Trainer
from saekit.training.optim import make_adam, reset_moments, schedule

SMALL = {"expansion": 4, "batch": 256, "lr": 3e-3}
TOPK = {**SMALL, "k": 4}


@pytest.mark.parametrize(
    "options,most",
    [
        ({"sparsity": "topk", "k": 4}, 0.35),
        ({"sparsity": "l1", "coef": 0.3}, 0.35),
        ({"sparsity": "kl-sigmoid", "coef": 0.01}, 0.5),
    ],
)
def test_training_explains_the_data(store, tmp_path, options, most):
    result = saekit.train(store.path, tmp_path / "run", **{**SMALL, **options}, rows=60_000)
    untrained = SAE(saekit.load(tmp_path / "run").config)
    assert result.metrics["fvu"] < most
    x = make_rows(200)
    assert (untrained(x).x_hat - x).square().sum() > 2 * (
        saekit.load(tmp_path / "run")(x).x_hat - x
    ).square().sum()


def test_pca_goes_through_the_same_door(store, tmp_path):
    result = saekit.train(store.path, tmp_path / "run", model="pca", latents=16)
    assert result.metrics["fvu"] == pytest.approx(0, abs=1e-5)
    assert (
        result.metrics["l0"] is None
        and result.step == 1
        and result.rows == len(store.split("train"))
    )


def test_the_checkpoint_acts_on_raw_rows_and_says_how_it_was_made(store, tmp_path):
    result = saekit.train(store.path, tmp_path / "run", **SMALL)
    sae = saekit.load(tmp_path / "run")
    held = torch.cat([b.x for b in store.batches(512, split="holdout")]).double()
    x_hat = sae(held.float()).x_hat.double()
    fvu = (held - x_hat).square().sum() / (held - held.mean(0)).square().sum()
    assert result.metrics["fvu"] == pytest.approx(fvu.item(), rel=1e-6)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (
        config["spec"] == store.spec.to_json() and config["fingerprint"] == store.spec.fingerprint
    )
    assert config["backend"]["name"] == "torch" and config["training"]["batch"] == 256
    assert set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()} <= {
        ".json",
        ".jsonl",
        ".safetensors",
        ".toml",
    }
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == result.step and {
        "loss",
        "fvu",
        "l0",
        "dead",
        "lr",
        "rows_per_s",
    } <= set(lines[0])


@pytest.mark.parametrize("options", [{"k": 4}, {"sparsity": "l1"}, {"sparsity": "kl-sigmoid"}])
def test_ten_steps_are_five_steps_a_resume_and_five_steps(store, tmp_path, options):
    config = TrainConfig.from_flat({**SMALL, **options, "rows": 10 * 256})
    saekit.train(store.path, tmp_path / "whole", config=config)

    break_off(store.path, tmp_path / "broken", config, 5)
    with pytest.raises(DataError, match="training run that did not finish"):
        saekit.load(tmp_path / "broken")
    saekit.train(store.path, tmp_path / "broken", config=config, resume=True)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "broken"))

    def steps(path):
        return [
            {k: v for k, v in json.loads(line).items() if k != "rows_per_s"}
            for line in open(path / "metrics.jsonl")
        ]

    assert steps(tmp_path / "whole") == steps(tmp_path / "broken")


@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(store, tmp_path, monkeypatch):
    def run(out):
        saekit.train(
            store.path,
            tmp_path / out,
            expansion=4,
            k=4,
            batch=64,
            rows=64 * 300,
            save_seconds=0.02,
            resume=True,
        )

    def slow(self, raw, original=Trainer.train_step):
        time.sleep(0.01)
        return original(self, raw)

    run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", slow)
        killed_after(
            tmp_path / "broken" / "train_state" / "state.safetensors", 0.2, lambda: run("broken")
        )
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    run("broken")
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "broken"))
    assert sha256_of(tmp_path / "whole/model.safetensors") == sha256_of(
        tmp_path / "broken/model.safetensors"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_the_state_first(store, tmp_path, number, monkeypatch):
    def interrupted(self, raw, original=Trainer.train_step):
        if self.step == 3:
            os.kill(os.getpid(), number)
        return original(self, raw)

    # a shell may start its background jobs with SIGINT ignored
    before = signal.getsignal(signal.SIGINT)
    config = TrainConfig.from_flat({**SMALL, "rows": 10 * 256})
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saekit.train(store.path, tmp_path / "broken", config=config)
    saekit.train(store.path, tmp_path / "broken", config=config, resume=True)
    saekit.train(store.path, tmp_path / "whole", config=config)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "broken"))
    assert signal.getsignal(signal.SIGINT) is before, "as it was"


def test_resume_refuses_other_settings_and_names_them(store, tmp_path):
    saekit.train(store.path, tmp_path / "run", **TOPK)
    with pytest.raises(DataError, match=r"other settings: k 4 -> 5"):
        saekit.train(store.path, tmp_path / "run", **{**TOPK, "k": 5}, resume=True)
    with pytest.raises(DataError, match="exists and is not empty"):
        saekit.train(store.path, tmp_path / "run", **TOPK)
    before = tensors(tmp_path / "run")
    result = saekit.train(store.path, tmp_path / "run", **TOPK, resume=True)
    assert equal(before, tensors(tmp_path / "run")) and result.path == str(tmp_path / "run")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_is_named_by_shard_and_row(store, tmp_path, value):
    row = store.split("train").slices(700, 701)[0][0]
    shard, local = damage(store, row, value)
    with pytest.raises(NumericsError, match=rf"(?m)shard {shard} row {local}$"):
        saekit.train(store.path, tmp_path / "run", **SMALL)


def test_a_bad_row_that_the_statistics_did_not_see_is_named_in_the_loop(
    store, tmp_path, monkeypatch
):
    import saekit.training.inputs as inputs

    monkeypatch.setattr(inputs, "STATISTICS_ROWS", 300)
    seen = {int(r) for b in [next(store.batches(300, seed=0, split="train"))] for r in b.rows}
    row = next(r for r in range(2000) if r not in seen and r in set(store_rows(store, "train")))
    shard, local = damage(store, row)
    with pytest.raises(NumericsError, match=rf"(?m)shard {shard} row {local}$"):
        saekit.train(store.path, tmp_path / "run", **SMALL)


def store_rows(store, split):
    return torch.cat([b.rows for b in store.batches(500, split=split)]).tolist()


def test_a_loss_that_diverges_names_step_and_term(store, tmp_path, monkeypatch):
    def exploding(self, batch, step, original=SAE.loss):
        terms = original(self, batch, step)
        if step.number == 4:
            terms.terms["reconstruction"] = terms.terms["reconstruction"] * float("inf")
            terms.total = terms.total * float("inf")
        return terms

    monkeypatch.setattr(SAE, "loss", exploding)
    with pytest.raises(NumericsError, match="diverged at step 5: reconstruction is inf"):
        saekit.train(store.path, tmp_path / "run", **SMALL)


@pytest.mark.parametrize(
    "mode,mean_square", [("center+scale", 16.0), ("scale", 16.0), ("none", None)]
)
def test_inputs_are_normalized_on_training_rows_only(store, mode, mean_square):
    normalize, sample = estimate(store, mode, 0, torch.device("cpu"))
    x = torch.cat([normalize(b).x for b in store.batches(500, split="train")]).double()
    raw = torch.cat([b.x for b in store.batches(500, split="train")]).double()
    if mean_square:
        assert x.square().sum(1).mean().item() == pytest.approx(mean_square, rel=1e-4)
    else:
        torch.testing.assert_close(x, raw)
    expected = raw.mean(0) if mode == "center+scale" else torch.zeros(16).double()
    torch.testing.assert_close(normalize.inputs.mean_D.double(), expected, rtol=1e-5, atol=1e-6)
    assert sample.shape[1] == 16


def test_the_rate_warms_up_stays_and_decays():
    factors = [schedule(step, 100, 0.2, "linear", 0.05) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:80] == [1.0] * 75
    assert factors[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])


def test_a_latent_is_dead_after_so_many_rows_without_firing():
    tracker = DeadTracker(3, threshold=20, revive=20, device=torch.device("cpu"))
    fires_first, fires_none = torch.tensor([10, 0, 0]), torch.zeros(3, dtype=torch.int64)
    tracker.update(fires_first, 10)
    assert tracker.idle.tolist() == [0, 10, 10] and tracker.share() == 0 and tracker.l0 == 1.0
    tracker.update(fires_first, 10)
    assert tracker.dead().tolist() == [1, 2] and tracker.share() == pytest.approx(2 / 3)
    tracker.update(fires_none, 10)
    tracker.update(fires_none, 10)
    assert tracker.dead().tolist() == [1, 2, 0], "longest idle first"
    assert dead_rows(5_000) == 5_000 and dead_rows(10**9) == 10_000_000


def test_a_latent_is_revived_before_it_counts_as_dead_where_the_run_is_short():
    tracker = DeadTracker(2, threshold=20, revive=10, device=torch.device("cpu"))
    tracker.update(torch.tensor([10, 0]), 10)
    assert tracker.dead().tolist() == [1] and tracker.share() == 0
    assert revive_rows(5_000, 10_000) == 1_000, "a tenth of the run"
    assert revive_rows(5_000, 10**6) == 5_000 and revive_rows(10**9, 10**10) == 10_000_000, (
        "when it is dead"
    )


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk"])
def test_nudges_change_nothing_before_a_latent_is_dead(tmp_path, sparsity):
    path = write_store(tmp_path / "store", 2000)
    options = {"rows": 1_800, "batch": 64, "lr": 3e-2, "sparsity": sparsity, "latents": 256, "k": 2}
    runs = [
        saekit.train(path, None, revive=way, **options).model.state_dict()
        for way in ("nudge", "none")
    ]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_nudges_bring_dead_latents_back(tmp_path):
    path = write_store(tmp_path / "store", 2000)
    options = {"rows": 40_000, "batch": 64, "lr": 3e-2, "latents": 256, "k": 2}
    dead = [
        saekit.train(path, None, revive=way, **options).metrics["dead_train"]
        for way in ("nudge", "none")
    ]
    assert dead[1] > 0.5 and dead[0] < dead[1] / 2, dead


@pytest.mark.parametrize(
    ("more", "options", "expected"),
    [
        (0, {}, "nudge"),  # added to the most latents with three training rows each
        (1, {}, "none"),
        (1, {"revive": "nudge"}, "nudge"),
        (1, {"sparsity": "kl"}, "aux"),
    ],
)
def test_latents_are_not_nudged_by_default_where_rows_are_few(tmp_path, more, options, expected):
    path, said = write_store(tmp_path / "store", 500), []
    latents = open_rows(path).count("train") // 3 + more
    result = saekit.train(
        path, None, latents=latents, rows=256, batch=64, progress=said.append, **options
    )
    assert result.model.config.revive == expected
    notices = [each.message for each in said if each.message and "per latent" in each.message]
    assert len(notices) == (expected == "none")


def test_resampling_zeroes_only_the_moments_of_the_dead():
    sae = build("sae", 16, {"latents": 8, "sparsity": "l1"})
    optimizer = make_adam(sae, 1e-3)
    sae.initialise_from(make_rows(100), torch.Generator().manual_seed(0))
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    reset_moments(optimizer, torch.tensor([2]), 8)
    for name, parameter in sae.named_parameters():
        moments = optimizer.state[parameter]["exp_avg"]
        if name == "b_dec":
            assert (moments != 0).all()
        else:
            assert (moments[2] == 0).all() and (moments[[0, 1, 3]] != 0).all()
    assert resampling_steps(800) == {100, 200, 300, 400}


def test_resampled_latents_each_have_a_row_of_their_own(tmp_path, monkeypatch):
    opened = open_store(write_store(tmp_path / "s", 600))
    resampled, shared = [], []

    def watched(self, dead, *more, original=SAE.resample):
        original(self, dead, *more)
        atoms = self.W_dec.detach()[dead]
        resampled.append(len(dead))
        shared.append(int((atoms @ atoms.T > 0.999).sum()) - len(dead))

    monkeypatch.setattr(SAE, "resample", watched)
    strong = {
        "sparsity": "l1",
        "revive": "resample",
        "coef": 60.0,
        "coef_warmup": 0.0,
        "batch": 64,
        "rows": 64 * 200,
        "expansion": 4,
        "lr": 0.02,
    }
    saekit.train(opened.path, tmp_path / "run", **strong)
    assert resampled and 0 < max(resampled) <= 32, "at most one latent for every second row"
    assert not any(shared), "each at its own row"


@pytest.mark.parametrize(
    "options,error,words",
    [
        ({"batch": 10_000}, DataError, r"batch=10000 is above the 1,8\d\d training rows"),
        ({"model": "pca", "k": 3}, UsageError, 'k does not apply to model="pca"'),
        ({"sparsity": "l1", "k": 3}, UsageError, 'k does not apply to sparsity="l1"'),
        ({"coef": 3.0}, UsageError, 'coef does not apply to sparsity="topk"'),
        ({"seed": -1}, UsageError, "seed=-1 must not be negative"),
        ({"latents": -5}, UsageError, "latents=-5 must be between"),
        ({"expansion": float("nan")}, UsageError, "expansion=nan must be above 0"),
        ({"normalize": "center"}, UsageError, 'normalize="center": did you mean center'),
        ({"rows": -1}, UsageError, "rows=-1 must be above 0"),
        ({"device": "tpu9"}, UsageError, 'device="tpu9"'),
    ],
)
def test_wrong_settings(store, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        saekit.train(store.path, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(MissingError, match="no checkpoint at"):
        saekit.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a pickle"):
        saekit.load(tmp_path / "sae.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        saekit.load(tmp_path / "empty")


def test_clipping_bounds_the_gradient(store, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.Adam.step

    def recorded(self, *a, **k):
        norms.append(
            torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).norm().item()
        )
        return original(self, *a, **k)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    saekit.train(store.path, tmp_path / "run", **SMALL, rows=2560, clip=0.5)
    assert max(norms) <= 0.5 * 1.0001


def test_resume_never_writes_into_a_folder_that_is_not_a_run(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("precious = true")
    with pytest.raises(DataError, match=r"did not write: config\.toml"):
        saekit.train(store.path, tmp_path / "mine", **SMALL, resume=True)
    assert (tmp_path / "mine" / "config.toml").read_text() == "precious = true" and len(
        list((tmp_path / "mine").iterdir())
    ) == 1


def test_resume_and_overwrite_together_are_refused_and_nothing_is_lost(store, tmp_path):
    saekit.train(store.path, tmp_path / "run", **SMALL)
    with pytest.raises(UsageError, match="contradict"):
        saekit.train(store.path, tmp_path / "run", **SMALL, resume=True, overwrite=True)
    assert saekit.load(tmp_path / "run").latents == 64


def test_a_store_with_the_same_settings_and_other_rows_is_not_the_training_store(store, tmp_path):
    saekit.train(store.path, tmp_path / "run", **SMALL)
    other = write_store(tmp_path / "other", 1000)
    assert open_store(other).spec.fingerprint == store.spec.fingerprint
    with pytest.raises(DataError, match="other settings: content"):
        saekit.train(other, tmp_path / "run", **SMALL, resume=True)
    assert [
        e.split
        for e in saekit.evaluate(tmp_path / "run", other)
        + saekit.evaluate(tmp_path / "run", store.path)
    ] == ["all", "holdout"]


def test_dead_in_training_is_not_claimed_for_less_than_an_epoch(store, tmp_path):
    short = saekit.train(store.path, tmp_path / "short", **SMALL, rows=512)
    long = saekit.train(store.path, tmp_path / "long", **SMALL, rows=4096)
    assert short.metrics["dead_train"] is None and long.metrics["dead_train"] is not None


@pytest.mark.parametrize("options", [{"model": "pca", "latents": 4}, SMALL])
def test_a_bad_held_out_row_is_named(store, tmp_path, options):
    shard, local = damage(store, store.split("holdout").slices(3, 4)[0][0])
    with pytest.raises(NumericsError, match=rf"(?m)shard {shard} row {local}$"):
        saekit.train(store.path, tmp_path / "run", **options)


def test_a_model_works_in_and_out_of_inference_mode(store, tmp_path):
    saekit.train(store.path, tmp_path / "run", **SMALL)
    sae, x = saekit.load(tmp_path / "run"), make_rows(50)
    with torch.inference_mode():
        inside = sae(x).x_hat.clone()
    assert torch.equal(sae(x).x_hat, inside)


def test_a_run_that_ends_far_off_is_an_error_and_no_checkpoint(store, tmp_path):
    with pytest.raises(NumericsError, match="the run diverged: held-out fvu"):
        saekit.train(store.path, tmp_path / "run", **{**SMALL, "lr": 1e6})
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_needs_no_installed_package(tmp_path, monkeypatch):
    """Sources that are only on PYTHONPATH have no metadata; a run must not end with that."""
    import importlib.metadata

    def none(_):
        raise importlib.metadata.PackageNotFoundError("saekit")

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", none)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("saekit")
    store = write_store(tmp_path / "store", 600)
    saekit.train(store, tmp_path / "run", latents=32, k=4, rows=512, batch=256)
    recorded = read_checkpoint(tmp_path / "run").config["versions"]
    assert recorded == {"saekit": saekit.__version__, "torch": torch.__version__}

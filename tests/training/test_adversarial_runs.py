"""Runs of two players: the same bits after a kill, labels, health, samples, hidden states."""

from __future__ import annotations

import json

import pytest
import torch
from command import saekit as command
from made_runs import break_off, digits_store, equal, rows_store, tensors
from made_stores import write_store
from safetensors.torch import load_file

import saekit
from saekit.errors import DataError, UsageError, spelled
from saekit.models.catalog import build
from saekit.store.labels import WithLabels, classes_of
from saekit.store.memory import ArraySource
from saekit.training.config import TrainConfig
from saekit.training.health import Health, Reference, is_due

RUNS = {
    "gan": {"hidden": (16,), "spectral_norm": True, "instance_noise": 0.1},
    "dcgan": {"channels": (4,), "discriminator_rate": 0.5},
    "cgan": {"channels": (4,)},
    "aae": {"hidden": (16,), "ema": 0.9},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return digits_store(tmp_path_factory.mktemp("images") / "store", rows=300, holdout=0.2)


def small(name, **more):
    return {"model": name, "latents": 4, **RUNS[name], "rows": 640, "batch": 32, **more}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- bits


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_equal_a_kill_a_resume_and_the_rest(images, tmp_path, name):
    config = TrainConfig.from_flat(small(name))
    saekit.train(images, tmp_path / "whole", config=config)
    break_off(images, tmp_path / "killed", config, step=9)
    state = load_file(tmp_path / "killed" / "train_state" / "state.safetensors")
    moments = {key.rpartition(".")[0] for key in state if key.startswith("adam.exp_avg.")}
    assert any("discriminator" in key for key in moments)
    saekit.train(images, tmp_path / "killed", config=config, resume=True)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "killed"))
    whole, killed = (
        [{k: v for k, v in line.items() if k != "rows_per_s"} for line in lines(tmp_path / run)]
        for run in ("whole", "killed")
    )
    assert whole == killed


def test_another_seed_gives_other_weights(images):
    first, again, other = (
        saekit.train(images, **small("gan", seed=seed)).model.state_dict() for seed in (0, 0, 1)
    )
    assert equal(first, again) and not equal(first, other)


def test_a_step_in_bfloat16_moves_both_players(images):
    model = saekit.train(images, **small("dcgan", precision="bfloat16")).model
    fp32 = saekit.train(images, **small("dcgan")).model
    for side in ("generator", "discriminator"):
        pairs = zip(model.side(side), fp32.side(side))
        assert any(not torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_metrics_name_both_losses_and_what_is_drawn(images, tmp_path):
    result = saekit.train(images, tmp_path / "run", **small("dcgan"))
    found = lines(tmp_path / "run")
    assert all({"generator", "discriminator", "told_apart"} <= line.keys() for line in found)
    health = [line for line in found if "diversity" in line]
    assert 15 <= len(health) <= 25 and all(0 <= line["classes"] <= 1 for line in health)
    assert result.metrics["fvu"] is None and result.metrics["diversity"] > 0


# -- labels


def test_classes_are_the_labels_of_the_rows_in_their_order(images):
    store = saekit.open_store(images)
    classes = classes_of(store)
    assert classes == tuple("0123456789")
    labels = store.labels()
    for batch in (next(WithLabels(store, classes).batches(40, seed)) for seed in (None, 3)):
        assert [labels[row] for row in batch.rows] == [classes[y] for y in batch.label]


def test_a_store_without_labels_is_refused(tmp_path):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    bare = rows_store(tmp_path / "bare", x, [None] * 60)
    with pytest.raises(DataError, match="bare has no labels, and the class of every row is needed"):
        saekit.train(bare, model="cgan")
    some = rows_store(tmp_path / "some", x, ["a"] * 30 + [None] * 30)
    with pytest.raises(DataError, match="none for 30 of 60"):
        saekit.train(some, model="cgan")
    with pytest.raises(DataError, match="have 1 different labels"):
        saekit.train(rows_store(tmp_path / "one", x, ["a"] * 60), model="cgan")
    with pytest.raises(DataError, match="no labels"):
        saekit.train(x, model="cgan")


def test_samples_of_a_class_are_of_that_class(tmp_path):
    """Two classes far from each other, on rows."""
    y = torch.arange(600) % 2
    noise = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    x = noise + 6.0 * (2 * y[:, None] - 1)
    store = rows_store(tmp_path / "two", x, ["low" if k == 0 else "high" for k in y.tolist()])
    options = {"hidden": (32,), "latents": 6, "lr": 2e-3, "rows": 16_000, "batch": 32}
    saekit.train(store, tmp_path / "run", model="cgan", normalize="center+scale", **options)
    for label, sign in (("low", -1), ("high", 1)):
        drawn = saekit.sample(tmp_path / "run", 50, label=label)
        assert (sign * drawn.mean(1) > 2).float().mean() > 0.9, label


# -- health


def test_diversity_and_classes_by_hand():
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    real = Reference(rows, ["a", "b", None, "c"])  # the third row has no label to give
    nearest = (1 + 1 + 2 + 4) / 4
    two_pairs = torch.tensor([[0.0], [0.5], [9.0], [9.5]])
    assert real.diversity(two_pairs) == pytest.approx(0.5 / nearest)
    assert real.diversity(torch.zeros(4, 1)) == 0
    assert Reference(torch.zeros(4, 1), [None] * 4).diversity(rows) is None
    assert Reference(rows[:1], [None]).diversity(rows) is None
    assert real.classes_found(torch.tensor([[0.1], [0.9], [3.1]])) == pytest.approx(2 / 3)
    assert Reference(rows, [None] * 4).classes_found(rows) is None
    # a class with a tenth of the samples that its share would give is not found
    many = torch.cat([torch.zeros(29, 1), torch.ones(1, 1)])
    assert Reference(rows, ["a", "b", "c", "c"]).classes_found(many) == pytest.approx(1 / 3)


def test_a_sample_far_from_all_rows_has_no_class():
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    real = Reference(rows, list("abcd"))  # to the nearest: 1, 1, 2, 4; the quantile .9 is 3.4
    assert real.classes_found(torch.tensor([[7.0 + 3.3]])) == 1 / 4
    assert real.classes_found(torch.tensor([[7.0 + 3.5]])) == 0


@pytest.fixture(scope="module")
def digits(images):
    store = saekit.open_store(images)
    batch = next(store.batches(240, 0, split="train"))
    labels = store.labels()
    return batch.x.float(), [labels[row] for row in batch.rows.tolist()]


def test_noise_on_copies_of_one_image_is_not_diverse(digits):
    x, labels = digits
    real = Reference(x[:120], labels[:120])
    generator = torch.Generator().manual_seed(0)
    # noise of a tenth of the pixels' standard deviation
    noise = torch.randn(x.shape, generator=generator) * 0.1 * x.std()
    assert real.diversity(x[:1] + noise) < 0.2
    assert real.classes_found(x[:1] + noise) == 1 / 10
    assert 0.8 < real.diversity(x[120:]) < 1.25
    assert real.classes_found(x[120:]) == 1


def test_snow_has_no_class(digits):
    x, labels = digits
    snow = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * x.max()
    assert Reference(x, labels).classes_found(snow) == 0


@pytest.mark.parametrize("shape", [(200, 30), (30, 200)])
def test_axes_are_the_first_of_the_singular_vectors(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.linspace(3, 0.1, shape[1])
    real = Reference(x, [None] * len(x))
    _, singular, vectors = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    shares = (singular**2).cumsum(0) / (singular**2).sum()
    count = real.axes_DA.shape[1]
    assert shares[count - 2] < 0.9 <= shares[count - 1]
    overlap = (vectors[:count] @ real.axes_DA).abs()
    torch.testing.assert_close(overlap, torch.eye(count), atol=1e-2, rtol=0)


def test_axes_are_at_most_64():
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    assert Reference(x, [None] * 300).axes_DA.shape == (200, 64)


def test_health_is_measured_about_twenty_times_and_at_the_end():
    for total in (1, 7, 40, 399, 5_000, 123_456):
        log_every = max(total // 200, 1)
        due = [s for s in range(log_every, total + 1, log_every) if is_due(s, total, log_every)]
        assert len(due) <= 41 and len(due) >= min(total, 20) and is_due(total, total, log_every)


def health(diverse, **options):
    model = build("gan", 2, {"latents": 2, "hidden": (2,), **options})
    health = Health(model, Reference(torch.zeros(2, 2), [None, None]), 0)
    for value in diverse:
        health.noted({"diversity": value})
    return health


def test_warnings_need_two_measurements_and_a_quarter_of_the_run_and_are_said_once():
    figures = {"diversity": 0.05}
    assert not health([0.05]).warnings(0.5, 0.7, figures)
    assert not health([0.05, 0.4]).warnings(0.5, 0.7, {"diversity": 0.4})
    assert not health([0.05, 0.05]).warnings(0.2, 1.0, figures)
    twice = health([0.05, 0.05])
    (text,) = twice.warnings(0.5, 0.7, figures)
    assert text.startswith("collapse: the samples are 0.05 times") and "instance_noise" in text
    assert twice.warnings(0.6, 0.7, figures) == []
    (text,) = twice.warnings(0.6, 0.995, figures)
    assert text.startswith("won discriminator: it is right about 99.5")
    assert "discriminator_rate=0.5," in spelled(text)
    (text,) = health([], discriminator_rate=0.25).warnings(0.6, 0.995, {"diversity": 1.0})
    assert "discriminator_rate=0.125," in spelled(text)


def said(store, **options):
    texts: list[str] = []
    saekit.train(store, progress=lambda p: texts.append(p.message or ""), **options)
    return [text.partition(":")[0] for text in texts if text]


def test_a_run_that_collapses_and_one_whose_discriminator_wins_say_so(images):
    base = {"model": "gan", "batch": 32, "rows": 9_600, "hidden": (32,), "latents": 8}
    assert "won discriminator" in said(
        images, **base, discriminator_rate=3_000.0, lr=1e-6, discriminator_hidden=(128,)
    )
    assert "collapse" in said(images, **base, discriminator_rate=0.01, lr=5e-2)
    assert said(images, **base, lr=1e-3) == []


# -- samples


@pytest.mark.parametrize("name", RUNS)
def test_sample_gives_the_same_rows_for_the_same_seed(images, tmp_path, name):
    result = saekit.train(images, tmp_path / "run", **small(name))
    x, again = (saekit.sample(run, 5, seed=2) for run in (tmp_path / "run", result))
    assert x.shape == (5, 64) and x.dtype == torch.float32 and torch.equal(x, again)
    assert not torch.equal(x, saekit.sample(result, 5, seed=3))
    if name == "cgan":
        sevens = saekit.sample(result, 5, label=7, seed=2)
        assert torch.equal(sevens, saekit.sample(result, 5, label="7", seed=2))
        assert not torch.equal(sevens, saekit.sample(result, 5, label=1, seed=2))
    else:
        with pytest.raises(UsageError, match="label=7"):
            saekit.sample(result, 5, label=7)
    with pytest.raises(UsageError, match="n=0 must be at least 1"):
        saekit.sample(result, 0)


def test_samples_as_a_sheet_and_as_tensors(images, tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    saekit.train(images, tmp_path / "run", **small("cgan"))
    draw = ("sample", "run", "--n", "12", "--label", "7")
    status, out, _ = command(capsys, *draw, "--out", "sheet.png", "--json")
    assert status == 0 and json.loads(out) == {
        "path": "sheet.png", "n": 12, "shape": [64], "label": "7", "seed": 0,
    }  # fmt: skip
    width, height = Image.open("sheet.png").size
    assert (width, height) == (10 * 60 - 4, 2 * 60 - 4)  # 7 times 8 pixels, and gaps
    assert command(capsys, *draw, "--out", "x.safetensors")[0] == 0
    x = load_file("x.safetensors")["x"]
    assert torch.equal(x, saekit.sample("run", 12, label=7))
    assert command(capsys, *draw, "--out", "sheet.png")[0] == 3  # exists
    assert command(capsys, *draw, "--out", "sheet.png", "--overwrite")[0] == 0
    status, _, err = command(capsys, *draw, "--out", "sheet.gif")
    assert status == 2 and ".png, .safetensors" in err
    status, _, err = command(capsys, "sample", "run", "--label", "ten", "--out", "a.png")
    assert status == 2 and "--label ten is not one of the classes" in err


def test_rows_that_are_not_pictures_have_no_sheet(tmp_path, capsys):
    store = write_store(tmp_path / "acts", 400)
    saekit.train(store, tmp_path / "run", **small("gan"))
    out = tmp_path / "sheet.png"
    status, _, err = command(capsys, "sample", tmp_path / "run", "--out", out)
    assert status == 2 and "are not pictures" in err and not out.exists()


# -- hidden states, grids, verbs


@pytest.mark.parametrize(("name", "layout"), [("gan", "sequence"), ("aae", "flat")])
def test_hidden_states_are_drawn_in_their_own_units(tmp_path, name, layout):
    store = write_store(tmp_path / "acts", 1600, layout=layout)
    options = {"model": name, "latents": 8, "hidden": (64,), "rows": 20_000, "batch": 32}
    saekit.train(store, tmp_path / "run", lr=1e-3, **options)
    x = torch.cat([b.x.float() for b in saekit.open_store(store).batches(512)])
    drawn = saekit.sample(tmp_path / "run", 500)
    spread = (x - x.mean(0)).norm(dim=1).mean()
    assert (drawn.mean(0) - x.mean(0)).norm() < 0.5 * spread
    assert 0.5 < (drawn - drawn.mean(0)).norm(dim=1).mean() / spread < 1.5


def test_a_grid_of_patches_is_drawn_as_a_grid():
    x = torch.randn(80, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    result = saekit.train(x, model="dcgan", rows=320, batch=16, latents=4)
    assert saekit.sample(result, 3).shape == (3, 6, 5, 3)
    assert result.metrics["diversity"] > 0


def test_evaluate_says_what_does_not_apply(images, tmp_path, capsys):
    saekit.train(images, tmp_path / "run", **small("gan"))
    status, out, _ = command(capsys, "evaluate", tmp_path / "run", "--store", images)
    assert status == 0 and f"samples of {tmp_path / 'run'}: diversity" in out
    status, _, err = command(
        capsys, "evaluate", tmp_path / "run", "--store", images, "--max-fvu", "1"
    )
    assert status == 2 and "has no encoder, and so no fvu" in err


def test_labels_of_an_array_reach_its_batches():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    source = ArraySource(x, labels=["b", "a"] * 10)
    assert classes_of(source) == ("a", "b")
    batch = next(WithLabels(source, ("a", "b")).batches(8, seed=1))
    assert batch.label.tolist() == [1 - int(row) % 2 for row in batch.rows]
    with pytest.raises(DataError, match="the label 'a', which is not a known class"):
        WithLabels(source, ("b", "c"))

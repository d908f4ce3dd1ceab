"""`python benchmarks/field.py`: one judge for all toolkits, and peers that train as their own
trainers do."""

from __future__ import annotations

import csv
import json
import math

import pytest
import toolkits
import torch
from field import (
    SAEKIT,
    Candidate,
    FieldResult,
    _train_saekit,
    candidates_of,
    compare_candidates,
    evaluated,
    main,
    rows_in_order,
    with_best,
)
from made_stores import D, write_store
from toolkits import SCALED, SETTINGS, SHIPPED, PeerModel, Task, train_peer

from saekit.bench.peers import PEERS, Peer, check_peers
from saekit.errors import MissingError, UsageError
from saekit.store.reader import open_store
from saekit.training.checkpoints import load
from saekit.training.run import train

TASK = Task(lr=1e-2, seed=3, steps=40, latents=64, k=4, batch=128)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("field") / "store", 6000)


@pytest.fixture(scope="module")
def store(path):
    return open_store(path)


def result(library, fve, dead, lr=1e-3):
    return FieldResult(library, "1", SHIPPED, lr, 1, 1000, fve, None, dead, dead, 4.0, 100.0)


# -- the judge
# --------------------------------------------------------------------------------------------------


def test_fve_is_of_the_held_out_rows_and_dead_of_the_last_rows_trained_on(store, monkeypatch):
    monkeypatch.setattr("field.DEAD_ROWS", 300)  # not a multiple of the batch
    order = torch.cat([x for x, _ in zip(rows_in_order(store, TASK), range(TASK.steps))])
    last = order[-300:]
    # latents are the inputs above it: about half of them never are in these rows
    cut = last.max(0).values.sort().values[D // 2]
    wide = lambda x: torch.nn.functional.pad((x - cut).relu(), (0, TASK.latents - D))
    found = evaluated(PeerModel(wide, lambda code: code[:, :D] + 3.0), store, TASK)
    x = torch.cat([batch.x.double() for batch in store.batches(4096, split="holdout")])
    x_hat = (x.float() - cut).relu().double() + 3.0
    assert found["fve"] == pytest.approx(
        1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    assert found["l0"] == pytest.approx(float((x.float() > cut).double().sum(1).mean()))
    alive = int((last > cut).any(0).sum())
    # rows before the last ones would have said otherwise
    assert 0 < alive < D and int((order > cut).any(0).sum()) > alive
    assert found["dead"] == pytest.approx(1 - alive / TASK.latents)


def test_a_model_that_has_diverged_is_evaluated_as_nan(store):
    nowhere = PeerModel(
        lambda x: x.new_zeros(len(x), TASK.latents),
        lambda code: torch.full((len(code), D), math.nan),
    )
    found = evaluated(nowhere, store, TASK)
    assert math.isnan(found["fve"]) and math.isnan(found["dead"])


def test_saekit_is_trained_as_by_its_own_verb_and_evaluated_as_by_it(store, tmp_path):
    model, rate = _train_saekit(store, TASK)
    options = {
        "sparsity": "topk",
        "latents": 64,
        "k": 4,
        "lr": 1e-2,
        "batch": 128,
        "seed": 3,
        "device": "cpu",
    }
    expected = train(store.path, tmp_path / "run", rows=TASK.rows, **options)
    x = next(rows_in_order(store, TASK))
    assert torch.equal(model.reconstruct(x), load(tmp_path / "run")(x).x_hat) and rate > 0
    found = evaluated(model, store, TASK)
    assert found["fve"] == pytest.approx(1 - expected.metrics["fvu"]) and found[
        "l0"
    ] == pytest.approx(expected.metrics["l0"])


# -- who stands for a library
# --------------------------------------------------------------------------------------------------


def test_the_best_candidate_has_the_highest_fve_among_those_with_few_dead():
    results = [
        result("a", 0.80, 0.00),
        result("a", 0.84, 0.02),
        result("a", 0.90, 0.03),
        result("a", 0.84, 0.01),
        result("b", 0.95, 0.40),
        result("c", math.nan, math.nan),
        result("c", 0.10, 0.00),
        result("d", -0.5, 0.00),
    ]
    assert [each.best for each in with_best(results)] == [
        False,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
    ]


def test_libraries_take_turns():
    candidates = candidates_of(("sae-lens", "eai-sparsify"))
    assert [c.library for c in candidates[:6]] == ["saekit", "sae-lens", "eai-sparsify"] * 2
    assert len(candidates) == len(set(candidates)) == 6 + 6 + 6
    assert {c.setting for c in candidates if c.library == "sae-lens"} == {SHIPPED, SCALED}
    assert [c.library for c in candidates_of(())] == [SAEKIT] * 6


def test_a_toolkit_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(UsageError) as caught:
        check_peers(["sae-lense"], SETTINGS)
    assert "did you mean sae-lens?" in str(caught.value) and caught.value.exit_status == 2
    monkeypatch.setitem(PEERS, "absent", Peer("no_module_of_this_name", None))
    with pytest.raises(MissingError, match="absent is not installed") as caught:
        check_peers(["absent"], PEERS)
    assert "saekit[peers]" in caught.value.hint


def test_every_toolkit_of_the_comparison_is_a_known_peer():
    assert set(SETTINGS) == set(PEERS)


# -- the peers
# --------------------------------------------------------------------------------------------------


class Rows(torch.nn.Module):
    """A model whose tokens are row numbers and whose one hooked module gives these rows."""

    dummy_inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}  # noqa: RUF012
    device = torch.device("cpu")

    def __init__(self, x_ND: torch.Tensor) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding.from_pretrained(x_ND)

    @property
    def base_model(self):
        return self

    def forward(self, input_ids):
        return self.rows(input_ids)


@pytest.mark.parametrize("setting", [SHIPPED, SCALED])
def test_sparsify_gives_the_weights_of_its_own_trainer(store, setting, tmp_path, monkeypatch):
    """Reference: sparsify.Trainer on a model that returns the same rows."""
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = pytest.importorskip("sparsify")
    from datasets import Dataset
    from safetensors.torch import load_file

    model, rate = train_peer("eai-sparsify", setting, rows_in_order(store, TASK), D, TASK)
    x = torch.cat([x for x, _ in zip(rows_in_order(store, TASK), range(TASK.steps))])
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(num_latents=64, k=4),
        batch_size=1,
        optimizer="signum" if setting == SHIPPED else "adam",
        lr=TASK.lr,
        lr_warmup_steps=2,  # a twentieth of 40
        hookpoints=["rows"],
        init_seeds=[TASK.seed],
        log_to_wandb=False,
        save_dir=str(tmp_path),
        run_name="reference",
    )
    data = Dataset.from_dict(
        {"input_ids": torch.arange(len(x)).view(TASK.steps, TASK.batch).tolist()}
    ).with_format("torch")
    sparsify.Trainer(config, data, Rows(x)).fit()
    theirs = load_file(tmp_path / "reference" / "rows" / "sae.safetensors")
    pre = (x[:256] - theirs["b_dec"]) @ theirs["encoder.weight"].T + theirs["encoder.bias"]
    kept = pre.relu().topk(4)
    code = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    torch.testing.assert_close(model.code(x[:256]), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.reconstruct(x[:256]), code @ theirs["W_dec"] + theirs["b_dec"], rtol=1e-4, atol=1e-4
    )
    assert rate > 0


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("setting", [SHIPPED, SCALED])
def test_peers_learn_the_rows_with_k_active_latents(store, name, setting):
    pytest.importorskip(PEERS[name].module)
    model, _ = train_peer(name, setting, rows_in_order(store, TASK), D, TASK)
    found = evaluated(model, store, TASK)
    assert 0.2 < found["fve"] < 1 and found["l0"] <= 4 + 1e-9 and 0 <= found["dead"] < 1
    x = next(rows_in_order(store, TASK))
    assert model.code(x).shape == (128, 64) and model.reconstruct(x).shape == x.shape
    again, _ = train_peer(name, setting, rows_in_order(store, TASK), D, TASK)
    assert torch.equal(again.code(x), model.code(x))


def test_scaled_settings_of_sae_lens_are_shares_of_the_run(store, monkeypatch):
    """With a window of 4 of 40 steps, its auxiliary loss acts on latents that the shipped setting
    ignores for 1,000 steps."""
    trainer = pytest.importorskip("sae_lens.training.sae_trainer")
    made = []
    fit = trainer.SAETrainer.fit
    monkeypatch.setattr(trainer.SAETrainer, "fit", lambda self: (made.append(self), fit(self))[1])
    for setting in (SHIPPED, SCALED):
        train_peer("sae-lens", setting, rows_in_order(store, TASK), D, TASK)
    shipped, scaled = (each.cfg for each in made)
    assert (shipped.lr_warm_up_steps, shipped.lr_decay_steps, shipped.dead_feature_window) == (
        0,
        0,
        1000,
    )
    assert (scaled.lr_warm_up_steps, scaled.lr_decay_steps, scaled.dead_feature_window) == (2, 8, 4)
    assert (
        made[0].optimizer.param_groups[0]["lr"] == TASK.lr
        and made[1].optimizer.param_groups[0]["lr"] < TASK.lr / 4
    )
    assert {each.n_training_steps for each in made} == {TASK.steps}


# -- a whole comparison
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_comparison_gives_a_line_for_each_candidate_with_means_over_seeds(path):
    said = []
    candidates = [Candidate(SAEKIT, SHIPPED, lr) for lr in (1e-3, 1e-2)]
    results = compare_candidates(
        str(path), candidates, TASK.rows, 2, said.append, latents=64, k=4, batch=128
    )
    assert [(each.library, each.lr, each.seeds, each.rows) for each in results] == [
        (SAEKIT, 1e-3, 2, 5120),
        (SAEKIT, 1e-2, 2, 5120),
    ]
    assert all(
        each.fve_spread > 0
        and each.dead <= each.dead_worst
        and each.rows_per_s > 0
        and each.version
        for each in results
    )
    assert len(said) == 4 and results[1].fve > results[0].fve


def test_the_steps_before_training_are_not_timed(monkeypatch):
    """A toolkit that takes long to begin, and nothing to train."""
    import time

    def slow_start(batches, d_in, task):
        time.sleep(0.5)
        for _ in range(task.steps):
            next(batches)
        return PeerModel(lambda x: x, lambda code: code)

    monkeypatch.setitem(SETTINGS, "synthetic", {SHIPPED: toolkits.Setting((1e-3,), slow_start)})
    _, rate = train_peer("synthetic", SHIPPED, iter([torch.zeros(2, 2)] * TASK.steps), 2, TASK)
    assert rate > TASK.rows / 0.25


@pytest.mark.slow  # a process of its own for the candidate
def test_the_command_gives_a_line_for_each_candidate(path, tmp_path, capsys):
    main(
        [
            "--quick",
            "--store",
            str(path),
            "--rates",
            "1e-3",
            "--csv",
            str(tmp_path / "f.csv"),
            "--json",
        ]
    )
    out, err = capsys.readouterr()
    (result,) = json.loads(out)
    assert (
        result["library"],
        result["setting"],
        result["lr"],
        result["seeds"],
        result["rows"],
    ) == (SAEKIT, SHIPPED, 1e-3, 1, 48 * 1024)
    (row,) = csv.DictReader((tmp_path / "f.csv").open())
    assert float(row["fve"]) == result["fve"] and "saekit shipped  lr 0.001  seed 0" in err

"""Two stores as input and target: what makes them row-aligned, and that a model is judged by its
target."""

from __future__ import annotations

import shutil

import made_stores
import pytest
import torch
from made_stores import damage, write_store

import saekit
from saekit.errors import DataError, NumericsError, UsageError
from saekit.store.pair import PairedStore
from saekit.store.reader import open_store
from saekit.types import ActivationBatch

ROWS, E = 1000, 6


def mixed(rows, width=made_stores.D, seed=0, original=made_stores.make_rows):
    """Rows of another hook on the same tokens: nonlinear combinations of the input's, with another
    scale and mean."""
    x = original(rows, made_stores.D, seed)
    W = torch.randn(made_stores.D, width, generator=torch.Generator().manual_seed(5))
    return 40 * torch.tanh(0.05 * (x - 3.0) @ W) - 11.0


@pytest.fixture
def target_of(tmp_path, monkeypatch):
    def write(name="target", rows=ROWS, **options):
        with monkeypatch.context() as patched:
            patched.setattr(made_stores, "make_rows", mixed)
            return open_store(write_store(tmp_path / name, rows, **options))

    return write


@pytest.fixture
def given(tmp_path):
    return open_store(write_store(tmp_path / "given", ROWS))


def rows_of(store):
    return torch.cat([batch.x for batch in store.batches(500)])


@pytest.mark.parametrize("split", ["train", "holdout", "all"])
@pytest.mark.parametrize("seed,start", [(None, 0), (None, 17), (3, 0), (3, 1400)])
def test_a_pair_gives_the_rows_of_one_and_the_targets_of_the_other(
    given, target_of, split, seed, start
):
    target = target_of(width=E)
    pair = PairedStore(given, target)
    x, y = rows_of(given), rows_of(target)
    plain = given.batches(60, seed, start, split)
    for _, batch, expected in zip(range(30), pair.batches(60, seed, start, split), plain):
        assert torch.equal(batch.x, x[batch.rows]) and torch.equal(batch.target, y[batch.rows])
        assert torch.equal(batch.rows, expected.rows)
    assert (
        pair.count() == ROWS and pair.spec == given.spec and pair.count(split) == given.count(split)
    )


def test_shards_of_another_size_pair_all_the_same(given, target_of):
    target = target_of(width=E, shard_bytes=3_000)
    assert len(target.shards) != len(given.shards)
    y = rows_of(target)
    batch = next(PairedStore(given, target).batches(60, 0))
    assert torch.equal(batch.target, y[batch.rows])


@pytest.mark.parametrize(
    "options,why",
    [
        ({"rows": ROWS - 8}, r"992 rows instead of 1,000"),
        (
            {"tokens": 4},
            "its rows come from other documents or positions|other documents are held out",
        ),
        ({"layout": "sequence"}, "layout sequence instead of flat"),
    ],
)
def test_stores_that_are_not_row_aligned_are_refused(given, target_of, options, why):
    with pytest.raises(DataError, match=f"is not row-aligned with .*({why})"):
        PairedStore(given, target_of(**options))


def test_stores_with_other_held_out_documents_are_refused(given, target_of):
    with pytest.raises(DataError, match=r"held.out"):
        next(PairedStore(given, target_of(seed=1)).batches(60, 0, split="train"))


SMALL = {"model": "dense", "hidden": (32,), "latents": 12, "batch": 64, "rows": 60_000, "lr": 3e-3}
SHORT = {**SMALL, "rows": 1_500}


@pytest.mark.parametrize("width", [E, made_stores.D])
def test_the_held_out_figures_are_those_of_the_target_in_its_own_units(
    given, target_of, tmp_path, width
):
    target = target_of(width=width)
    result = saekit.train(given.path, tmp_path / "run", target_store=str(target.path), **SMALL)
    model = saekit.load(tmp_path / "run")
    x, y = (
        torch.cat([b.x for b in store.batches(500, split="holdout")]).float()
        for store in (given, target)
    )
    x_hat = model(x).x_hat
    assert x_hat.shape == y.shape
    fvu = (x_hat.double() - y.double()).square().sum() / (
        y.double() - y.double().mean(0)
    ).square().sum()
    assert result.metrics["fvu"] == pytest.approx(fvu.item(), rel=1e-6)
    assert result.metrics["mse"] == pytest.approx(
        (x_hat.double() - y.double()).square().sum(1).mean().item(), rel=1e-6
    )
    assert result.metrics["fvu"] < 0.4, "the target is a function of the input"
    train = torch.cat([b.x for b in target.batches(500, split="train")]).double()
    torch.testing.assert_close(model.output_mean.double(), train.mean(0), rtol=1e-4, atol=1e-4)
    expected = (width / (train - train.mean(0)).square().sum(1).mean()) ** 0.5
    assert model.output_scale.item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.input_scale.item() != pytest.approx(expected.item(), rel=1e-2)


def test_a_run_with_a_target_resumes_to_the_same_bits(given, target_of, tmp_path, monkeypatch):
    from saekit.training.loop import Trainer

    options = {**SMALL, "rows": 640, "target_store": str(target_of(width=E).path)}
    saekit.train(given.path, tmp_path / "whole", **options)

    def dies(self, raw, original=Trainer.train_step):
        if self.step == 5:
            self.save()
            raise KeyboardInterrupt
        return original(self, raw)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            saekit.train(given.path, tmp_path / "broken", **options)
    saekit.train(given.path, tmp_path / "broken", **options, resume=True)
    whole, broken = (saekit.load(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_model_without_targets_refuses_one(given, target_of, tmp_path):
    for model in ("pca", "kmeans"):
        with pytest.raises(UsageError, match=f'target_store does not apply to model="{model}"'):
            saekit.train(
                given.path,
                tmp_path / model,
                model=model,
                target_store=str(target_of(f"for {model}").path),
            )


@pytest.mark.parametrize("split", ["train", "holdout"])
@pytest.mark.parametrize("seen_by_the_statistics", [True, False])
def test_a_bad_row_of_the_target_names_the_target_s_store(
    given, target_of, tmp_path, split, seen_by_the_statistics, monkeypatch
):
    import saekit.training.inputs as inputs

    target = target_of(width=E, shard_bytes=3_000)
    rows = torch.cat([b.rows for b in target.batches(500, split=split)]).tolist()
    if not seen_by_the_statistics:
        monkeypatch.setattr(inputs, "STATISTICS_ROWS", 100)
        seen = set(next(given.batches(100, seed=0, split="train")).rows.tolist())
        rows = [row for row in rows if row not in seen]
    name, local = damage(target, rows[len(rows) // 2])
    with pytest.raises(NumericsError, match=rf"{target.path}.* {name} row {local}\b"):
        saekit.train(given.path, tmp_path / "run", target_store=str(target.path), **SHORT)


def test_a_resume_notices_that_the_target_was_harvested_anew(given, target_of, tmp_path):
    path = target_of(width=E).path
    saekit.train(given.path, tmp_path / "run", target_store=str(path), **SHORT)
    shutil.rmtree(path)
    open_store(write_store(path, ROWS, width=E, hook="blocks.1"))
    with pytest.raises(DataError, match="other settings"):
        saekit.train(given.path, tmp_path / "run", target_store=str(path), **SHORT, resume=True)


def test_batches_are_of_one_pair(given, target_of):
    batch = next(PairedStore(given, target_of(width=E)).batches(8))
    assert (
        isinstance(batch, ActivationBatch)
        and batch.x.shape == (8, 16)
        and batch.target.shape == (8, E)
    )

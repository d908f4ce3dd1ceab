"""BatchTopK: chosen by the batch in training, by a threshold afterwards."""

from __future__ import annotations

import pytest
import torch
from made_stores import make_rows, write_store

import saekit
from saekit.models.catalog import build
from saekit.models.normalizer import Normalizer
from saekit.models.sae import SAE
from saekit.models.sparsity.batchtopk import SPAN
from saekit.store.reader import open_store
from saekit.types import ActivationBatch, Step


def made(D=16, F=64, k=3, **options):
    sae = build("sae", D, {"latents": F, "sparsity": "batchtopk", "k": k, **options})
    x = make_rows(400, D)
    sae.initialise_from(x - x.mean(0), torch.Generator().manual_seed(0))
    return sae, x - x.mean(0)


def test_a_batch_keeps_k_a_row_on_average_and_rows_differ():
    sae, x = made()
    terms = sae.loss(ActivationBatch(x, None, None, None), Step(0, 10))
    assert int(terms.fired.sum()) == 400 * 3
    z = sae.encode(x)
    assert (z > 0).sum() == 400 * 3 and len((z > 0).sum(1).unique()) > 1
    pre = x @ sae.W_enc.T + sae.b_enc
    assert z[z > 0].min() == pre.flatten().topk(1200).values[-1]


def test_the_threshold_is_the_average_of_the_smallest_values_kept():
    sae, x = made()
    expected = None
    for step, rows in enumerate(x.split(100)):
        pre = (rows @ sae.W_enc.T + sae.b_enc).detach()
        smallest = pre.flatten().topk(300).values[-1]
        expected = smallest if expected is None else expected + (smallest - expected) / SPAN
        sae.loss(ActivationBatch(rows, None, None, None), Step(step, 1000))
        torch.testing.assert_close(sae.threshold, expected.expand(64))
    sae.eval()
    z = sae.encode(x)
    pre = x @ sae.W_enc.T + sae.b_enc
    assert torch.equal(z, torch.where(pre > sae.threshold, pre, 0.0))
    torch.testing.assert_close(
        sae.encode(x[:1]), z[:1]
    )  # a row's code does not depend on the rest of the batch


def test_in_a_short_run_only_the_last_batches_set_the_threshold():
    sae, x = made(k_start=12, k_anneal=1.0)
    for step, rows in enumerate(x.split(100)):
        sae.loss(ActivationBatch(rows, None, None, None), Step(step, 4))
        assert torch.equal(sae.threshold, sae.smallest.expand(64))


def test_a_run_of_a_few_steps_ends_near_its_k(tmp_path):
    rows = make_rows(2000, 16)
    result = saekit.train(
        rows, sparsity="batchtopk", k=4, latents=256, rows=2000, batch=200, seed=0
    )
    assert result.step <= 10
    assert result.metrics["l0"] == pytest.approx(4, rel=0.15)


def test_folding_keeps_the_code_of_raw_rows():
    sae, x = made()
    sae.loss(ActivationBatch(x, None, None, None), Step(0, 10))
    sae.eval()
    mean, scale = torch.randn(16), 0.37
    raw = SAE(sae.config, folded=True)
    raw.load_state_dict(sae.folded(Normalizer(mean, scale)))
    raw.eval()
    z, z_raw = sae.encode(x), raw.encode(x / scale + mean)
    same = (z > 0) == (z_raw > 0)  # but for values at the threshold
    assert same.float().mean() > 0.9999
    torch.testing.assert_close(z_raw[same] * scale, z[same], atol=1e-4, rtol=1e-3)


def test_a_trained_run_has_k_active_latents_on_held_out_rows(tmp_path):
    store = write_store(tmp_path / "store", 4000)
    result = saekit.train(
        store, tmp_path / "run", sparsity="batchtopk", k=4, expansion=4, rows=80_000, batch=256
    )
    assert result.metrics["l0"] == pytest.approx(4, rel=0.1) and result.metrics["fvu"] < 0.35
    sae = saekit.load(tmp_path / "run")
    assert (
        sae.threshold.shape == (64,)
        and (sae.threshold > 0).all()
        and set(sae.state_dict()) >= {"W_enc", "threshold"}
    )
    topk = saekit.train(
        store, tmp_path / "topk", sparsity="topk", k=4, expansion=4, rows=80_000, batch=256
    )
    assert result.metrics["fvu"] < 1.05 * topk.metrics["fvu"], "rows share what they need"


def test_ten_steps_are_five_a_resume_and_five(tmp_path, monkeypatch):
    from saekit.training.loop import Trainer

    store = write_store(tmp_path / "store", 2000)
    settings = {"sparsity": "batchtopk", "k": 4, "expansion": 4, "rows": 2560, "batch": 256}
    saekit.train(store, tmp_path / "whole", **settings)
    step = Trainer.train_step

    def stops(self, raw):
        if self.step == 5:
            self.save()
            raise KeyboardInterrupt
        return step(self, raw)

    monkeypatch.setattr(Trainer, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        saekit.train(store, tmp_path / "halves", **settings)
    monkeypatch.undo()
    saekit.train(store, tmp_path / "halves", resume=True, **settings)
    whole, halves = (saekit.load(tmp_path / name).state_dict() for name in ("whole", "halves"))
    assert (
        all(torch.equal(whole[name], halves[name]) for name in whole)
        and len(open_store(store)) == 2000
    )


def test_the_triton_path_takes_the_same_step():
    (torch_sae, x), (triton_sae, _) = made(F=96), made(F=96)
    batch = ActivationBatch(x[:64], None, None, None)
    a, b = torch_sae.loss(batch, Step(0, 10)), triton_sae.loss(batch, Step(0, 10, backend="triton"))
    torch.testing.assert_close(a.total, b.total)
    a.total.backward()
    b.total.backward()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(
            getattr(torch_sae, name).grad, getattr(triton_sae, name).grad, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(torch_sae.threshold, triton_sae.threshold)

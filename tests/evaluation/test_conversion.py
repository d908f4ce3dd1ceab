"""A topk or batchtopk dictionary as one with a threshold: which threshold, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import made_dictionaries
import made_more
import pytest
import torch
from command import saekit as saekit_cli
from made_runs import rows_store
from made_stores import make_rows, write_store
from safetensors.torch import load_file, save_file

import saekit
from saekit.errors import UsageError
from saekit.evaluation import conversion
from saekit.evaluation.conversion import threshold_between
from saekit.models.sparsity import VARIANTS
from saekit.store.reader import Store

X_ND = make_rows(1200)


@pytest.fixture(scope="module")
def acts(tmp_path_factory) -> Path:
    return rows_store(tmp_path_factory.mktemp("acts") / "store", X_ND, [None] * len(X_ND))


@pytest.fixture(scope="module")
def run(acts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def trained(sparsity: str) -> Path:
        out = folder / sparsity
        if not out.exists():
            saekit.train(acts, out, sparsity=sparsity, latents=64, k=4, batch=128, rows=5000)
        return out

    return trained


def side(store: Path, split: str) -> torch.Tensor:
    return torch.cat([batch.x.float() for batch in Store(store).batches(512, split=split)])


@pytest.mark.parametrize("sparsity", ["topk", "hierarchical", "matryoshka-topk"])
def test_the_mean_l0_of_the_training_rows_is_kept(acts, run, tmp_path, sparsity):
    result = saekit.convert(run(sparsity), tmp_path / "out", store=acts)
    old, new, x = saekit.load(run(sparsity)), saekit.load(tmp_path / "out"), side(acts, "train")
    active = (old.encode(x).to_dense() > 0).sum()
    assert (result.sparsity, result.to, result.rows) == (sparsity, "jumprelu", len(x))
    assert (new.encode(x) > 0).sum() == active
    # the formula, with the weights of before
    pre = x @ old.W_enc.T + old.b_enc
    assert (new.threshold == result.threshold).all() and result.threshold > 0
    torch.testing.assert_close(new.encode(x), pre * (pre > result.threshold))
    kth = pre.flatten().topk(int(active) + 1).values[-2:]
    assert result.threshold == pytest.approx(float(kth.double().mean()), rel=1e-6)


def test_the_figures_before_and_after_are_those_of_evaluate(acts, run, tmp_path):
    result = saekit.convert(run("topk"), tmp_path / "out", store=acts)
    before, after = saekit.evaluate([run("topk"), tmp_path / "out"], acts)
    for evaluation, figures in ((before, result.before), (after, result.after)):
        assert figures == {name: evaluation.metrics[name] for name in ("fvu", "l0")}
        assert evaluation.rows == result.held_out_rows and evaluation.split == "holdout"
    config = json.loads((tmp_path / "out/config.json").read_text())
    recorded = config["converted"]
    assert recorded["from"] == str(run("topk")) and recorded["sparsity"] == "topk"
    assert recorded["after"] == result.after and recorded["threshold"] == result.threshold
    assert config["config"]["sparsity"] == "jumprelu" and "k" not in config["config"]
    assert config["result"]["metrics"]["fvu"] == result.after["fvu"]


@pytest.mark.parametrize("sparsity", ["batchtopk", "matryoshka"])
def test_a_batchtopk_keeps_its_own_threshold_and_every_bit(acts, run, tmp_path, sparsity):
    result = saekit.convert(run(sparsity), tmp_path / "out", store=acts)
    old, new, x = saekit.load(run(sparsity)), saekit.load(tmp_path / "out"), side(acts, "holdout")
    assert result.before == result.after
    assert torch.equal(old(x).x_hat, new(x).x_hat) and torch.equal(old.threshold, new.threshold)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_published_dictionary_is_converted_too(tmp_path, rescaled):
    source = tmp_path / "imported"
    saekit.import_dictionary(made_dictionaries.saelens(tmp_path / "sae", "topk"), source)
    settings = json.loads((source / "config.json").read_text())
    settings["config"]["rescale_by_decoder_norm"] = rescaled
    (source / "config.json").write_text(json.dumps(settings))
    tensors = load_file(source / "model.safetensors")
    tensors["W_dec"][5] = 0.0  # a latent without a decoder row
    save_file(tensors, source / "model.safetensors")
    store = write_store(tmp_path / "store", 600)
    result = saekit.convert(source, tmp_path / "out", store=store, any_store=True)
    old, new, x = saekit.load(source), saekit.load(tmp_path / "out"), side(store, "train")
    a, b = old.encode(x).to_dense(), new.encode(x)
    assert result.rows == len(x) and (a > 0).sum() == (b > 0).sum()
    # where both are active they agree: the decoder's norms only moved
    both = (a > 0) & (b > 0)
    torch.testing.assert_close(a[both], b[both])
    torch.testing.assert_close(old.decode(b), new.decode(b))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["published"]["format"] == "saelens" and config["converted"]["to"] == "jumprelu"


def test_a_transcoder_with_a_skip_keeps_it(acts, tmp_path):
    target = rows_store(tmp_path / "y", X_ND.flip(1) ** 2, [None] * len(X_ND))
    options = {"latents": 64, "k": 4, "skip": True, "rows": 2000, "batch": 128}
    saekit.train(acts, tmp_path / "run", target_store=target, **options)
    result = saekit.convert(tmp_path / "run", tmp_path / "out", store=acts)
    old, new, x = saekit.load(tmp_path / "run"), saekit.load(tmp_path / "out"), side(acts, "train")
    assert torch.equal(old.W_skip, new.W_skip) and new.config.d_out == 16
    assert (old.encode(x).to_dense() > 0).sum() == (new.encode(x) > 0).sum()
    assert 0 < result.after["fvu"] < 1.5


def test_the_search_forgets_nothing_when_it_trims(acts, run, tmp_path, monkeypatch):
    whole = saekit.convert(run("topk"), tmp_path / "a", store=acts)
    monkeypatch.setattr(conversion, "CODE_NUMBERS", 64 * 10)
    assert saekit.convert(run("topk"), tmp_path / "b", store=acts).threshold == whole.threshold
    monkeypatch.setattr(conversion, "VALUES", 4 * 100)
    assert saekit.convert(run("topk"), tmp_path / "c", store=acts).rows == 100
    assert saekit.convert(run("topk"), tmp_path / "d", store=acts, rows=50).rows == 50


def test_the_threshold_lies_between_and_ties_stay_together():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0])
    assert threshold_between(values, 2) == 3.0
    assert threshold_between(values, 4) == 0.5  # half of the smallest
    assert threshold_between(values, 0) == 5.0
    assert threshold_between(torch.zeros(0), 0) == 0.0
    ties = torch.tensor([9.0, 3.0, 3.0, 3.0, 1.0])
    assert threshold_between(ties, 2) == 3.0  # one value rather than four
    assert threshold_between(ties, 3) == 2.0  # four rather than one
    low = torch.tensor([1.0])
    high = torch.nextafter(low, torch.tensor(2.0))
    theta = threshold_between(torch.cat([low, high]), 1)
    assert [bool(v > theta) for v in (low, high)] == [False, True]


def test_other_codes_and_models_in_memory_are_refused(acts, run, tmp_path):
    out = tmp_path / "out"
    for sparsity in ("abs-topk", "l1"):
        options = {"k": 4} if sparsity == "abs-topk" else {}
        saekit.train(acts, tmp_path / sparsity, sparsity=sparsity, latents=64, rows=500, **options)
        with pytest.raises(UsageError, match="not the largest values of a row or a batch") as error:
            saekit.convert(tmp_path / sparsity, out, store=acts)
        assert "batchtopk" in error.value.hint and not out.exists()
    saekit.convert(run("topk"), tmp_path / "once", store=acts)
    with pytest.raises(UsageError, match="has a threshold already"):
        saekit.convert(tmp_path / "once", out, store=acts)
    with pytest.raises(UsageError, match="in memory"):
        saekit.convert(VARIANTS["topk"](d_in=16, latents=32, k=4), out, store=acts)
    with pytest.raises(UsageError, match="OUT is the checkpoint itself"):
        saekit.convert(run("topk"), run("topk"), store=acts, overwrite=True)


def test_a_topk_with_negative_values_is_refused(acts, tmp_path):
    source = tmp_path / "imported"
    header = made_more.saev_header("TopK", top_k=30)
    saekit.import_dictionary(made_more.saev(tmp_path / "sae", header), source)
    with pytest.raises(UsageError, match="keeps negative values"):
        saekit.convert(source, tmp_path / "out", store=acts, any_store=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line_prints_both_sides(acts, run, tmp_path, capsys):
    command = ("convert", run("topk"), tmp_path / "out", "--to", "jumprelu", "--store", acts)
    status, out, _ = saekit_cli(capsys, *command)
    assert status == 0 and "topk -> jumprelu, threshold " in out and "held-out rows" in out
    status, out, _ = saekit_cli(capsys, *command, "--overwrite", "--json")
    result = json.loads(out)
    assert status == 0 and result["before"]["l0"] == 4.0
    assert (
        f"{result['after']['fvu']:.4f}"
        in saekit_cli(capsys, "evaluate", tmp_path / "out", "--store", acts)[1]
    )
    assert saekit_cli(capsys, *command)[0] == 3  # OUT exists
    assert saekit_cli(capsys, *command[:3], "--store", acts, "--to", "relu")[0] == 2

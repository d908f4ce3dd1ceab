"""The fine-tune against the logits: its formula by hand, its gradients in fp64, what it does to a
tiny model, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import scipy.stats
import tiny
import torch
from command import saekit as saekit_cli
from transformers import AutoModelForCausalLM

import saekit
import saekit.intervention.finetune as finetuning
from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.models import load_model
from saekit.intervention.contexts import Contexts
from saekit.intervention.objective import balanced, take_step
from saekit.intervention.reconstruct import divergence, run_spliced
from saekit.models.catalog import restore
from saekit.models.normalizer import Normalizer
from saekit.models.sparsity import VARIANTS
from saekit.store.checkpoint import read_train_state
from saekit.store.reader import open_store
from saekit.training.fit import holdout_figures
from saekit.training.inputs import store_normalizer

F, D, K = 24, 16, 3
CTX = 16  # of the store in conftest.py


def random_sae(sparsity: str):
    options = {"k": K} if sparsity in ("topk", "batchtopk", "abs-topk", "hierarchical") else {}
    sae = VARIANTS[sparsity](d_in=D, latents=F, folded=True, **options).double().eval()
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in sae.weights:
            weight.copy_(torch.randn(weight.shape, generator=gen, dtype=torch.float64) / 3)
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        if sae.thresholded:
            sae.threshold.copy_(torch.rand(F, generator=gen, dtype=torch.float64) / 2)
    return sae


def dense_code(sparsity: str, sae, pre: torch.Tensor) -> torch.Tensor:
    """The formula of docs/variants.md, by dense autograd."""
    if sparsity == "kl-sigmoid":
        return pre.sigmoid()
    if sparsity in ("batchtopk", "jumprelu"):
        return pre * (pre > sae.threshold)
    if sparsity == "l1":
        return pre.relu()
    size = pre.abs() if sparsity == "abs-topk" else pre.relu()
    kept = torch.zeros_like(pre).scatter(1, size.topk(K, dim=1).indices, 1.0)
    return kept * (pre if sparsity == "abs-topk" else pre.relu())


@pytest.mark.parametrize(
    "sparsity", ["topk", "hierarchical", "abs-topk", "batchtopk", "jumprelu", "l1", "kl-sigmoid"]
)
def test_reconstructions_have_the_values_and_gradients_of_the_dense_formula(sparsity):
    sae, x = random_sae(sparsity), torch.randn(40, D, dtype=torch.float64)
    toward = torch.randn(40, D, dtype=torch.float64)
    expected = dense_code(sparsity, sae, x @ sae.W_enc.T + sae.b_enc) @ sae.W_dec + sae.b_dec
    wanted = torch.autograd.grad((expected * toward).sum(), sae.weights)
    x_hat, code = (output := sae(x)).x_hat, output.code
    torch.testing.assert_close(x_hat, expected)
    torch.testing.assert_close(x_hat, sae.decode(code), msg="as the checkpoint itself decodes")
    for got, right in zip(torch.autograd.grad((x_hat * toward).sum(), sae.weights), wanted):
        torch.testing.assert_close(got, right)


def test_the_divergence_is_scipys_entropy():
    p, q = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    expected = scipy.stats.entropy(p.softmax(1).numpy(), q.softmax(1).numpy(), axis=1).mean()
    assert divergence(p.log_softmax(1), q.log_softmax(1)).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_both_terms_of_the_loss_have_the_size_of_the_error():
    w = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    mse, kl = w[0] ** 2, 5 * w[1]  # 4 and 15, gradients 4 and 5
    loss = balanced(mse, kl)
    loss.backward()
    assert loss.item() == pytest.approx(4.0, rel=1e-8)
    # d/dw = (grad mse + (4 / 15) grad kl) / 2: by the value of the weight, not by its own gradient
    assert w.grad.tolist() == pytest.approx([2.0, (4 / 15) * 5 / 2], rel=1e-8)


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu", "kl-sigmoid"])
def test_units_of_training_and_back_are_the_same_sae(made, sparsity):
    store, raw = (
        open_store(made.store),
        VARIANTS[sparsity](d_in=tiny.WIDTH, latents=48, folded=True).eval(),
    )
    with torch.no_grad():
        for weight in raw.weights:
            weight.copy_(torch.randn(weight.shape) / 4)
        if raw.thresholded:
            raw.threshold.fill_(0.1)
    normalizer = store_normalizer(store, torch.device("cpu"))
    x = next(store.batches(len(store))).x.float()
    inside = normalizer.apply(x)
    assert (
        inside.square().sum(1).mean().item() == pytest.approx(tiny.WIDTH, rel=1e-3)
        and inside.mean(0).abs().max() < 1e-3
    )
    torch.testing.assert_close(normalizer.invert(inside), x, rtol=1e-5, atol=1e-5)
    options = dataclasses.asdict(raw.config)
    trained = restore("sae", options, raw.unfolded(normalizer))
    with torch.no_grad():
        torch.testing.assert_close(
            normalizer.invert(trained(inside).x_hat), raw(x).x_hat, rtol=1e-3, atol=1e-4
        )
    again = restore("sae", options, trained.folded(normalizer))
    for name, tensor in raw.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_step_keeps_decoder_rows_at_norm_one_and_moves_across_them():
    sae = random_sae("topk").requires_grad_(True)
    old = sae.W_dec.detach().clone()
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-3)
    sae.W_dec.grad = 5 * old + torch.roll(old, 1, dims=0)  # along itself, and along another row
    take_step(sae, optimizer)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(F, dtype=torch.float64))
    other = torch.roll(old, 1, dims=0)
    across = old - 1e-3 * (other - (other * old).sum(1, keepdim=True) * old)
    torch.testing.assert_close(sae.W_dec.detach(), torch.nn.functional.normalize(across, dim=1))


def test_the_spliced_pass_equals_one_with_the_reconstruction_written_into_the_residual_stream(made):
    store, live = open_store(made.store), load_model(made.model)
    sae, normalizer = saekit.load(made.run), Normalizer(torch.zeros(tiny.WIDTH), 1.0)
    batch = next(Contexts(store, live, 4).holdout(4))
    run = run_spliced(live, sae, normalizer, batch, store)
    content = batch.rows_for_scope("content")
    decoder = live.module.model
    with torch.no_grad():
        out = live.module(**batch.inputs, output_hidden_states=True)
        state = out.hidden_states[2]
        torch.testing.assert_close(run.x_BD, state[content])
        written = state.clone()
        written[content] = sae(state[content]).x_hat
        position = torch.arange(written.shape[1])[None]
        causal = torch.full((written.shape[1],) * 2, float("-inf")).triu(1)
        padding = torch.where(batch.inputs["attention_mask"].bool(), 0.0, float("-inf"))
        for_all = (causal + padding[:, None, None, :]).clamp_min(torch.finfo(torch.float32).min)
        last = decoder.layers[2](
            written,
            attention_mask=for_all,
            position_ids=position,
            position_embeddings=decoder.rotary_emb(written, position),
        )
        spliced = live.module.lm_head(decoder.norm(last))
    p, q = out.logits[content].double().log_softmax(1), spliced[content].double().log_softmax(1)
    expected = (p.exp() * (p - q)).sum(1).mean().item()
    assert expected > 1e-3 and run.kl.item() == pytest.approx(expected, rel=1e-4)


def test_held_out_documents_are_the_stores_and_are_never_trained_on(made):
    store, live = open_store(made.store), load_model(made.model)
    doc = torch.from_numpy(store.column("doc_id"))
    held = set(doc[torch.from_numpy(store.split("holdout").numbers())].tolist())
    contexts = Contexts(store, live, 4)
    judged = [int(d) for batch in contexts.holdout(1000) for d in batch.doc_id]
    assert set(judged) == held
    part = [
        [batch.example_id.tolist() for batch in Contexts(store, live, size).holdout(8)]
        for size in (4, 32)
    ]
    assert part[0] == part[1] and len(part[0]) == 1, "judged alike, whatever the run's batch"
    stream, trained = contexts.train(0), []
    while len(set(trained)) < 60 - len(held) or len(trained) < 300:  # more than two passes
        trained += next(stream).doc_id.tolist()
    assert set(trained) == set(range(60)) - held
    first, other, again = (
        [next(Contexts(store, live, 4).train(seed)).refs for _ in range(1)] for seed in (0, 1, 0)
    )
    assert first == again and first != other


def test_documents_that_the_store_never_reached_are_for_training(made, tmp_path):
    saekit.harvest(
        made.model, made.text, tmp_path / "part", hook="blocks.1", ctx=CTX, batch=4, rows=200
    )
    store, live = open_store(tmp_path / "part"), load_model(made.model)
    reached = set(store.column("doc_id").tolist())
    contexts = Contexts(store, live, 4)
    stream = contexts.train(0)
    trained = {int(d) for _ in range(60) for d in next(stream).doc_id}
    assert (
        len(reached) < 60
        and trained == set(range(60)) - contexts.held_out
        and contexts.held_out < reached
    )


def test_the_divergence_on_held_out_documents_falls_and_the_checkpoint_is_an_ordinary_one(
    made, tmp_path
):
    before = {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()}
    result = saekit.finetune(made.run, tmp_path / "tuned", rows=3000, batch=8, lr=3e-3)
    assert (
        result.after["kl"] < 0.9 * result.before["kl"]
        and result.rows >= 3000
        and result.after["l0"] == pytest.approx(4)
    )
    assert {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()} == before
    sae, store = saekit.load(tmp_path / "tuned"), open_store(made.store)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)
    (row,) = saekit.evaluate(tmp_path / "tuned", made.store)
    assert row.split == "holdout" and row.metrics["fvu"] == pytest.approx(
        holdout_figures(sae, store)["fvu"]
    )
    # The same held-out rows, once from the store and once from the running model.
    assert row.metrics["fvu"] == pytest.approx(result.after["fvu"], rel=1e-3)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    told = config["finetuned"]
    assert (
        told["from"] == str(made.run)
        and told["before"] == result.before
        and told["after"] == result.after
    )
    assert (told["rows"], told["lr"], told["seed"]) == (result.rows, 3e-3, 0)
    lines = [
        json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == result.steps and lines[0]["lr"] == 3e-3 and lines[-1]["lr"] < 3e-3 * 0.1
    assert all(line["loss"] == pytest.approx(line["mse"], rel=1e-4) for line in lines)
    again = saekit.finetune(tmp_path / "tuned", tmp_path / "twice", rows=200, lr=1e-4)
    assert again.before == pytest.approx(result.after, rel=1e-4), (
        "its store is found, and it goes on where it was"
    )


def test_the_same_seed_gives_the_same_bits(made, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        saekit.finetune(made.run, tmp_path / name, rows=500, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


class Killed(Exception):
    pass


@pytest.mark.parametrize("saved", [0.0, 1e9])  # seconds between states: after every step, or never
def test_a_killed_run_goes_on_as_if_it_had_not_been(made, tmp_path, monkeypatch, saved):
    whole = saekit.finetune(made.run, tmp_path / "whole", rows=600)
    taken = []

    def five_steps(*arguments):
        if len(taken) == 5:
            raise Killed
        taken.append(take_step(*arguments))

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(finetuning, "take_step", five_steps)
        saekit.finetune(made.run, tmp_path / "broken", rows=600, save_seconds=saved)
    assert (tmp_path / "broken" / "train_state").exists() == (saved == 0)
    resumed = saekit.finetune(made.run, tmp_path / "broken", rows=600, resume=True)
    # finished: what it came to
    for result in (resumed, saekit.finetune(made.run, tmp_path / "broken", rows=600, resume=True)):
        timeless = {"path": whole.path, "rows_per_s": whole.rows_per_s}
        assert dataclasses.replace(result, **timeless) == whole
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_run_saves_where_it_is(made, tmp_path, monkeypatch):
    def interrupt(*arguments):
        take_step(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(finetuning, "take_step", interrupt)
        saekit.finetune(made.run, tmp_path / "run", rows=600)
    _, state = read_train_state(tmp_path / "run")
    assert state["steps"] == 1 and 0 < state["rows"] < 600


def test_a_resume_agrees_with_what_began(made, tmp_path):
    saekit.finetune(made.run, tmp_path / "run", rows=100)
    with pytest.raises(DataError, match="trained with other settings: rows 100 -> 200"):
        saekit.finetune(made.run, tmp_path / "run", rows=200, resume=True)
    saekit.train(made.store, tmp_path / "trained", latents=64, k=4, batch=128, rows=1280)
    with pytest.raises(DataError, match="`saekit train` wrote it"):
        saekit.finetune(made.run, tmp_path / "trained", rows=200, resume=True)


def test_other_data_can_be_trained_on(made, words, tmp_path):
    other = words(tmp_path / "other.txt", documents=20, seed=5)
    result = saekit.finetune(made.run, tmp_path / "tuned", data=other, rows=500)
    told = json.loads((tmp_path / "tuned" / "config.json").read_text())["finetuned"]
    own = saekit.finetune(made.run, tmp_path / "own", rows=500)
    assert told["data"] == other and result.before == own.before and result.after != own.after


@pytest.mark.parametrize("sparsity", ["batchtopk", "abs-topk", "jumprelu", "l1", "kl-sigmoid"])
def test_other_codes_are_tuned_too(made, tmp_path, sparsity):
    options = {"k": 4} if "topk" in sparsity else {}
    saekit.train(
        made.store,
        tmp_path / "run",
        sparsity=sparsity,
        latents=64,
        batch=128,
        rows=12_800,
        **options,
    )
    result = saekit.finetune(tmp_path / "run", tmp_path / "tuned", rows=2000, lr=1e-3)
    assert result.after["kl"] < result.before["kl"]
    raw = holdout_figures(saekit.load(tmp_path / "tuned"), open_store(made.store))
    assert raw["fvu"] == pytest.approx(result.after["fvu"], rel=1e-2) and raw[
        "l0"
    ] == pytest.approx(result.after["l0"], rel=1e-2)


def test_rows_beyond_the_norm_limit_stay_as_they_are(made, tmp_path):
    saekit.harvest(
        made.model,
        made.text,
        tmp_path / "s",
        hook="blocks.1",
        ctx=CTX,
        batch=4,
        max_norm=1.0,
        dtype="float32",
    )
    store, live = open_store(tmp_path / "s"), load_model(made.model)
    batch = next(Contexts(store, live, 4).holdout(4))
    run = run_spliced(
        live, saekit.load(made.run), Normalizer(torch.zeros(tiny.WIDTH), 1.0), batch, store
    )
    assert 0 < len(run.x_BD) < int(batch.rows_for_scope("content").sum())
    assert run.x_BD.norm(dim=1).max() <= store.manifest.norm_limit


# --- what is refused
# --------------------------------------------------------------------------------------------------


def test_the_verb_prints_before_and_after_or_one_json_value(capsys, made, tmp_path):
    status, out, err = saekit_cli(
        capsys, "finetune", made.run, tmp_path / "a", "--rows", 300, "--json", "--quiet"
    )
    result = json.loads(out)
    assert (
        status == 0
        and err == ""
        and set(result["before"]) == set(result["after"]) == {"kl", "fvu", "l0"}
    )
    status, out, _ = saekit_cli(capsys, "finetune", made.run, tmp_path / "b", "--rows", 300)
    assert (
        status == 0
        and f"kl {result['before']['kl']:.4f} -> {result['after']['kl']:.4f}" in out
        and "held-out contexts" in out
    )
    status, _, err = saekit_cli(capsys, "finetune", made.run, tmp_path / "a", "--rows", 300)
    assert status == 3 and "exists and is not empty" in err and "--overwrite" in err
    assert (
        saekit_cli(
            capsys, "finetune", made.run, tmp_path / "a", "--rows", 200, "--overwrite", "-q"
        )[0]
        == 0
    )
    assert (
        saekit_cli(
            capsys,
            "finetune",
            made.run,
            tmp_path / "c",
            "--config",
            tmp_path / "a" / "config.toml",
            "-q",
        )[0]
        == 0
    )
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "c" / "model.safetensors"
    ).read_bytes()


def test_a_run_cannot_be_overwritten_by_its_own_fine_tune(capsys, made):
    status, _, err = saekit_cli(capsys, "finetune", made.run, made.run, "--overwrite")
    assert status == 2 and "OUT is the checkpoint itself" in err and saekit.load(made.run)


def test_a_tuned_checkpoint_can_be_inspected(capsys, made, tmp_path):
    saekit.finetune(made.run, tmp_path / "tuned", rows=100)
    arguments = (
        "inspect",
        tmp_path / "tuned",
        "--store",
        made.store,
        "--out",
        tmp_path / "page",
        "--features",
        "top:3",
        "--json",
        "-q",
    )
    status, out, err = saekit_cli(capsys, *arguments)
    assert status == 0 and json.loads(out)["features"] == 3, err


@pytest.mark.parametrize(
    "options,status,cause",
    [
        (("--lr", "0"), 2, "--lr 0 must be above 0"),
        (("--rows", "-5"), 2, "--rows -5 must be above 0"),
        (("--seed", "-1"), 2, "--seed -1 must not be negative"),
        (("--store", "NONE"), 4, "there is no such folder"),
        (("--data", "nothing.txt"), 4, "nothing.txt"),
        (("--data", "embedded:digits"), 3, "holds images"),
        (("--device", "gpu"), 2, "--device gpu"),
    ],
)
def test_wrong_options_say_so(capsys, made, tmp_path, options, status, cause):
    options = [str(tmp_path / "none") if o == "NONE" else o for o in options]
    got, out, err = saekit_cli(capsys, "finetune", made.run, tmp_path / "out", *options)
    assert got == status and cause in err and out == "" and not (tmp_path / "out").exists(), err


def test_what_is_no_sae_of_a_language_model_is_refused(capsys, made, tmp_path):
    saekit.train(made.store, tmp_path / "pca", model="pca", latents=4)
    small = dict(latents=64, batch=128, rows=256)
    saekit.train(made.store, tmp_path / "pursuit", sparsity="matching-pursuit", k=2, **small)
    saekit.train(made.store, tmp_path / "archetypal", sparsity="archetypal", k=2, **small)
    saekit.train(made.store, tmp_path / "trans", target_store=str(made.store), k=2, **small)
    saekit.harvest(made.model, made.text, tmp_path / "two", hook=("blocks.0", "blocks.2"), ctx=CTX)
    first, second = (str(path) for path in sorted((tmp_path / "two").iterdir()) if path.is_dir())
    saekit.train(first, tmp_path / "cross", stores=(second,), k=2, **small)
    for run, cause in [
        ("pca", "holds a pca model"),
        ("pursuit", "matching-pursuit"),
        ("archetypal", "archetypal"),
        ("trans", "is a transcoder"),
        ("cross", "is a crosscoder"),
    ]:
        status, _, err = saekit_cli(capsys, "finetune", tmp_path / run, tmp_path / "out")
        assert status == 2 and cause in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["vision", "raw", "encoder"])
def test_models_without_logits_are_refused(capsys, made, tmp_path, what):
    if what == "vision":
        saekit.harvest(
            "embedded:digits-vit", "embedded:digits", tmp_path / "s", hook="blocks.1", rows=640
        )
    elif what == "raw":
        saekit.harvest("raw:pixels", "embedded:digits", tmp_path / "s", rows=100)
    else:
        saekit.harvest(
            tiny.save("bert", tmp_path / "bert"),
            made.text,
            tmp_path / "s",
            hook="blocks.1",
            ctx=CTX,
        )
    saekit.train(tmp_path / "s", tmp_path / "run", latents=64, k=2, batch=64, rows=128)
    status, _, err = saekit_cli(capsys, "finetune", tmp_path / "run", tmp_path / "out")
    assert status == 2 and "logits to train against" in err and not (tmp_path / "out").exists(), err


def test_the_store_must_be_the_one_that_was_trained_on(made, tmp_path):
    saekit.harvest(made.model, made.text, tmp_path / "other", hook="blocks.2", ctx=CTX)
    with pytest.raises(DataError, match="is not the store that"):
        saekit.finetune(made.run, tmp_path / "out", store=str(tmp_path / "other"))
    moved = tmp_path / "run"
    shutil.copytree(made.run, moved)
    (moved / "config.toml").unlink()
    with pytest.raises(UsageError, match="does not say which store") as raised:
        saekit.finetune(moved, tmp_path / "out")
    assert "store" in raised.value.hint
    assert saekit.finetune(moved, tmp_path / "out", store=str(made.store), rows=100).rows >= 100


def test_data_that_has_changed_since_is_refused(made, words, tmp_path):
    text = words(tmp_path / "w.txt", documents=20, seed=7)
    saekit.harvest(made.model, text, tmp_path / "s", hook="blocks.1", ctx=CTX)
    saekit.train(tmp_path / "s", tmp_path / "run", latents=64, k=4, batch=64, rows=128)
    words(tmp_path / "w.txt", documents=20, seed=8)
    with pytest.raises(DataError, match=r"w.txt has changed since"):
        saekit.finetune(tmp_path / "run", tmp_path / "out")


# --- objects
# --------------------------------------------------------------------------------------------------


def same_weights(a, b) -> bool:
    a, b = (saekit.load(folder).state_dict() for folder in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def live_model_of(made):
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(made.model).train()


def test_a_live_model_is_tuned_against_as_one_from_a_folder_and_stays_as_it_was(made, tmp_path):
    saekit.finetune(made.run, tmp_path / "by_path", rows=300)
    model = live_model_of(made)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = saekit.finetune(Path(made.run), tmp_path / "live", rows=300, live=model)
    assert same_weights(tmp_path / "by_path", tmp_path / "live") and result.rows >= 300
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="the model is on cpu"):
        saekit.finetune(made.run, tmp_path / "cuda", live=model, device="cuda:0")


def test_texts_in_memory_are_tuned_on_as_their_file(made, tmp_path):
    texts, model = Path(made.text).read_text().split("\n\n"), live_model_of(made)
    tokenizer = tiny.tokenizer()
    options = {"hook": "blocks.1", "ctx": CTX, "batch": 8, "dtype": "float32", "holdout": 0.2}
    saekit.harvest(model, texts, tmp_path / "store", tokenizer=tokenizer, **options)
    settings = {"latents": 64, "k": 4, "batch": 128, "rows": 12_800}
    trained = saekit.train(tmp_path / "store", tmp_path / "run", **settings)
    saekit.finetune(made.run, tmp_path / "by_path", rows=300)
    given = {"rows": 300, "live": model}
    saekit.finetune(trained, tmp_path / "objects", data=iter(texts), **given)
    assert same_weights(tmp_path / "by_path", tmp_path / "objects")
    # a resume is of the same texts
    again = saekit.finetune(trained, tmp_path / "objects", data=texts, resume=True, **given)
    assert again.rows >= 300
    with pytest.raises(DataError, match="not what the store was harvested from"):
        saekit.finetune(trained, tmp_path / "objects", data=texts[::-1], resume=True, **given)


def test_what_is_missing_of_a_store_from_memory_is_named(made, tmp_path):
    texts, model = Path(made.text).read_text().split("\n\n"), live_model_of(made)
    options = {"hook": "blocks.1", "ctx": CTX, "batch": 8, "dtype": "float32", "holdout": 0.2}
    saekit.harvest(model, texts, tmp_path / "store", tokenizer=tiny.tokenizer(), **options)
    run = saekit.train(tmp_path / "store", tmp_path / "run", latents=32, k=4, batch=64, rows=640)
    with pytest.raises(MissingError, match="60 texts in memory"):
        saekit.finetune(run, tmp_path / "out", live=model)
    with pytest.raises(DataError, match="not what the store was harvested from"):
        saekit.finetune(run, tmp_path / "out", live=model, data=texts[1:])
    with pytest.raises(UsageError, match="without a record of what it was trained on"):
        saekit.finetune(run.model, tmp_path / "out")
    other = ["the cat sat on a mat"] * 30
    tuned = saekit.finetune(made.run, tmp_path / "tuned", data=other, rows=100)
    assert tuned.rows >= 100
    about = json.loads((tmp_path / "tuned" / "config.json").read_text())["finetuned"]
    assert about["data"] == "30 texts in memory"
    with pytest.raises(DataError, match="with other settings: data_content"):
        other[0] = "home"
        saekit.finetune(made.run, tmp_path / "tuned", data=other, rows=100, resume=True)

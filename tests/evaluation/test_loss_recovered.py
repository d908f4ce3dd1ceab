"""Loss recovered, against loops written by hand: what counts, what is replaced, and what is
refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path

import made_dictionaries
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as nnF
from command import saekit as saekit_cli
from made_language import HARVEST, decided_model, made_language, write_words
from made_runs import rows_store
from saekit_cli import screen
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

import saekit
from saekit.embedded import digits, model_folder
from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, MissingError, UsageError
from saekit.evaluation import recovery
from saekit.models.autoencoder import Autoencoder
from saekit.models.metrics import LOSS_METRICS
from saekit.models.sparsity.topk import TopK
from saekit.store.reader import Store
from saekit.types import Output

NAMES = [metric.name for metric in LOSS_METRICS]
BOS = 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_language(tmp_path_factory.mktemp("language"))


class Constant(Autoencoder):
    """x_hat = a x + b."""

    latents = 1

    def __init__(self, d_in: int, a: float, b: torch.Tensor | float = 0.0) -> None:
        super().__init__()
        self.d_in, self.a = d_in, a
        self.register_buffer("b", torch.zeros(d_in) + b)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :1]

    def forward(self, x: torch.Tensor) -> Output:
        return Output(self.a * x + self.b, self.encode(x))


def double(path: str) -> torch.nn.Module:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(path).double().eval()


def contexts_of(store: Store, split: str) -> dict[int, list[list[int]]]:
    """document -> the tokens of its contexts."""
    chosen = set(store.column("doc_id")[store.split(split).numbers()].tolist())
    found = defaultdict(list)
    for shard in store.shards:
        for number in range(len(shard.arrays["examples.first_row"])):
            example = shard.example(number)
            if example.doc_id in chosen:
                found[example.doc_id].append(list(example.tokens))
    return found


@torch.no_grad()
def by_hand(module, hooked, store, split, functions) -> tuple[dict[str, float | None], int]:
    """The metrics by one pass per context, without padding: `functions` replace the states after
    `hooked` at all positions but the BOS token. Also the number of predictions."""
    sums, count = defaultdict(float), 0
    for tokens in chain.from_iterable(contexts_of(store, split).values()):
        ids = torch.tensor([tokens])
        content = [place for place, token in enumerate(tokens) if token != BOS]
        predicting = [place for place in content if place + 1 < len(tokens)]
        targets = torch.tensor([tokens[place + 1] for place in predicting], dtype=torch.int64)
        logits = {}
        for name, function in functions.items():

            def change(_module, _args, output, content=content, function=function):
                state = (output[0] if isinstance(output, tuple) else output).clone()
                state[0, content] = function(state[0, content])
                return (state, *output[1:]) if isinstance(output, tuple) else state

            handle = hooked.register_forward_hook(change)
            logits[name] = module(ids, use_cache=False).logits[0, predicting].log_softmax(1)
            handle.remove()
        for name, log_q in logits.items():
            sums[f"ce_{name}"] += float(nnF.nll_loss(log_q, targets, reduction="sum"))
            kl = (logits["clean"].exp() * (logits["clean"] - log_q)).sum()
            sums[f"kl_{name}"] += float(kl)
        same = logits["clean"].argmax(1) == logits["sae"].argmax(1)
        sums["top1_agreement"] += float(same.sum())
        count += len(predicting)
    means = {name: total / count for name, total in sums.items()}
    lost, gained = (means["ce_zero"] - means[name] for name in ("ce_clean", "ce_sae"))
    means["ce_recovered"] = gained / lost if lost > 0 else None
    return means, count


def values(evaluation) -> dict[str, float | None]:
    return {name: evaluation.metrics[name]["value"] for name in NAMES}


def assert_close(evaluation, expected: dict[str, float | None], rel: float) -> None:
    for name, value in values(evaluation).items():
        wanted = expected[name]
        assert value == (None if wanted is None else pytest.approx(wanted, rel=rel)), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_value_is_that_of_a_loop_in_fp64(family, tmp_path):
    model, text = decided_model(family, tmp_path / "model"), write_words(tmp_path / "words.txt", 20)
    saekit.harvest(model, text, tmp_path / "store", hook="blocks.1", **HARVEST)
    store, module = Store(tmp_path / "store"), double(model)
    sae = TopK(d_in=32, latents=40, k=3, folded=True).double().eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(40, 32) / 4)
        sae.b_dec.copy_(torch.randn(32) / 10)
    mean = torch.tensor(store.stats["mean"], dtype=torch.float64)

    def formula(x: torch.Tensor) -> torch.Tensor:
        pre = (x @ sae.W_enc.T + sae.b_enc).relu()
        top = pre.topk(3, dim=1)
        return torch.zeros_like(pre).scatter(1, *top[::-1]) @ sae.W_dec + sae.b_dec

    functions = {
        "clean": lambda x: x,
        "sae": formula,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
    }
    blocks = module.model.layers if family == "llama" else module.transformer.h
    expected, count = by_hand(module, blocks[1], store, "all", functions)
    [found] = saekit.evaluate(sae, store, loss_recovered=True, live=module)
    assert_close(found, expected, rel=1e-9)
    # in a random model zeros may predict better than its own states: then there is no share
    assert (expected["ce_recovered"] is None) == (family == "gpt2")
    recovered = found.recovery
    assert (recovered.predictions, recovered.rows) == (count, len(store))
    assert recovered.documents == 20 and recovered.targets == "next tokens"
    for name in ("ce_clean", "ce_sae", "ce_mean", "kl_sae"):
        figure = found.metrics[name]
        assert 0 < figure["low"] < figure["value"] < figure["high"]


def test_an_identity_recovers_all_and_zeros_recover_nothing(made):
    store = Store(made.store)
    mean = torch.tensor(store.stats["mean"])
    models = [Constant(32, 1.0), Constant(32, 0.0), Constant(32, 0.0, mean)]
    same, zero, average = saekit.evaluate(models, store, loss_recovered=True)
    assert values(same)["ce_recovered"] == 1.0 and values(same)["kl_sae"] == 0.0
    assert values(same)["top1_agreement"] == 1.0
    assert values(same)["ce_sae"] == values(same)["ce_clean"] < values(same)["ce_zero"]
    assert values(zero)["ce_recovered"] == 0.0 and values(zero)["kl_sae"] == values(zero)["kl_zero"]
    assert values(average)["ce_sae"] == pytest.approx(values(average)["ce_mean"], rel=1e-6)


def test_a_checkpoint_is_judged_on_held_out_documents_and_an_import_on_all(made, tmp_path):
    held_out = contexts_of(Store(made.store), "holdout")
    [own] = saekit.evaluate(made.run, made.store, loss_recovered=True)
    assert own.split == "holdout" and own.recovery.documents == len(held_out)
    assert own.recovery.contexts == sum(map(len, held_out.values()))
    moved = json.loads((made.run / "config.json").read_text()) | {"content": "another"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(moved))
    (tmp_path / "run/model.safetensors").write_bytes((made.run / "model.safetensors").read_bytes())
    [other] = saekit.evaluate(tmp_path / "run", made.store, loss_recovered=True)
    assert other.split == "all" and other.recovery.documents == 60
    both = saekit.evaluate([made.run, tmp_path / "run"], made.store, loss_recovered=True)
    assert [values(e) for e in both] == [values(own), values(other)]


def test_neither_the_size_of_a_pass_nor_the_number_of_dictionaries_changes_the_values(
    made, monkeypatch
):
    run = saekit.load(made.run)
    [whole] = saekit.evaluate(run, made.store, loss_recovered=True, contexts=20)
    assert whole.recovery.contexts == 20
    sizes = []
    original = recovery._Passes._sums

    def counted(self, batch):
        sizes.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(recovery._Passes, "_sums", counted)
    monkeypatch.setattr(recovery, "LOGITS", 2 * 16 * 20)  # two contexts of 16 tokens, 20 words
    monkeypatch.setattr(recovery, "CODE_NUMBERS", 64 * 5)
    one, _ = saekit.evaluate([run, Constant(32, 0.5)], made.store, loss_recovered=True, contexts=20)
    assert max(sizes) <= 3 and sum(sizes) == 20  # short contexts are padded less
    assert values(one) == pytest.approx(values(whole), rel=1e-5)


def test_special_positions_and_dropped_rows_keep_their_bits(made, tmp_path):
    saekit.harvest(
        made.model, made.text, tmp_path / "store", hook="blocks.1", max_norm=1.1, **HARVEST
    )
    store = Store(tmp_path / "store")
    assert store.stats["dropped_rows"] > 50
    [found] = saekit.evaluate(Constant(32, 0.0), store, loss_recovered=True)
    assert found.recovery.rows == len(store)
    [every] = saekit.evaluate(Constant(32, 0.0), made.store, loss_recovered=True)
    # predictions at dropped rows count, so only the replaced rows differ
    assert found.recovery.predictions == every.recovery.predictions
    assert values(found)["ce_clean"] == values(every)["ce_clean"]
    assert values(found)["kl_zero"] < values(every)["kl_zero"]


def test_a_transcoder_replaces_the_output_of_the_module(made, tmp_path):
    hooks = ["blocks.1.mlp:in", "blocks.1.mlp"]
    stores = saekit.harvest(made.model, made.text, tmp_path / "acts", hook=hooks, **HARVEST).stores
    paths = [Path(stores[f"model.layers.1.mlp{end}"]) for end in (":in", "")]
    saekit.train(
        paths[0], tmp_path / "run", target_store=paths[1], latents=48, k=4, skip=True, rows=2000
    )
    [found] = saekit.evaluate(tmp_path / "run", paths[0], loss_recovered=True)
    sae, module = saekit.load(tmp_path / "run"), AutoModelForCausalLM.from_pretrained(made.model)
    mean = torch.tensor(Store(paths[1]).stats["mean"]).float()
    mlp, before = module.model.layers[1].mlp, {}
    mlp.register_forward_pre_hook(lambda _module, args: before.update(x=args[0]))

    def content_of(tokens: int) -> torch.Tensor:
        return before["x"][0, -tokens:]  # the BOS token is the first

    functions = {
        "clean": lambda y: y,
        "sae": lambda y: sae(content_of(len(y))).x_hat,
        "zero": torch.zeros_like,
        "mean": lambda y: mean.expand_as(y),
    }
    expected, _ = by_hand(module, mlp, Store(paths[0]), "holdout", functions)
    assert_close(found, expected, rel=1e-4)
    with pytest.raises(DataError, match=r"model.layers.1.mlp:in runs before model.layers.1.mlp,"):
        backwards = TopK(d_in=32, d_out=32, latents=8, k=1)
        saekit.evaluate(backwards, paths[1], target_store=paths[0], loss_recovered=True)


def test_a_crosscoder_replaces_the_states_of_all_its_hooks(made, tmp_path):
    hooks = ["blocks.0", "blocks.1"]
    saekit.harvest(made.model, made.text, tmp_path / "acts", hook=hooks, **HARVEST)
    paths = [tmp_path / "acts" / f"model.layers.{number}" for number in (0, 1)]
    settings = {"latents": 64, "k": 4, "rows": 2000, "batch": 128}
    saekit.train(paths[0], tmp_path / "run", stores=(str(paths[1]),), **settings)
    [found] = saekit.evaluate(tmp_path / "run", paths, loss_recovered=True)
    # by splice itself: states of the clean pass, reconstructed together
    sae, module = saekit.load(tmp_path / "run"), AutoModelForCausalLM.from_pretrained(made.model)
    sums = np.zeros(3)
    for tokens in chain.from_iterable(contexts_of(Store(paths[0]), "holdout").values()):
        ids = torch.tensor([tokens])
        mask = ids != BOS
        with torch.no_grad(), saekit.capture(module, hooks) as states:
            module(ids)
        x = torch.cat([states[hook][mask] for hook in hooks], 1)
        parts = dict(zip(hooks, sae(x).x_hat.split(32, 1)))
        changed = {hook: lambda _, rows=rows: rows for hook, rows in parts.items()}
        for place, change in enumerate((changed, {hook: torch.zeros_like for hook in hooks})):
            with torch.no_grad(), saekit.splice(module, change, mask_BT=mask):
                log_q = module(ids).logits[0, 1:-1].log_softmax(1)
            sums[place] += float(nnF.nll_loss(log_q, ids[0, 2:], reduction="sum"))
        sums[2] += len(tokens) - 2
    assert values(found)["ce_sae"] == pytest.approx(sums[0] / sums[2], rel=1e-4)
    assert values(found)["ce_zero"] == pytest.approx(sums[1] / sums[2], rel=1e-4)


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Path:
    """Rows of the patches after block 1 of the digits ViT."""
    store = tmp_path_factory.mktemp("digits") / "store"
    saekit.harvest("embedded:digits-vit", "embedded:digits", store, hook="blocks.1", rows=6400)
    return store


def test_an_image_classifier_is_judged_by_its_head(patches, tmp_path):
    saekit.train(patches, tmp_path / "run", latents=128, k=8, batch=256, rows=20_000)
    sae = saekit.load(tmp_path / "run")
    [found] = saekit.evaluate(tmp_path / "run", patches, split="all", loss_recovered=True)
    assert found.recovery.targets == "labels" and found.recovery.contexts == 100
    with quiet_transformers():
        folder, _ = model_folder("embedded:digits-vit")
        module = AutoModelForImageClassification.from_pretrained(folder).eval()
    store, sums = Store(patches), defaultdict(float)
    shown = sorted(set(store.column("doc_id").tolist()))
    with torch.no_grad():
        for number in shown:
            pixels = torch.tensor(np.array(digits.image(number)))[None, None] / 127.5 - 1
            label = torch.tensor([int(digits.label(number))])
            functions = {
                "clean": lambda x: x,
                "sae": lambda x: sae(x).x_hat,
                "zero": lambda x: 0 * x,
            }
            for name, function in functions.items():

                def change(_module, _args, output, function=function):
                    state = output.clone()  # the class token is the first
                    state[0, 1:] = function(state[0, 1:])
                    return state

                handle = module.vit.layers[1].register_forward_hook(change)
                log_q = module(pixels).logits.log_softmax(1)
                handle.remove()
                sums[f"ce_{name}"] += float(nnF.nll_loss(log_q, label)) / len(shown)
                if name == "clean":
                    log_p = log_q
                kl = float((log_p.exp() * (log_p - log_q)).sum())
                sums[f"kl_{name}"] += kl / len(shown)
    for name in ("ce_clean", "ce_sae", "ce_zero", "kl_sae", "kl_zero"):
        assert values(found)[name] == pytest.approx(sums[name], rel=1e-3, abs=1e-6), name
    assert 0.5 < values(found)["ce_recovered"] <= 1.01


def test_without_labels_the_clean_prediction_is_the_target(patches, monkeypatch):
    monkeypatch.setattr(Store, "labels", lambda self, *_, **__: [None])
    [found] = saekit.evaluate(
        Constant(64, 1.0), patches, loss_recovered=True, contexts=12, split="holdout"
    )
    assert found.recovery.targets == "clean predictions" and found.recovery.contexts <= 12
    assert values(found)["top1_agreement"] == 1.0 and values(found)["ce_clean"] < 0.2


def test_what_has_no_loss_is_refused_by_name(made, tmp_path):
    wanted, rows = {"loss_recovered": True}, (torch.randn(20, 8), [None] * 20)
    with pytest.raises(DataError, match="states of a model: there is no loss"):
        saekit.evaluate(Constant(8, 1.0), rows_store(tmp_path / "raw", *rows), **wanted)
    with pytest.raises(UsageError, match="rows in memory do not say which model"):
        saekit.evaluate(Constant(32, 1.0), torch.randn(50, 32), **wanted)
    for options in ({"contexts": 5}, {"data": ["the cat"]}):
        with pytest.raises(UsageError, match="is for the loss recovered"):
            saekit.evaluate(made.run, made.store, **options)
    with pytest.raises(UsageError, match="contexts=0"):
        saekit.evaluate(made.run, made.store, contexts=0, **wanted)
    for family, cause in (
        ("bert", "does not predict the next token"),
        ("dinov2", "no classification head"),
    ):
        model = tiny.save(family, tmp_path / family)
        data = made.text if family == "bert" else "embedded:digits"
        acts = tmp_path / f"{family}-acts"
        saekit.harvest(model, data, acts, hook="blocks.1", rows=300, ctx=16)
        with pytest.raises(DataError, match=cause):
            saekit.evaluate(Constant(32, 1.0), acts, **wanted)


def test_the_callers_model_comes_back_as_it_was(made):
    module = AutoModelForCausalLM.from_pretrained(made.model).train()
    [given] = saekit.evaluate(made.run, made.store, loss_recovered=True, live=module)
    [named] = saekit.evaluate(made.run, made.store, loss_recovered=True)
    assert values(given) == values(named)
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_a_store_of_objects_takes_these_objects(made, tmp_path):
    module = AutoModelForCausalLM.from_pretrained(made.model)
    texts = Path(made.text).read_text().split("\n\n")
    options = HARVEST | {"tokenizer": AutoTokenizer.from_pretrained(made.model)}
    saekit.harvest(module, texts, tmp_path / "store", hook="blocks.1", **options)
    given = {"live": module, "data": iter(texts), "loss_recovered": True}
    [objects] = saekit.evaluate(saekit.load(made.run), tmp_path / "store", **given)
    [files] = saekit.evaluate(saekit.load(made.run), made.store, loss_recovered=True)
    assert objects.recovery.predictions == files.recovery.predictions
    # texts in memory come in another order
    assert values(objects)["ce_sae"] == pytest.approx(values(files)["ce_sae"], rel=1e-6)
    with pytest.raises(MissingError, match="has other weights"):
        with torch.no_grad():
            module.model.layers[0].mlp.down_proj.weight.add_(1)
        saekit.evaluate(made.run, tmp_path / "store", **given | {"data": texts})


def test_a_classifier_in_memory_is_one_level_deeper_than_what_was_harvested(patches):
    folder, _ = model_folder("embedded:digits-vit")
    module = AutoModelForImageClassification.from_pretrained(folder)
    run = Constant(64, 0.5)
    options = {"loss_recovered": True, "contexts": 20}
    [given] = saekit.evaluate(run, patches, live=module, **options)
    [named] = saekit.evaluate(run, patches, **options)
    assert values(given) == values(named)
    with pytest.raises(DataError, match="no classification head"):
        saekit.evaluate(run, patches, live=module.vit, **options)


def test_packed_contexts_are_what_is_resampled(made, tmp_path):
    store = tmp_path / "store"
    saekit.harvest(made.model, made.text, store, hook="blocks.1", pack=True, **HARVEST)
    [found] = saekit.evaluate(Constant(32, 0.5), store, loss_recovered=True)
    assert found.recovery.documents == found.recovery.contexts > 60


def test_a_published_dictionary_is_judged_on_all_documents(made, tmp_path):
    source = made_dictionaries.saelens(tmp_path / "sae", width=32)
    [found] = saekit.evaluate(source, made.store, loss_recovered=True, any_store=True)
    assert found.recovery.documents == 60 and values(found)["kl_sae"] > 0


def test_without_losses_transformers_is_not_imported(made):
    code = (
        f"import sys, saekit; saekit.evaluate({str(made.run)!r}, {str(made.store)!r});"
        " print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_line_prints_a_second_table_and_json(made, capsys, monkeypatch):
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0)  # it takes less than a line of a log
    command = ("evaluate", made.run, "--store", made.store, "--loss-recovered", "--contexts", 10)
    status, out, err = saekit_cli(capsys, *command, "--json")
    [found] = json.loads(out)
    assert status == 0 and found["recovery"]["contexts"] == 10
    assert all(found["metrics"][name].keys() == {"value", "low", "high"} for name in NAMES)
    status, out, err = saekit_cli(capsys, *command)
    first, second = out.split("\n\n")
    assert status == 0 and len(first.splitlines()) == 2 and "10/10 contexts" in err
    lines = {line.split()[0]: line for line in second.splitlines()[1:]}
    assert list(lines)[:8] == NAMES
    value, low, high = (found["metrics"]["ce_sae"][bound] for bound in ("value", "low", "high"))
    assert lines["ce_sae"].split(None, 1)[1] == f"{value:.4f} [{low:.4f}, {high:.4f}]"
    assert "against next tokens" in second.splitlines()[-1]
    status, out, _ = saekit_cli(capsys, "evaluate", made.run, "--store", made.store, "--json")
    [plain] = json.loads(out)
    assert plain["recovery"] is None and all(plain["metrics"][name] is None for name in NAMES)
    status, _, err = saekit_cli(capsys, *command[:4], "--contexts", 5)
    assert status == 2 and "--loss-recovered" in err

"""Rows for a dictionary: harvested as it says, and checked where they are used."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from command import saekit as command
from made_dictionaries import saelens, sparsify

import saekit
from saekit.errors import DataError, UsageError
from saekit.interop.base_models import hub_id, same_model
from saekit.interop.fit import same_hook
from saekit.interop.provenance import provenance, rule
from saekit.store.reader import open_store
from saekit.types import ActivationSpec

TEXTS = ["the cat sat on a mat and the dog ran far away", "a dog ran home from the cat"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save("gpt2", tmp_path_factory.mktemp("weights"))


def origin(path, **metadata):
    """Change what a SAELens folder says about itself; None removes it."""
    config = json.loads((path / "cfg.json").read_text())
    config["metadata"] |= metadata
    for name in [name for name, value in metadata.items() if value is None]:
        del config["metadata"][name]
    (path / "cfg.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """It reads 32 values at the input of block 1, with the BOS row, in contexts of 9."""
    path = saelens(tmp_path_factory.mktemp("published") / "sae", width=tiny.WIDTH)
    return origin(
        path, model_name="gpt2-small", hook_name="blocks.1.hook_resid_pre", context_size=9
    )


def harvested(model, out, dictionary, **options):
    """(store, messages)."""
    lines = []
    result = saekit.harvest(
        model,
        TEXTS,
        out,
        dictionary=dictionary,
        progress=lambda p: lines.append(p.message),
        **options,
    )
    return result, [line for line in lines if line]


@pytest.fixture(scope="module")
def store(model, dictionary, tmp_path_factory):
    return harvested(model, tmp_path_factory.mktemp("acts") / "store", dictionary)[0].path


def test_a_harvest_takes_what_the_dictionary_says(model, dictionary, tmp_path):
    result, lines = harvested(model, tmp_path / "acts", dictionary, rows=100)
    spec = open_store(result.path).spec
    assert (spec.hook, spec.context, spec.scope) == ("transformer.h.1:in", 9, "all")
    assert result.rows == 100
    line = next(line for line in lines if line.startswith(f"from {dictionary}"))
    for part in (model, 'hook="blocks.1.hook_resid_pre"', "ctx=9", 'scope="all"'):
        assert part in line
    # the BOS row is the first of every context
    assert (open_store(result.path).take(torch.arange(100).numpy()).position == 0).sum() >= 10


def test_what_the_caller_gives_comes_before_it(model, dictionary, tmp_path):
    result, lines = harvested(
        model, tmp_path / "acts", dictionary, hook="blocks.0.mlp", scope="content"
    )
    spec = open_store(result.path).spec
    assert (spec.hook, spec.context, spec.scope) == ("transformer.h.0.mlp", 9, "content")
    assert not any("scope" in line or "hook" in line for line in lines if line.startswith("from"))


def test_what_it_does_not_say_is_said(model, tmp_path):
    silent = saelens(tmp_path / "sae", width=tiny.WIDTH)
    origin(
        silent,
        hook_name="blocks.1.hook_resid_post",
        context_size=None,
        prepend_bos=None,
        exclude_special_tokens=None,
        seqpos_slice=[3, None],
    )
    with pytest.raises(DataError, match=r"ctx=128: .* takes at most 64 tokens"):
        harvested(model, tmp_path / "acts", silent)
    result, lines = harvested(model, tmp_path / "acts", silent, ctx=9)
    spec = open_store(result.path).spec
    assert (spec.hook, spec.context, spec.scope) == ("transformer.h.1", 9, "content")
    assert f'{silent} does not say scope: scope="content"' in lines
    assert any("positions [3, None] of a context only" in line for line in lines)


def test_a_transcoder_gets_both_its_hooks(model, tmp_path):
    path = saelens(tmp_path / "sae", "jumprelu_transcoder", width=tiny.WIDTH)
    origin(path, hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out")
    result, _ = harvested(model, tmp_path / "acts", path, ctx=9)
    assert list(result.stores) == ["transformer.h.1.ln_2:normalized", "transformer.h.1.mlp"]
    fanned = sparsify(tmp_path / "run" / "h.1.mlp", transcode=True)
    assert provenance(saekit.interop.opening.open_checkpoint(fanned).config).target_hook


def test_a_width_that_does_not_fit_is_refused(model, tmp_path):
    path = origin(saelens(tmp_path / "sae"), hook_name="blocks.1.hook_resid_pre")
    with pytest.raises(
        DataError, match=r"takes 16 values per row of blocks.1.hook_resid_pre; .* 32"
    ):
        harvested(model, tmp_path / "acts", path, ctx=9)
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize(
    ("change", "given", "cause"),
    [
        ({"model_name": None}, {}, "does not say which model it was trained on"),
        ({"hook_name": None}, {"model": True}, "does not say which hook it reads"),
    ],
)
def test_what_must_be_known_is_asked_for(model, tmp_path, change, given, cause):
    path = origin(saelens(tmp_path / "sae", width=tiny.WIDTH), **change)
    with pytest.raises(UsageError, match=cause):
        saekit.harvest(model if given else None, TEXTS, tmp_path / "acts", dictionary=path)


def test_the_model_of_the_dictionary_is_loaded_where_none_is_given(model, tmp_path):
    path = origin(
        saelens(tmp_path / "sae", width=tiny.WIDTH),
        model_name=model,
        hook_name="blocks.1.hook_resid_pre",
    )
    result = saekit.harvest(None, TEXTS, dictionary=path, rows=10, ctx=9)
    assert result.x.shape == (10, tiny.WIDTH)


def test_a_checkpoint_of_ours_says_everything(model, tmp_path):
    made = saekit.harvest(
        model, TEXTS, tmp_path / "acts", hook="blocks.0.mlp", ctx=7, scope="all", max_norm=50.0
    )
    run = saekit.train(made.path, tmp_path / "run", latents=64, k=4, rows=96, batch=32)
    again = saekit.harvest(None, TEXTS, tmp_path / "again", dictionary=run.path)
    assert open_store(again.path).spec == open_store(made.path).spec
    saekit.evaluate(run.path, again.path)


def test_the_target_of_our_transcoder_is_that_of_its_store(model, tmp_path):
    both = saekit.harvest(
        model, TEXTS, tmp_path / "acts", hook=["blocks.1.mlp:in", "blocks.1.mlp"], ctx=9
    )
    reads, gives = both.stores.values()
    run = saekit.train(
        reads, tmp_path / "run", target_store=gives, latents=64, k=4, rows=96, batch=32
    )
    again, _ = harvested(model, tmp_path / "again", run.path)
    assert list(again.stores) == list(both.stores)
    saekit.evaluate(run.path, next(iter(again.stores.values())))


def test_the_command_line_takes_model_or_not(capsys, model, dictionary, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    own = origin(
        saelens(tmp_path / "sae", width=tiny.WIDTH), model_name=model, context_size=9,
        hook_name="blocks.1.hook_resid_pre",
    )  # fmt: skip
    status, out, error = command(
        capsys, "harvest", "--for", own, texts, tmp_path / "a", "--rows", "50"
    )
    assert status == 0 and "transformer.h.1:in" in out and "--ctx 9" in error, error
    status, out, error = command(
        capsys, "harvest", "--for", dictionary, model, texts, tmp_path / "b", "--rows", "50"
    )
    assert status == 0 and "transformer.h.1:in" in out, error
    assert command(capsys, "harvest", "--for", own, texts)[0] == 2
    assert command(capsys, "evaluate", own, "--store", tmp_path / "a")[0] == 0


# -- the check -------------------------------------------------------------------------------------


def test_the_right_store_is_taken(dictionary, store):
    [result] = saekit.evaluate(dictionary, store)
    assert result.rows == len(open_store(store))


@pytest.fixture(scope="module")
def other(model, tmp_path_factory):
    """Content only, after block 1."""
    out = tmp_path_factory.mktemp("acts") / "other"
    return saekit.harvest(model, TEXTS, out, hook="blocks.1", ctx=9).path


VERBS = {
    "evaluate": lambda checkpoint, store, _, **options: saekit.evaluate(
        checkpoint, store, **options
    ),
    "compare": lambda checkpoint, store, _, **options: saekit.compare(checkpoint, store, **options),
    "features": lambda checkpoint, store, _, **options: saekit.features(
        checkpoint, store, text="the cat", **options
    ),
    "inspect": lambda checkpoint, store, out, **options: saekit.inspect(
        checkpoint, store, out, features="top:2", **options
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_names_both_sides_and_the_way_on(verb, dictionary, other, tmp_path):
    # these two read checkpoint folders
    saekit.import_dictionary(dictionary, tmp_path / "sae")
    with pytest.raises(DataError) as error:
        VERBS[verb](str(tmp_path / "sae"), other, tmp_path / "page")
    cause, hint = error.value.cause, error.value.remedy
    assert "was trained on model gpt2-small, hook blocks.1.hook_resid_pre, scope all" in cause
    assert "holds model " in cause and "hook transformer.h.1, scope content" in cause
    assert "it learned the row of the BOS, which the store leaves out" in cause
    assert "--for" in hint and "any_store" in hint
    VERBS[verb](str(tmp_path / "sae"), other, tmp_path / "page", any_store=True)


def test_a_run_of_ours_is_checked_too(model, other, tmp_path):
    run = saekit.train(other, tmp_path / "run", latents=64, k=4, rows=96, batch=32)
    same = saekit.harvest(model, TEXTS, tmp_path / "same", hook="blocks.2:in", ctx=9).path
    saekit.evaluate(run.path, same)  # blocks.2:in is blocks.1
    earlier = saekit.harvest(model, TEXTS, tmp_path / "earlier", hook="blocks.0", ctx=9).path
    with pytest.raises(
        DataError, match=r"(?m)hook transformer.h.1; .* holds hook transformer.h.0$"
    ):
        saekit.evaluate(run.path, earlier)
    saekit.evaluate(run.path, earlier, any_store=True)
    saekit.evaluate(run.path, open_store(earlier).take(torch.arange(20).numpy()).x)  # says nothing


# -- names and rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "settings", "scope"),
    [
        ("saelens", {"prepend_bos": True}, "all"),
        ("saelens", {"prepend_bos": True, "exclude_special_tokens": False}, "all"),
        ("saelens", {"prepend_bos": True, "exclude_special_tokens": True}, "content"),
        ("saelens", {"prepend_bos": True, "exclude_special_tokens": [0, 2]}, "content"),
        ("saelens", {"prepend_bos": False}, "content"),
        ("gemma_scope", {"prepend_bos": True, "exclude_special_tokens": True}, "content"),
        ("gemma_scope_2", {"prepend_bos": True}, None),
        ("dictionary_learning", {"remove_bos": True}, "content"),
        ("dictionary_learning", {"remove_bos": False, "add_special_tokens": True}, "all"),
        ("dictionary_learning", {"add_special_tokens": False, "remove_bos": False}, "content"),
        ("vit_prisma", {"cls_token_only": True, "use_patches_only": False}, "cls"),
        ("vit_prisma", {"cls_token_only": False, "use_patches_only": True}, "content"),
        ("vit_prisma", {"cls_token_only": False, "use_patches_only": False}, "all"),
        ("saev", {"patches": "image"}, "content"),
        ("saev", {"tokens": "all"}, "all"),
        ("sparsify", {}, None),
    ],
)
def test_rules_for_special_tokens_in_our_words(format, settings, scope):
    assert rule(format, settings)[0] == scope


def test_a_rule_that_saekit_cannot_follow_is_said():
    for settings in ({"prepend_bos": False}, {"add_special_tokens": False}):
        assert "without a BOS" in rule("saelens", settings)[1][0]
    assert rule("saelens", {"prepend_bos": True, "seqpos_slice": [None]})[1] == ()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gpt2-small", "openai-community/gpt2", True),
        ("google/gemma-2-2b", "gemma-2-2b", True),
        ("google/gemma-2-2b", "gemma-2-2b-it", False),
        ("EleutherAI/pythia-70m-deduped", "pythia-70m", False),
        ("HuggingFaceTB/SmolLM2-135M", "embedded:smollm2-135m", True),
        ("HuggingFaceTB/SmolLM2-135M", "/data/SmolLM2-135M.Q8_0.gguf", True),
        ("Qwen/Qwen3-1.7B", "/models/qwen3-1.7b/", True),
        ("google/gemma-2-2b", "~/.cache/hub/models--google--gemma-2-2b/snapshots/0f3a", True),
        ("google/gemma-2-2b", "/data/weights", False),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", True),
    ],
)
def test_names_of_one_model(one, other, same):
    assert same_model(one, other) == same_model(other, one) == same


def test_short_names_on_the_hub():
    assert hub_id("gpt2-small") == "openai-community/gpt2"
    assert hub_id("gemma-2-2b") == "google/gemma-2-2b"
    assert hub_id("pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    assert hub_id("qwen3-1.7b") == "Qwen/Qwen3-1.7B"
    assert hub_id("https://huggingface.co/google/gemma-2b-it") == "google/gemma-2b-it"
    assert hub_id("someone/else") == "someone/else"


@pytest.mark.parametrize(
    ("theirs", "path", "names", "same"),
    [
        ("blocks.9.hook_resid_pre", "model.layers.8", [], True),
        ("blocks.9.hook_resid_pre", "model.layers.9", [], False),
        ("layers.5.mlp", "model.layers.5.mlp", [], True),
        ("layers.5.mlp", "model.layers.5.post_feedforward_layernorm", ["blocks.5.mlp"], False),
        ("blocks.5.hook_mlp_out", "model.layers.5.post_norm", ["blocks.5.mlp"], True),
        ("blocks.5.hook_mlp_out", "model.layers.5.mlp", ["blocks.5.mlp.hook_out"], False),
        ("blocks.5.hook_mlp_out", "model.layers.5.post_norm", [], True),  # an older store
        ("blocks.5.hook_mlp_out", "model.layers.6.mlp", [], False),
        ("blocks.5.hook_resid_post", "model.layers.5.mlp", [], False),
        ("blocks.5.hook_mlp_out", "model.layers.5", [], False),
        ("model.layers.5.output", "model.language_model.layers.5", [], True),
        ("model.encoder.layers.5", "model.decoder.layers.5", [], False),
        ("text_model.encoder.layers.5", "vision_model.encoder.layers.5", [], False),
        ("encoder.layers.5", "vision_model.encoder.layers.5", ["blocks.5"], True),
        ("blocks.5.hook_resid_post", "model.decoder.layers.5", ["blocks.5"], True),
        ("transformer.wte", "transformer.wte", [], True),
        ("transformer.wte", "transformer.h.1", [], False),
    ],
)
def test_names_of_one_hook(theirs, path, names, same):
    spec = dataclasses.replace(SPEC, hook=path)
    assert same_hook(theirs, spec, {"hook": names} if names else {}) == same


SPEC = ActivationSpec(
    "gpt2", None, "h.1", "text", 32, "float16", "flat", "content", None, "texts", 9, 0
)

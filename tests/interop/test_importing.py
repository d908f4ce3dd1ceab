"""An import is an ordinary checkpoint: the verbs take it, with the numbers of the published
files."""

from __future__ import annotations

import json

import pytest
import torch
from command import saekit
from made_dictionaries import D, dictionary_learning, gemma_scope, saelens, sparsify
from made_stores import write_store

from saekit import import_dictionary
from saekit.errors import DataError, UsageError
from saekit.evaluation.table import evaluate
from saekit.intervention.finetune import finetune
from saekit.store.checkpoint import read_checkpoint
from saekit.training.checkpoints import load

SOURCES = {
    "saelens": lambda path: saelens(path, "topk"),
    "sparsify": lambda path: sparsify(path),
    "dictionary_learning": lambda path: dictionary_learning(path, "BatchTopKSAE"),
    "gemma_scope": gemma_scope,
}


@pytest.mark.parametrize("format", SOURCES)
def test_the_weights_are_those_of_the_files(tmp_path, format):
    source = SOURCES[format](tmp_path / "src" / "sae")
    result = import_dictionary(source, tmp_path / "out")
    assert result.format == format and result.d_in == D
    theirs, ours = load(source), load(tmp_path / "out")
    assert type(theirs) is type(ours) and theirs.config == ours.config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


def test_config_says_where_it_comes_from_and_null_for_the_rest(tmp_path):
    import_dictionary(gemma_scope(tmp_path / "layer_3" / "sae"), tmp_path / "out")
    config = read_checkpoint(tmp_path / "out").config
    assert config["published"]["format"] == "gemma_scope" and config["published"]["layer"] == 3
    assert len(config["published"]["files"]["params.npz"]) == 64
    assert config["spec"]["d_in"] == D and config["spec"]["model"] is None
    assert config["content"] is None and config["fingerprint"] is None


def test_evaluate_gives_the_numbers_of_the_published_files(tmp_path):
    source, acts = saelens(tmp_path / "src", "jumprelu"), write_store(tmp_path / "acts")
    import_dictionary(source, tmp_path / "out")
    imported, published, in_memory = evaluate(
        [tmp_path / "out", source, load(source)], acts, any_store=True
    )
    assert imported.metrics["fvu"] == published.metrics["fvu"] == in_memory.metrics["fvu"]
    assert imported.split == published.split == "all", "nothing was held out from its training"


def test_evaluate_of_a_transcoder_needs_its_target(tmp_path):
    source, acts = sparsify(tmp_path / "src", transcode=True), write_store(tmp_path / "acts")
    import_dictionary(source, tmp_path / "out")
    with pytest.raises(UsageError, match="does not say which"):
        evaluate(tmp_path / "out", acts, any_store=True)
    (result,) = evaluate(tmp_path / "out", acts, target_store=acts, any_store=True)
    assert (
        result.metrics["fvu"] == evaluate(load(source), acts, target_store=acts)[0].metrics["fvu"]
    )


def test_the_command_line_imports_evaluates_and_shows(capsys, digits, tmp_path):
    source, out = saelens(tmp_path / "src", width=64), tmp_path / "out"
    status, text, error = saekit(capsys, "import", source, out)
    assert status == 0 and "gpt2 blocks.8.hook_resid_pre" in text, error
    assert saekit(capsys, "import", source, out)[0] == 3
    status, text, error = saekit(capsys, "import", source, out, "--overwrite", "--json")
    assert status == 0 and json.loads(text)["format"] == "saelens", error
    for verb, *rest in (
        ("evaluate",),
        ("inspect", "--out", tmp_path / "page", "--features", "0-2"),
        ("features", "--index", "1"),
        ("compare", "--out", tmp_path / "report"),
    ):
        status, _, error = saekit(capsys, verb, out, "--store", digits, *rest)
        assert status == 3 and "--any-store" in error, "made for GPT-2, not for images of digits"
        status, _, error = saekit(capsys, verb, out, "--store", digits, "--any-store", *rest)
        assert status == 0, error


def test_a_store_of_another_width_is_refused(tmp_path):
    import_dictionary(saelens(tmp_path / "src"), tmp_path / "out")
    acts = write_store(tmp_path / "acts", width=24)
    with pytest.raises(DataError, match=f"takes {D} values per row"):
        evaluate(tmp_path / "out", acts)


def test_nothing_is_written_for_a_dictionary_that_is_refused(tmp_path):
    source = saelens(tmp_path / "src", normalize_activations="covariance_whitening")
    with pytest.raises(DataError, match="covariance_whitening"):
        import_dictionary(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_keeps_what_only_published_dictionaries_compute(tmp_path):
    settings = {"normalize_activations": "layer_norm", "rescale_acts_by_decoder_norm": True}
    source = saelens(tmp_path / "src", "topk", **settings)
    import_dictionary(source, tmp_path / "out")
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    written, opened = load(tmp_path / "out"), load(source)
    assert written.config == opened.config and opened.config.input_norm == "layer_norm"
    assert torch.equal(written(x).x_hat, opened(x).x_hat)


def test_an_import_is_not_finetuned(tmp_path):
    import_dictionary(saelens(tmp_path / "src"), tmp_path / "out")
    with pytest.raises(UsageError, match="is a published dictionary"):
        finetune(tmp_path / "out", tmp_path / "tuned", store=write_store(tmp_path / "acts"))

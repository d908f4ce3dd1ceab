"""A page made from an index says what a page made by encoding says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_codes import planted
from made_language import made_language

import saekit
from saekit.inspection import gather, windows
from saekit.models.sae.dictionary import Dictionary


def records(page) -> list[dict]:
    return [json.loads(line) for line in (page / "features.jsonl").read_text().splitlines()]


def test_figures_of_the_page_are_those_of_the_codes_and_no_row_is_encoded_twice(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    z = rng.integers(1, 80, (1280, 12)) / 8 * (rng.random((1280, 12)) < rng.random(12) / 2)
    words = [f"w{n}" for n in range(20)]
    tokens = torch.from_numpy(rng.integers(0, 20, 1280))
    made = planted(tmp_path, torch.from_numpy(z).float(), tokens, 16, None, words)
    # the store's model is none that could be looked for
    monkeypatch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
    saekit.index(made.run, made.store)
    with monkeypatch.context() as patch:
        patch.setattr(Dictionary, "encode", lambda *_: pytest.fail("a row was encoded"))
        patch.setattr(windows, "_values_at", lambda *_: pytest.fail("windows were encoded"))
        saekit.inspect(made.run, made.store, tmp_path / "page", features="all", jsonl=True)
    found = records(tmp_path / "page")
    assert len(found) == 12
    for record in found:
        own = z[:, record["index"]]
        assert record["active_rows"] == (own > 0).sum() and record["max"] == own.max()
        assert record["density"] == (own > 0).mean()
        assert sum(record["histogram"]["counts"]) == (own > 0).sum()
        for example in record["examples"]:
            context = own[example["example_id"] * 16 :][:16]
            assert context[example["position"]] == example["act"] > 0
            pairs = [[place, value] for place, value in enumerate(context) if value]
            assert example["context_values"] == pairs


def test_a_rounded_index_does_not_change_the_page(tmp_path):
    made = made_language(tmp_path)
    for values in ("float32", "float16"):
        saekit.index(made.run, made.store, values=values, overwrite=values == "float16")
        saekit.inspect(made.run, made.store, tmp_path / values, features="top:20", jsonl=True)
    assert records(tmp_path / "float16") == records(tmp_path / "float32") != []


def test_the_first_page_makes_the_index_and_the_next_reads_it(tmp_path, monkeypatch):
    made, said = made_language(tmp_path), []
    note = lambda progress: said.append(progress.message)
    saekit.inspect(made.run, made.store, tmp_path / "page", features="top:3", progress=note)
    assert sum("is kept for the next time" in text for text in filter(None, said)) == 1
    index = saekit.open_index(made.run, made.store)
    before = {path: path.read_bytes() for path in index.path.iterdir()}
    monkeypatch.setattr(Dictionary, "encode", lambda *_: pytest.fail("a row was encoded"))
    saekit.inspect(made.run, made.store, tmp_path / "page", features="top:5", progress=note)
    assert {path: path.read_bytes() for path in index.path.iterdir()} == before


@pytest.mark.parametrize("case", ["in memory", "read-only", "another index"])
def test_an_index_that_cannot_stay_is_temporary(tmp_path, monkeypatch, case):
    made = made_language(tmp_path)
    checkpoint = made.run
    if case == "in memory":
        checkpoint = saekit.load(made.run)
        checkpoint.origin = None
    if case == "read-only":
        inside = lambda path: made.run in (Path(path), *Path(path).parents)
        monkeypatch.setattr(os, "access", lambda path, _: not inside(path))
    if case == "another index":
        saekit.index(made.run, made.store, values="float16")
    kept = sorted(made.run.rglob("*"))
    monkeypatch.setattr(windows, "_values_at", lambda *_: pytest.fail("windows were encoded"))
    saekit.inspect(checkpoint, made.store, tmp_path / "page", features="top:3", top=2)
    assert sorted(made.run.rglob("*")) == kept


def test_the_size_is_said_before_the_page_is_written(tmp_path):
    made, said = made_language(tmp_path), []
    note = lambda progress: said.append(progress.message)
    page = tmp_path / "page"
    saekit.inspect(made.run, made.store, page, progress=note)
    [text] = [text for text in said if text and "features take about" in text]
    found = float(text.split("about ")[1].split(" MB")[0])
    written = sum(f.stat().st_size for f in page.glob("*/*.js")) / 1e6
    assert written / 2 - 0.1 < found < 2 * written + 0.1

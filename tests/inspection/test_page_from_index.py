"""A page made from an index says what a page made by encoding says."""

from __future__ import annotations

import json

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


def test_every_figure_of_the_page_is_the_same_and_no_row_is_encoded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.integers(1, 80, (1280, 12)) / 8 * (rng.random((1280, 12)) < rng.random(12) / 2)
    words = [f"w{n}" for n in range(20)]
    tokens = torch.from_numpy(rng.integers(0, 20, 1280))
    made = planted(tmp_path, torch.from_numpy(z).float(), tokens, 16, None, words)
    # the store's model is none that could be looked for
    monkeypatch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
    saekit.inspect(made.run, made.store, tmp_path / "before", features="all")
    for scan in (made.run / "scans").iterdir():
        scan.unlink()
    saekit.index(made.run, made.store)
    with monkeypatch.context() as patch:
        patch.setattr(Dictionary, "encode", lambda *_: pytest.fail("a row was encoded"))
        patch.setattr(windows, "_values_at", lambda *_: pytest.fail("windows were encoded"))
        saekit.inspect(made.run, made.store, tmp_path / "after", features="all")
    before, after = records(tmp_path / "before"), records(tmp_path / "after")
    assert len(before) == 12 and before == after
    assert (tmp_path / "before" / "shards" / "000.js").read_bytes() == (
        tmp_path / "after" / "shards" / "000.js"
    ).read_bytes()


def test_a_trained_dictionary_and_one_whose_index_was_rounded(tmp_path):
    made = made_language(tmp_path)
    saekit.inspect(made.run, made.store, tmp_path / "before", features="top:20")
    for values in ("float32", "float16"):
        for scan in (made.run / "scans").iterdir():
            scan.unlink()
        saekit.index(made.run, made.store, values=values, overwrite=values == "float16")
        saekit.inspect(made.run, made.store, tmp_path / values, features="top:20")
        pairs = zip(records(tmp_path / "before"), records(tmp_path / values), strict=True)
        for before, after in pairs:
            # rows of contexts are encoded in other batches, which may change the last bits
            for old, new in zip(before.pop("examples"), after.pop("examples"), strict=True):
                for name in ("values", "context_values"):
                    found, expected = np.array(new.pop(name)), np.array(old.pop(name))
                    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
                assert old == new
            assert before == after

"""Samples of all rows, co-active latents and tokens of a page: each is a figure of the index."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_codes import planted
from test_explorer_browser import at_four_digits, number, text, texts, wait_for

import saekit
from saekit.inspection import gather
from saekit.inspection.existing import ExistingPage

LATENT = 3
ROWS = 1280


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(index, page): 12 latents, of which LATENT fires on w1 and latent 4 one token later."""
    folder = tmp_path_factory.mktemp("beyond")
    rng = np.random.default_rng(0)
    z = rng.integers(1, 80, (ROWS, 12)) / 7 * (rng.random((ROWS, 12)) < rng.random(12) / 3)
    tokens = rng.integers(0, 20, ROWS)
    on = (tokens == 1) | (rng.random(ROWS) < 0.01)
    z[:, LATENT] = on * rng.integers(1, 80, ROWS) / 7
    z[:, 4] = np.roll(on, 1) * rng.integers(1, 80, ROWS) / 7
    words = [f"w{n}" for n in range(20)]
    pair = planted(folder, torch.from_numpy(z).float(), torch.from_numpy(tokens), 16, None, words)
    with pytest.MonkeyPatch.context() as patch:
        # the store's model is none that could be looked for
        patch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
        saekit.inspect(pair.run, pair.store, folder / "page", jsonl=True)
    return saekit.open_index(pair.run, pair.store), folder / "page"


def record_of(page, latent: int) -> dict:
    lines = (page / "features.jsonl").read_text().splitlines()
    return next(r for r in map(json.loads, lines) if r["index"] == latent)


def row_of(example: dict) -> int:
    return example["example_id"] * 16 + example["position"]


def test_samples_are_those_of_the_index_with_the_values_around_them(made):
    index, page = made
    samples = record_of(page, LATENT)["samples"]
    at_random = [s for s in samples if s["group"] == "random"]
    expected = index.random(LATENT, 10)
    assert [row_of(s) for s in at_random] == expected.rows.tolist()
    assert [s["act"] for s in at_random] == expected.values.tolist()
    for number_, group in enumerate(index.quantiles(LATENT, 5, 3)):
        shown = [s for s in samples if s["interval"] == number_]
        assert [row_of(s) for s in shown] == group.rows.tolist() != []
        assert {s["group"] for s in shown} == {"quantile"}
    own = index.activations(LATENT)
    value = dict(zip(own.rows.tolist(), own.values.tolist()))
    for sample in samples:
        first = row_of(sample) - sample["centre"]
        assert sample["values"] == [value.get(first + i, 0.0) for i in range(len(sample["values"]))]


def test_latents_on_the_same_rows_and_on_the_next_token(made):
    index, page = made
    record = record_of(page, LATENT)
    for name, lag in (("coactivation", 0), ("following", 1)):
        assert record[name] == index.coactivation(LATENT, lag).best(8, least=3) != []
    assert record["following"][0]["index"] == 4 and record["following"][0]["jaccard"] > 0.9


def test_tokens_are_counted(made):
    index, page = made
    found, rows = record_of(page, LATENT)["tokens"], index.activations(LATENT).rows
    tokens = index.origin.token
    first = found["tokens"][0]
    assert first["token"] == "w1" and first["rows"] == int((tokens[rows] == tokens[rows][0]).sum())
    share = first["rows"] / len(rows)
    assert first["lift"] == pytest.approx(share / (tokens == tokens[rows][0]).mean())
    assert found["different"] == len(set(tokens[rows].tolist()))
    assert found["position"] == index.origin.position[rows].mean()
    assert found["first"] == int((index.origin.position[rows] == 0).sum())


def test_the_shards_hold_them_at_four_digits(made):
    _, page = made
    (page / "features.jsonl").rename(page / "kept.jsonl")
    try:
        rounded = {r.index: r for r in ExistingPage(page).records()}[LATENT]
    finally:
        (page / "kept.jsonl").rename(page / "features.jsonl")
    record = record_of(page, LATENT)
    assert [s.act for s in rounded.samples] == [at_four_digits(s["act"]) for s in record["samples"]]
    assert [s.group for s in rounded.samples] == [s["group"] for s in record["samples"]]
    assert rounded.tokens["first"] == record["tokens"]["first"]


@pytest.mark.browser
def test_the_page_draws_the_figures_of_the_index(tab, made):
    index, page = made
    tab.open(f"{(page / 'index.html').as_uri()}#/f/{LATENT}")
    wait_for(tab, LATENT)
    at_random = index.random(LATENT, 10).values.tolist()
    assert [number(t) for t in texts(tab, "#samples .act")] == list(map(at_four_digits, at_random))
    for name, group in zip("01234", index.quantiles(LATENT, 5, 3)):
        tab.click(f"[data-sample='{name}']")
        shown = [number(t) for t in texts(tab, "#samples .act")]
        assert shown == list(map(at_four_digits, group.values.tolist()))
    for name, lag in (("coactivation", 0), ("following", 1)):
        expected = index.coactivation(LATENT, lag).best(8, least=3)
        links = [f"#{entry['index']}" for entry in expected]
        assert texts(tab, f"#{name} a") == links
        measures = [at_four_digits(entry["jaccard"]) for entry in expected]
        assert [number(t) for t in texts(tab, f"#{name} .value")] == measures
    first = record_of(page, LATENT)["tokens"]["tokens"][0]
    share = float(f"{100 * first['rows'] / index.active[LATENT]:.3g}")
    assert number(texts(tab, "#tokens .value")[0]) == share
    lift = texts(tab, "#tokens .lift")[0].removeprefix("× ")
    assert float(lift) == float(f"{first['lift']:.3g}")
    assert f"{index.first[LATENT]:,} of {index.active[LATENT]:,} rows" in text(tab, "#tokens")
    assert tab.problems == []


@pytest.mark.browser
@pytest.mark.parametrize("word", ["w17", "W15"])
def test_search_finds_the_tokens_that_latents_are_active_on(tab, made, word):
    _, page = made
    lines = (page / "features.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    holds = lambda tokens: any(word.lower() in token for token in tokens)
    on = {r["index"] for r in records if holds(t["token"] for t in r["tokens"]["tokens"])}
    strongest = {r["index"] for r in records if holds(strongest_tokens(r))}
    labeled = {r["index"] for r in records if r["meaning"] and holds([r["meaning"]["text"]])}
    assert on - strongest - labeled, "the six tokens in the list do not answer"
    tab.open((page / "index.html").as_uri())
    tab.press("/")
    tab.type(word)
    expected = on | strongest | labeled
    shown = "Array.from(document.querySelectorAll('.row'), e => Number(e.dataset.latent))"
    tab.wait(f"{shown}.length === {len(expected)}")
    assert set(tab.evaluate(shown)) == expected
    assert tab.problems == []


def strongest_tokens(record: dict) -> list[str]:
    """The six that the list shows."""
    top = [e for e in record["examples"] if e["group"] == "top"]
    return list(dict.fromkeys(e["tokens"][e["centre"]].strip().casefold() for e in top))[:6]

"""Samples of all rows, co-active latents and tokens of a page: each is a figure of the index."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_codes import planted
from made_index import index_of_entries
from test_explorer_browser import at_four_digits, number, text, texts, wait_for

import saekit
from saekit.inspection import gather
from saekit.inspection.beyond_top import fifths_of, sampled_rows
from saekit.inspection.existing import ExistingPage
from saekit.store.reader import open_store

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


def test_fifths_are_told_by_all_of_their_rows_not_by_those_drawn(made):
    index, page = made
    record = record_of(page, LATENT)
    sizes = np.sort(index.activations(LATENT).values)
    fifths = record["fifths"]
    assert [fifth["rows"] for fifth in fifths] == [len(of) for of in np.array_split(sizes, 5)]
    assert fifths[0]["low"] == sizes[0] and fifths[4]["high"] == sizes[-1]
    at, wider = 0, 0
    for number_, fifth in enumerate(fifths):
        inside = sizes[at : at + fifth["rows"]]
        assert (fifth["low"], fifth["high"]) == (inside.min(), inside.max())
        drawn = [s["act"] for s in record["samples"] if s["interval"] == number_]
        assert all(fifth["low"] <= act <= fifth["high"] for act in drawn)
        wider += (fifth["low"], fifth["high"]) != (min(drawn), max(drawn))
        at += fifth["rows"]
    assert at == record["active_rows"] and wider  # three rows seldom span their fifth


def test_the_median_row_has_as_many_weaker_as_stronger(made):
    index, page = made
    for record in map(json.loads, (page / "features.jsonl").read_text().splitlines()):
        (median,) = [s for s in record["samples"] if s["group"] == "median"]
        own = index.activations(record["index"])
        assert median["act"] == own.values[own.rows == row_of(median)].item()
        sizes, middle = np.sort(own.values), (len(own) - 1) // 2
        assert median["act"] == sizes[middle]
        assert (sizes < median["act"]).sum() <= len(own) / 2 <= (sizes <= median["act"]).sum()


def test_a_latent_of_two_rows_has_fifths_without_rows(made, tmp_path):
    _, page = made
    store = open_store(page.parent / "store")
    row, latent, value = np.array([0, 2]), np.array([1, 1]), np.array([3.0, -1.0])
    index = index_of_entries(tmp_path / "index", store, 2, row, latent, value)
    assert fifths_of(index, 1)[:3] == [
        {"low": 1.0, "high": 1.0, "rows": 1},
        {"low": 3.0, "high": 3.0, "rows": 1},
        {"low": 0.0, "high": 0.0, "rows": 0},
    ]
    assert [(row, act) for row, act, group, _ in sampled_rows(index, 1) if group == "median"] == [
        (2, -1.0)
    ]
    assert sampled_rows(index, 0) == []


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
    all_sizes = np.sort(index.activations(LATENT).values)
    assert range_of(tab, "random") == told_range(all_sizes)
    parts = np.array_split(all_sizes, 5)
    for name, group, sizes in zip("01234", index.quantiles(LATENT, 5, 3), parts):
        tab.click(f"[data-sample='{name}']")
        assert range_of(tab, name) == told_range(sizes)
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


def range_of(tab, name: str) -> tuple[float, ...]:
    """(low, high, rows) of the heading of a group of samples."""
    span, rows = texts(tab, f"[data-sample='{name}'] .band-rows .line")
    ends = span.split(" to ")
    return number(ends[0]), number(ends[-1]), number(rows)


def told_range(sizes: np.ndarray) -> tuple[float, ...]:
    return at_four_digits(sizes.min()), at_four_digits(sizes.max()), len(sizes)


@pytest.mark.browser
def test_a_card_ends_with_the_median_row_and_one_of_the_weakest_fifth(tab, made):
    index, page = made
    tab.open((page / "index.html").as_uri())
    cards = texts(tab, ".card-number")
    assert cards
    for place, latent in enumerate((int(card.removeprefix("#")) for card in cards), start=1):
        card = f"#gallery > li:nth-child({place})"
        own = np.sort(index.activations(latent).values)
        expected = [own[(len(own) - 1) // 2], index.quantiles(latent, 5, 3)[0].values[0]]
        assert texts(tab, f"{card} .card-kind") == ["median row", "weakest fifth"]
        shown = [number(t) for t in texts(tab, f"{card} .card-texts .act")]
        assert shown[-2:] == [float(f"{value:.3g}") for value in expected]
        assert shown[0] == float(f"{own[-1]:.3g}") and len(shown) == 4
    assert "median" in text(tab, ".gallery-header .lead")
    assert tab.problems == []


@pytest.mark.browser
@pytest.mark.parametrize("word", ["w17", "W15"])
def test_search_finds_the_tokens_that_latents_are_active_on(tab, made, word):
    index, page = made
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
    shown = "Array.from(document.querySelectorAll('.row'), e => Number(e.dataset.latent))"
    expected = on | strongest | labeled
    tab.wait(f"{json.dumps(sorted(expected))}.every((j) => {shown}.includes(j))")
    # the best latents of a word are found too, where it is not among their own commonest: they
    # are active on it more often than elsewhere
    at = index.origin.token == int(word[1:])
    assert len(tab.evaluate(shown)) < len(records)
    for latent in set(tab.evaluate(shown)) - expected:
        assert at[index.activations(latent).rows].mean() > at.mean()
    assert tab.problems == []


def strongest_tokens(record: dict) -> list[str]:
    """The six that the list shows."""
    top = [e for e in record["examples"] if e["group"] == "top"]
    return list(dict.fromkeys(e["tokens"][e["centre"]].strip().casefold() for e in top))[:6]

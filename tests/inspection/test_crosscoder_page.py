"""Pages and rankings of crosscoders, against rows that are read store by store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import page_fixture as fixture
import pytest
import tiny
import torch
from crosscoder_fixture import SETTINGS, made_crosscoder, rows_of, tiny_crosscoder
from made_stores import write_store

import saekit
from saekit.errors import DataError
from saekit.inspection.indexed import index_of
from saekit.inspection.opening import open_pair
from saekit.inspection.page import write_page
from saekit.inspection.query import features
from saekit.inspection.relate import hook_shares
from saekit.inspection.run import inspect
from saekit.store.reader import Store
from saekit.types import FeatureRecord


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, Path]:
    return tiny_crosscoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory) -> tuple[Path, list[FeatureRecord]]:
    run, *stores = trained
    out = tmp_path_factory.mktemp("page")
    inspect(run, stores, out, features="all", top=5, jsonl=True)
    return out, [
        FeatureRecord.from_json(json.loads(line))
        for line in (out / "features.jsonl").read_text().splitlines()
    ]


def even_decoder(run: Path, *stores: Path) -> list[torch.Tensor]:
    """The decoder's parts (F,D_p) fp64, each times the scale that brings its hook's training rows
    to a mean square of 1 a value."""
    rows = [rows_of(store, split="train").double() for store in stores]
    scales = [(x.shape[1] / (x - x.mean(0)).square().sum(1).mean()).sqrt() for x in rows]
    parts = saekit.load(run).W_dec.double().split([x.shape[1] for x in rows], 1)
    return [part * scale for part, scale in zip(parts, scales)]


def test_shares_by_hand():
    W_dec = torch.tensor(
        [[3.0, 4.0, 0.0, 5.0], [0.0, 0.0, 0.0, 2.0], [6.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    )
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(hook_shares(W_dec, (2, 1, 1)), expected)


def test_every_record_has_the_shares_of_its_hooks_where_no_hook_is_larger_than_another(
    trained, page
):
    run, *stores = trained
    norms = torch.stack([part.norm(dim=1) for part in even_decoder(run, *stores)], 1)
    shares = norms / norms.sum(1, keepdim=True)
    raw = torch.stack(
        [part.norm(dim=1) for part in saekit.load(run).W_dec.double().split(32, 1)], 1
    )
    for record in page[1]:
        assert list(record.hook_shares) == ["transformer.h.1", "model.layers.2"]
        assert list(record.hook_shares.values()) == pytest.approx(
            shares[record.index].tolist(), rel=1e-4
        )
    assert ((raw / raw.sum(1, keepdim=True) - shares).abs() > 0.02).any(), (
        "raw units say something else, or this shows nothing"
    )


def test_neighbours_are_those_of_the_even_decoder(trained, page):
    unit = torch.nn.functional.normalize(torch.cat(even_decoder(*trained), 1), dim=1)
    for record in page[1][:10]:
        first = record.neighbours[0]
        assert first["cosine"] == pytest.approx(
            float(unit[record.index] @ unit[first["index"]]), abs=1e-4
        )


def test_examples_are_tokens_of_the_first_store_with_the_code_of_all(trained, page):
    run, *stores = trained
    z = saekit.load(run).encode(rows_of(*stores)).to_dense()
    store = Store(stores[0])
    example, position = store.column("example_id"), store.column("position")
    assert len(page[1]) > 20
    for record in page[1]:
        assert record.active_rows == int((z[:, record.index] > 0).sum())
        for e in record.examples:
            row = int(np.flatnonzero((example == e.example_id) & (position == e.position))[0])
            assert (
                e.act
                == pytest.approx(float(z[row, record.index]), rel=1e-4)
                == pytest.approx(e.values[e.centre], rel=1e-4)
            )
            ids = store.example_at(row)[0].tokens
            assert e.tokens[e.centre].strip() == (tiny.SPECIALS + tiny.WORDS)[ids[e.position]]


def test_the_page_says_what_it_shows(trained, page):
    stores = trained[1:]
    settings = json.loads((page[0] / "inspect.json").read_text())
    assert settings["store"] == [str(store) for store in stores]
    assert all(record.logits is None for record in page[1]), (
        "no one set of output tokens for two hooks"
    )


def test_a_text_is_read_by_every_model_of_a_crosscoder(trained):
    run, *stores = trained
    documents = (stores[0].parent / "words.txt").read_text().split("\n\n")
    # one context, special tokens included
    number = next(i for i, text in enumerate(documents) if 8 < len(text.split()) < 14)
    rows = rows_of(*stores)[Store(stores[0]).column("doc_id") == number]
    assert len(rows) == len(documents[number].split())
    best = saekit.load(run).encode(rows).to_dense().amax(0)
    order = best.argsort(descending=True)[:5].tolist()
    found = features(run, stores, text=documents[number], sort="act", top=5)
    assert [row.index for row in found] == order
    assert [row.act for row in found] == pytest.approx(best[order].tolist(), rel=1e-3)


def test_a_latent_is_described_on_all_stores(trained, page):
    run, *stores = trained
    record = max(page[1], key=lambda each: each.active_rows)
    [row] = features(run, stores, index=record.index)
    assert (row.max, row.density) == (pytest.approx(record.max), pytest.approx(record.density))


def test_an_index_is_kept_for_these_stores_together(tmp_path):
    run, x, y = made_crosscoder(tmp_path)
    model, seen = saekit.load(run), []
    index_of(open_pair(run, [x, y]), seen.append)
    first = len(seen)
    index_of(open_pair(run, [x, y]), seen.append)
    assert len(seen) == first > 0, "no row is encoded again"
    other = write_store(tmp_path / "other", width=6, hook="blocks.1")
    index = index_of(open_pair(run, [x, other], any_store=True), seen.append)
    assert len(seen) == 2 * first, "the first store by itself does not make an index"
    z = model.encode(rows_of(x, other)).to_dense()
    assert index.active.tolist() == (z > 0).sum(0).tolist()


@pytest.mark.parametrize("verb", ["inspect", "features"])
def test_stores_that_do_not_fit_are_refused(trained, tmp_path, verb):
    run, x, y = trained
    ask = {
        "inspect": lambda *given: inspect(*given, tmp_path / "page"),
        "features": lambda *given: features(*given, index=0),
    }[verb]
    with pytest.raises(DataError, match="which reads 2 stores") as refused:
        ask(run, x)
    assert refused.value.hint == f'store=("{x}", "{y}")'
    with pytest.raises(DataError, match="in another order"):
        ask(run, [y, x])
    saekit.train(x, tmp_path / "plain", **SETTINGS | {"rows": 1000})
    with pytest.raises(DataError, match="reads the rows of one store"):
        ask(tmp_path / "plain", [x, y])
    assert not (tmp_path / "page").exists()


@pytest.mark.browser
def test_the_page_shows_the_shares_of_a_crosscoder_alone(tab, tmp_path):
    plain, cross = fixture.text_records([1, 2], 256)
    cross.hook_shares = {"blocks.3": 0.25, "<b>6</b>": 0.75}
    write_page([plain, cross], fixture.text_meta(256, [1, 2]), {}, tmp_path)
    shown = "document.querySelector('#hook-shares')?.textContent ?? null"
    address = (tmp_path / "index.html").as_uri()
    tab.open(f"{address}#/f/2")
    assert tab.evaluate(shown) == "blocks.3 25.0 % · <b>6</b> 75.0 %"
    tab.open(f"{address}#/f/1")
    assert tab.evaluate(shown) is None and tab.problems == []

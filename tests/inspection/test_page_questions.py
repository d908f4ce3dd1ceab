"""token:, label: and near: in the search box of a page with and without a lookup."""

from __future__ import annotations

import dataclasses

import numpy as np
import page_fixture as fixture
import pytest
from test_explorer_browser import Site, text, texts
from test_filters_browser import choose
from test_lookup_browser import ask

from saekit.inspection.lookup import Lookup
from saekit.inspection.page import write_page
from saekit.inspection.word_pairs import WordTable

pytestmark = pytest.mark.browser
LATENTS, PAGED = 200, 12
ON = {" file": [2, 5, 150], "file": [2], "File": [0, 1]}


def lookup() -> Lookup:
    pairs = [(word, latent) for word, latents in enumerate(ON.values()) for latent in latents]
    word_N, latent_N = np.array(pairs).T
    both_N = 40 - np.arange(len(pairs))  # the earlier ones tell more
    table = WordTable(
        list(ON), np.full(3, 50), 10_000, np.full(LATENTS, 100), latent_N, word_N, both_N
    )
    return Lookup(table, None, None, None, 8)


def made_site(out, lookup: Lookup | None) -> Site:
    kinds = (None, "token", "label")
    meaning = lambda kind: kind and {"kind": kind, "text": "Cat", "count": 9, "of": 20}
    meta = dataclasses.replace(
        fixture.text_meta(LATENTS, list(range(PAGED))),
        meanings=[meaning(kinds[j % 3]) for j in range(LATENTS)],
        max=[1.0] * LATENTS,
    )
    records = list(fixture.text_records(range(PAGED), LATENTS))
    for record in records:
        record.examples[0].label = "Dog" if record.index < 3 else None
    write_page(records, meta, {}, out, lookup=lookup)
    return Site(out)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    return made_site(tmp_path_factory.mktemp("questions"), lookup())


def test_a_token_counts_with_its_blank(tab, site):
    tab.open(site.url())
    assert ask(tab, "token: file", "“·file”") == [2, 5, 150]
    assert ask(tab, " file", "“·file”") == [2, 5, 150]
    assert ask(tab, '"file"', "“file”") == [2]
    assert ask(tab, "token:File", "“File”") == [0, 1]
    assert ask(tab, "token:nowhere", "no token is “nowhere”") == []
    # words are searched whatever their case
    choose(tab, "search", "file")
    tab.wait("document.getElementById('found').textContent === '5 of 200 latents'")
    # a question is part of the address
    choose(tab, "search", "token: file")
    address = tab.evaluate("location.href")
    tab.open(site.url(3))
    tab.open(address)
    tab.wait("document.getElementById('found').textContent.startsWith('3 of 200')")
    assert "saekit features --token" in tab.evaluate(
        "document.getElementById('found').dataset.about"
    )


def test_what_is_near_comes_in_the_order_of_its_record(tab, site):
    tab.open(site.url())
    record = site.records[4]
    expected = list(
        dict.fromkeys(
            entry["index"]
            for entry in [*record.neighbours, *record.coactivation, *record.following]
        )
    )
    shown = ask(tab, "near:#4", "near #4")
    assert expected and shown == expected
    first = f"{record.neighbours[0]['cosine']:#.3g} cosine"
    assert texts(tab, "#rows .density")[0].endswith(first)
    assert ask(tab, "near:150", "saekit features --near 150 does") == []
    assert ask(tab, "near:cat", "takes the number of a latent") == []


def test_without_a_lookup_labels_are_those_of_the_examples(tab, tmp_path):
    site = made_site(tmp_path, None)
    tab.open(site.url())
    assert sorted(ask(tab, "label:dog", f"of the {PAGED} with a page")) == [0, 1, 2]
    assert ask(tab, "token: file", "a dense code has no tokens") == []
    assert text(tab, "#found").startswith("0 of 200") and tab.problems == []

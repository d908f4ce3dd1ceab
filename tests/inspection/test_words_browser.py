"""Plain words in the search box, own names in the list, and filters that leave nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import page_fixture as fixture
import pytest
from test_explorer_browser import Site, text, texts, wait_for
from test_filters_browser import choose
from test_gallery_browser import read_names
from test_lookup_browser import listed

from saekit.inspection.lookup import Lookup
from saekit.inspection.page import write_page
from saekit.inspection.word_pairs import WordTable

pytestmark = pytest.mark.browser
LATENTS, PAGED = 200, 12
# token -> [(latent, rows of 100 that are on it)]
TOKENS = {" zebra": [(150, 20), (151, 60)], "zebras": [(152, 90)], "azebra": [(153, 99)]}


def table() -> WordTable:
    pairs = [
        (word, latent, both)
        for word, entries in enumerate(TOKENS.values())
        for latent, both in entries
    ]
    word_N, latent_N, both_N = np.array(pairs).T
    total_W = np.full(len(TOKENS), 200)
    active_F = np.full(LATENTS, 100)
    return WordTable(list(TOKENS), total_W, 10_000, active_F, latent_N, word_N, both_N)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    meaning = {"kind": "token", "text": " zebra", "count": 9, "of": 20, "lift": 9.0}
    meta = dataclasses.replace(
        fixture.text_meta(LATENTS, range(PAGED)),
        density=[1e-3] * LATENTS,
        max=[1.0] * LATENTS,
        score=[0.5] * LATENTS,
        meanings=[meaning if j in (5, 160) else None for j in range(LATENTS)],
        identity="words",
    )
    out = tmp_path_factory.mktemp("words")
    records = list(fixture.text_records(range(PAGED), LATENTS))
    write_page(records, meta, {}, out, lookup=Lookup(table(), None, None, None, 8))
    return Site(out)


def test_whole_words_come_first_then_beginnings_then_the_rest(tab, site):
    tab.open(site.url())
    choose(tab, "search", "zebra")
    tab.wait("document.getElementById('found').textContent.startsWith('6 of')")
    # of whole words the larger share first: 60 of 100 rows, 9 of 20 examples, 20 of 100
    assert listed(tab) == [151, 5, 160, 150, 152, 153]
    choose(tab, "sort", "index")  # another order holds within each kind of match
    assert listed(tab) == [5, 150, 151, 160, 152, 153]
    choose(tab, "search", "15")
    assert listed(tab) == [15, *range(150, 160), 4]  # 4 is active on 14159


def test_a_row_with_an_own_name_keeps_what_it_had(tab, site):
    tab.open(site.url(4))
    tab.evaluate("localStorage.clear()")
    tab.open(site.url(4))
    choose(tab, "sort", "index")
    own = {j: f".row[data-latent='{j}'] .preview > *" for j in (4, 5)}
    before = {j: texts(tab, own[j]) for j in own}
    assert before[4] and before[5][0].startswith("on ·zebra")
    for j in own:
        tab.evaluate(f"location.hash = '#/f/{j}'")
        wait_for(tab, j)
        tab.evaluate("document.getElementById('own-name').focus()")
        tab.type("my name")
        tab.evaluate("document.getElementById('own-name').blur()")
        label = [t for t in before[j] if t == site.records[j].label]
        rest = [t for t in before[j] if t not in label]
        assert texts(tab, own[j]) == ["my name", *rest]
    tab.evaluate("localStorage.clear()")


def test_notes_are_found_as_names_are(tab, site):
    tab.open(site.url(4))
    tab.evaluate("localStorage.clear()")
    tab.open(site.url(4))
    tab.evaluate("document.getElementById('note').focus()")
    tab.type("Maybe about okapis")
    tab.evaluate("document.getElementById('note').blur()")
    choose(tab, "search", "okapi")
    assert listed(tab) == [4]
    tab.evaluate("localStorage.clear()")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{names", "it is not JSON ("),
        ("[1, 2]", "it has no list of names"),
        ('{"names": [{"index": 1, "name": "a"}, {"index": "x"}]}', "entry 2 of its names"),
        ('{"names": [], "notes": [{"index": 3}]}', "entry 1 of its notes"),
        ('{"names": []}', "does not say which checkpoint"),
        ('{"names": [], "identity": "words-0"}', "of this checkpoint, but of another store"),
        ('{"names": [], "identity": "b-0", "checkpoint": "gated"}', "another checkpoint, “gated”"),
    ],
)
def test_a_file_that_holds_no_names_of_this_page_says_why(tab, site, content, says):
    tab.open(site.url(4))
    read_names(tab, content)
    tab.wait("document.getElementById('names-message').textContent")
    message = text(tab, "#names-message")
    assert message.startswith("Not read: ") and says in message and tab.problems == []


def test_an_empty_list_says_what_each_filter_leaves_out(tab, site):
    tab.open(site.url())
    assert tab.evaluate("document.getElementById('nothing').hidden")
    choose(tab, "search", "zebra")
    choose(tab, "least-score", "0.9")
    tab.click("#only-paged")
    assert text(tab, "#found").startswith("0 of 200")
    lines = texts(tab, "#nothing li > span")
    assert lines == [
        f"with page leaves out {LATENTS - PAGED} of 200; without it there is still none",
        "score from 0.9 leaves out 200 of 200; without it 1 would be here",
        "the search leaves out 194 of 200; without it there is still none",
    ]
    tab.evaluate("document.querySelectorAll('#nothing button')[1].click()")
    assert listed(tab) == [5] and tab.evaluate("document.getElementById('nothing').hidden")
    assert "score" not in tab.evaluate("location.hash")
    choose(tab, "density-low", "-0.5")
    assert any(line.startswith("density from 32 % to 100 %") for line in texts(tab, "#nothing b"))
    assert json.dumps(tab.problems) == "[]"

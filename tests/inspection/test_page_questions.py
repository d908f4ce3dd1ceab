"""token:, label: and near: in the search box of the page on disk."""

from __future__ import annotations

import dataclasses
import json

import page_fixture as fixture
import pytest
from test_explorer_browser import Site, text, texts
from test_filters_browser import choose

from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser
LATENTS, PAGED = 200, 12


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    records = list(fixture.text_records(range(PAGED), LATENTS))
    for record in records:
        record.tokens = {
            "tokens": [
                {"token": token, "rows": 5, "lift": 9.0}
                for token in ([" file", "file"] if record.index in (2, 5) else ["File", " x"])
            ],
            "different": 2, "position": 3.0, "first": 0,
        }  # fmt: skip
    kinds = (None, "token", "label")
    meaning = lambda kind: kind and {"kind": kind, "text": "Cat", "count": 9, "of": 20}
    meta = dataclasses.replace(
        fixture.text_meta(LATENTS, list(range(PAGED))),
        meanings=[meaning(kinds[j % 3]) for j in range(LATENTS)],
    )
    out = tmp_path_factory.mktemp("questions")
    write_page(records, meta, {}, out)
    return Site(out)


def ask(tab, question: str, note: str) -> list[int]:
    """The latents that the list shows."""
    choose(tab, "search", question)
    tab.wait(f"document.getElementById('found').textContent.includes({json.dumps(note)})")
    return [int(number) for number in texts(tab, "#rows .number")]


def test_a_token_counts_with_its_blank(tab, site):
    tab.open(site.url())
    assert sorted(ask(tab, "token: file", "“·file”")) == [2, 5]
    assert sorted(ask(tab, " file", "“·file”")) == [2, 5]
    assert sorted(ask(tab, '"file"', "“file”")) == [2, 5]
    others = ask(tab, "token:File", "“File”")
    assert sorted(others) == [j for j in range(PAGED) if j not in (2, 5)]
    assert ask(tab, "token:nowhere", f"0 of the {PAGED} latents with a page") == []
    # words are searched as before, whatever their case
    choose(tab, "search", "file")
    tab.wait(f"document.getElementById('found').textContent === '{PAGED} of 200 latents'")
    # a question is part of the address
    choose(tab, "search", "token: file")
    address = tab.evaluate("location.href")
    tab.open(site.url(3))
    tab.open(address)
    tab.wait("document.getElementById('found').textContent.startsWith('2 of the')")
    assert text(tab, "#found").endswith("saekit features --token asks all.")


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
    assert ask(tab, "near:150", "no page to say") == []
    assert ask(tab, "near:cat", "takes the number of a latent") == []


def test_a_label_is_one_of_the_data_not_a_token(tab, site):
    tab.open(site.url())
    ask(tab, "label:cat", "with the label “cat”")
    named = {j for j in range(LATENTS) if j % 3 == 2}
    assert text(tab, "#found").startswith(f"{len(named)} of {LATENTS} latents")
    assert text(tab, "#found").endswith("saekit features --label asks all.")

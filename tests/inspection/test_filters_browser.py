"""Filters of the list that combine, their address, favorites and notes, in a browser."""

from __future__ import annotations

import dataclasses
import json

import page_fixture as fixture
import pytest
from test_explorer_browser import Site, text, texts, wait_for
from test_gallery_browser import read_names

from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser
LATENTS, PAGED = 200, 12
STARTS = [1, 3, 150]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    records = list(fixture.text_records(range(PAGED), LATENTS))
    kinds = (None, "token", "next", "label")
    meaning = lambda kind: kind and {"kind": kind, "text": "word", "count": 9, "of": 20}
    meta = dataclasses.replace(
        fixture.text_meta(LATENTS, range(PAGED)),
        score=[j / LATENTS for j in range(LATENTS)],
        meanings=[meaning(kinds[j % 4]) for j in range(LATENTS)],
        starts=STARTS,
        identity="0123-4567",
    )
    out = tmp_path_factory.mktemp("filters")
    write_page(records, meta, {}, out)
    return Site(out)


def choose(tab, field: str, value: str) -> None:
    tab.evaluate(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input',"
        f" {{bubbles: true}})); }})(document.getElementById({json.dumps(field)}))"
    )


def found(tab) -> str:
    return text(tab, "#found")


def test_filters_combine_and_stand_in_the_address(tab, site):
    tab.open(site.url(5))
    choose(tab, "label-kind", "next")
    of_kind = {j for j in range(LATENTS) if j % 4 == 2}
    assert found(tab) == f"{len(of_kind)} of {LATENTS} latents"
    choose(tab, "least-score", "0.5")
    assert found(tab) == f"{len({j for j in of_kind if j >= 100})} of {LATENTS} latents"
    choose(tab, "label-kind", "label")
    kept = {j for j in range(100, LATENTS) if j % 4 == 3}
    tab.click("#not-bos")
    assert found(tab) == f"{len(kept - set(STARTS))} of {LATENTS} latents"
    address = tab.evaluate("location.href")
    assert address.endswith("#/f/5?label=label&score=0.5&bos=1")
    # the address by itself gives the feature and the filters
    tab.open(address)
    wait_for(tab, 5)
    assert found(tab) == f"{len(kept - set(STARTS))} of {LATENTS} latents"
    tab.evaluate("document.getElementById('list').scrollTop = 0")
    assert {int(t) for t in texts(tab, ".row .number")} <= kept - set(STARTS)
    # a key within the page keeps them
    tab.evaluate("document.activeElement.blur()")
    tab.press("g")
    tab.wait("location.hash.startsWith('#/?')")
    assert found(tab) == f"{len(kept - set(STARTS))} of {LATENTS} latents"
    tab.open(site.url(5))
    assert "with a page" in found(tab) and tab.problems == []
    # as a person types it
    tab.evaluate("location.hash = '#9'")
    wait_for(tab, 9)


def test_latents_that_fire_at_the_beginning_are_left_out(tab, site):
    tab.open(site.url())
    tab.click("#not-bos")
    assert found(tab) == f"{LATENTS - len(STARTS)} of {LATENTS} latents"


def test_an_address_with_unknown_filters_shows_the_list(tab, site):
    tab.open(site.url(5) + "?label=nonsense&sort=x&other=1")
    wait_for(tab, 5)
    assert "with a page" in found(tab) and tab.problems == []


def test_favorites_and_notes_are_kept_and_saved(tab, site):
    tab.open(site.url(5))
    tab.evaluate("localStorage.clear()")
    tab.open(site.url(5))
    tab.click("#favorite")
    tab.click("#note")
    tab.type("fires twice & <b>once</b>")
    tab.evaluate("document.getElementById('note').blur()")
    tab.open(site.url(5))
    assert tab.evaluate("document.getElementById('note').value") == "fires twice & <b>once</b>"
    assert (
        tab.evaluate("document.getElementById('favorite').getAttribute('aria-pressed')") == "true"
    )
    tab.click("#only-favorites")
    assert found(tab) == f"1 of {LATENTS} latents"
    assert texts(tab, ".row .number") == ["5 ★"]
    tab.evaluate("URL.createObjectURL = blob => { window.saved = blob; return 'data:,'; };")
    tab.evaluate("HTMLAnchorElement.prototype.click = function () {}")
    tab.click("#names-button")
    assert text(tab, "#names-count") == "0 names, 1 note, 1 favorite"
    tab.click("#names-save")
    saved = json.loads(tab.evaluate("window.saved.text()"))
    assert saved["favorites"] == [5]
    assert saved["notes"] == [{"index": 5, "note": "fires twice & <b>once</b>"}]
    # read in another browser
    tab.evaluate("localStorage.clear()")
    tab.open(site.url(5))
    assert tab.evaluate("document.getElementById('note').value") == ""
    read_names(tab, saved)
    tab.wait("document.getElementById('names-message').textContent")
    assert tab.evaluate("document.getElementById('note').value") == "fires twice & <b>once</b>"
    tab.evaluate("localStorage.clear()")
    assert tab.problems == []

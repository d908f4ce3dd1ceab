"""What the keys do in the search box, the list and the map, and what the address holds, in a
browser."""

from __future__ import annotations

import pytest
from test_explorer_browser import text, wait_for
from test_filters_browser import choose, found
from test_lookup_browser import listed
from test_map_browser import mapped
from test_words_browser import LATENTS

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return mapped(tmp_path_factory.mktemp("keys"), LATENTS)


def focused(tab) -> str:
    return tab.evaluate("document.activeElement.id || document.activeElement.dataset.latent || ''")


def search(tab, words: str) -> list[int]:
    """The latents that the list shows."""
    tab.press("/")
    tab.type(words)
    return listed(tab)


def test_escape_clears_the_search_box_and_the_list(tab, site):
    tab.open(site.url())
    every = found(tab)
    search(tab, "no such word")
    assert found(tab).startswith("0 of") and "q=" in tab.evaluate("location.hash")
    tab.press("Escape")
    assert tab.evaluate("document.getElementById('search').value") == "" and found(tab) == every
    assert focused(tab) == "" and "q=" not in tab.evaluate("location.hash")
    assert tab.problems == []


def test_the_arrows_go_from_the_box_to_the_list_and_back(tab, site):
    tab.open(site.url())
    shown = search(tab, "15")
    assert len(shown) > 3
    tab.press("ArrowDown")
    assert focused(tab) == str(shown[0])
    tab.press("ArrowDown")
    wait_for(tab, shown[1])
    tab.press("ArrowUp")
    wait_for(tab, shown[0])
    assert focused(tab) == str(shown[0])
    tab.press("ArrowUp")
    assert focused(tab) == "search" and tab.problems == []


def test_enter_opens_the_first_hit_and_leaves_the_box(tab, site):
    tab.open(site.url())
    first = search(tab, "15")[0]
    tab.press("Enter")
    wait_for(tab, first)
    assert tab.evaluate("location.hash") == f"#/f/{first}?q=15" and focused(tab) == "feature"
    tab.press("g")  # a key of the page, not of the box
    tab.wait("document.getElementById('gallery-title')")
    assert tab.evaluate("document.getElementById('search').value") == "15"
    assert tab.evaluate("location.hash") == "#/?q=15" and tab.problems == []


def test_filters_stay_in_the_address_of_links_and_go_with_it(tab, site):
    tab.open(site.url())
    every = found(tab)
    shown = search(tab, "15")
    tab.click(f"[data-latent='{shown[1]}']")
    wait_for(tab, shown[1])
    assert tab.evaluate("location.hash") == f"#/f/{shown[1]}?q=15"
    tab.open(tab.evaluate("location.href"))
    wait_for(tab, shown[1])
    assert listed(tab) == shown
    # an address without filters, as a person types it, has none
    tab.evaluate("location.hash = '#/'")
    tab.wait("document.getElementById('gallery-title')")
    assert found(tab) == every and tab.evaluate("document.getElementById('search').value") == ""
    tab.evaluate("history.back()")
    wait_for(tab, shown[1])
    assert listed(tab) == shown and tab.problems == []


@pytest.mark.parametrize("way", ["key", "click", "address"])
def test_the_map_has_the_arrows_at_once(tab, site, way):
    tab.open(site.url(3) if way != "address" else site.url() + "#/map")
    if way == "click":
        tab.click("#map-button")
    elif way == "key":
        tab.press("m")
    tab.wait("document.getElementById('map')")
    tab.wait("document.activeElement.id === 'map'")
    tab.press("ArrowRight")
    tab.wait("document.getElementById('map-open')")
    # and those pressed elsewhere on the page go there too
    tab.evaluate("document.activeElement.blur()")
    tab.press("ArrowLeft")
    assert focused(tab) == "map" and tab.evaluate("location.hash").startswith("#/map")
    assert tab.problems == []


def test_the_map_leaves_the_search_box_its_focus(tab, site):
    tab.open(site.url())
    tab.press("/")
    tab.evaluate("location.hash = '#/map'")
    tab.wait("document.getElementById('map-shown')?.textContent")
    assert focused(tab) == "search"


@pytest.mark.parametrize("address", ["#/nonsense", "#/beside", "#/map2", "#/f", "#words"])
def test_an_address_that_is_not_there_is_said(tab, site, address):
    tab.open(site.url() + address)
    expected = "no other dictionary" if address == "#/beside" else f"“{address}”"
    assert expected in text(tab, "#feature") and tab.problems == []
    assert not tab.evaluate("document.getElementById('gallery')")
    choose(tab, "search", "15")
    tab.click("#feature a")
    tab.wait("document.getElementById('gallery')")
    assert tab.evaluate("location.hash") == "#/?q=15"

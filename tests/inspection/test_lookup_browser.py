"""token:, label: and near: for all latents of the dictionary, with and without a page, in a
browser: a real page of three latents of sixty answers as `saekit features` does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_codes import planted
from safetensors.torch import load_file, save_file
from test_explorer_browser import Site, assert_quiet, text, texts, wait_for
from test_filters_browser import choose

import saekit

pytestmark = pytest.mark.browser
ROWS, LATENTS, CONTEXT = 960, 60, 16
WORDS = [f" w{n}" for n in range(24)]
DEAD = LATENTS - 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, store, site)"""
    folder = tmp_path_factory.mktemp("lookup")
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, len(WORDS), ROWS)
    z = rng.integers(1, 80, (ROWS, LATENTS)) / 8 * (rng.random((ROWS, LATENTS)) < 0.04)
    for j in range(20):
        z[:, j] += (tokens == j) * (rng.random(ROWS) < 0.7)
    z[:, DEAD] = 0
    labels = [("animal-bird", "animal-bug", "food")[n // 2 % 3] for n in range(ROWS // CONTEXT)]
    pair = planted(
        folder, torch.from_numpy(z).float(), torch.from_numpy(tokens), CONTEXT, labels, WORDS
    )
    weights = load_file(pair.run / "model.safetensors")
    weights["W_dec"] = torch.nn.functional.normalize(
        torch.randn(LATENTS, LATENTS, generator=torch.Generator().manual_seed(0)), dim=1
    )
    save_file(weights, pair.run / "model.safetensors")
    saekit.index(pair.run, pair.store)
    saekit.inspect(pair.run, pair.store, folder / "page", features="20-22")
    return pair.run, pair.store, Site(folder / "page")


def listed(tab) -> list[int]:
    rows = "Array.from(document.querySelectorAll('#rows .row'), row => Number(row.dataset.latent))"
    return tab.evaluate(rows)


def ask(tab, question: str, note: str) -> list[int]:
    """The latents that the list shows."""
    choose(tab, "search", question)
    tab.wait(f"document.getElementById('found').textContent.includes({json.dumps(note)})")
    return listed(tab)


def test_tokens_labels_and_near_ones_of_all_latents_are_in_the_order_of_features(tab, made):
    run, store, site = made
    tab.open(site.url())
    rows = saekit.features(run, store, token=" w3", top=20)
    shown = ask(tab, "token: w3", "“·w3”")
    first = min(len(shown), len(rows))  # rows in view
    assert first >= 8 and shown[:first] == [row.index for row in rows][:first]
    assert shown[0] == 3 and set(shown) - {20, 21, 22}
    active = saekit.open_index(run, store).active
    total = int(text(tab, "#found").split("(")[1].split(" ")[0])
    share = rows[0].figures["share"] * total / active[3]
    assert texts(tab, "#rows .density")[0] == f"{100 * share:.2g} %"
    # one label, and those that have the word in them
    rows = saekit.features(run, store, label="food", top=50)
    shown = ask(tab, "label: food", "the label “food”")
    assert shown[: len(rows)] == [row.index for row in rows][: len(shown)] and shown
    ask(tab, "label: animals", "the label “animal-bird”, “animal-bug”")
    rows = saekit.features(run, store, near=7, top=5)
    assert ask(tab, "near: 7", "near #7") == [row.index for row in rows]
    assert_quiet(tab, site)


def test_what_is_not_there_is_said(tab, made):
    site = made[2]
    tab.open(site.url())
    assert ask(tab, "token:w3", "no token is “w3”; blanks and capitals count: “·w3”") == []
    assert ask(tab, "label:plants", "no label is “plants”") == []
    assert ask(tab, f"near:{DEAD}", f"#{DEAD} is never active") == []
    assert ask(tab, "text: some words", "saekit features --text") == []


def test_a_latent_without_a_page_says_so_and_what_is_known_of_it(tab, made):
    run, store, site = made
    tab.open(site.url())
    tab.wait("document.querySelectorAll('.row.pageless .chip').length")
    row = tab.evaluate("document.querySelector('.row.pageless').textContent")
    assert "no page" in row and "w" in row
    tab.evaluate("location.hash = '#/f/5'")
    wait_for(tab, 5)
    assert text(tab, "#hint-title").startswith("No page")
    assert text(tab, "#hint code").endswith("--features 5")
    assert text(tab, ".command-folder").startswith("To be run in the folder “")
    tab.wait("document.querySelector('#known-tokens') && document.querySelector('#related')")
    index = saekit.open_index(run, store)
    share = (index.origin.token[index.activations(5).rows] == 5).mean()
    assert texts(tab, "#known-tokens .chip")[0] == "·w5"
    assert texts(tab, "#known-tokens .value")[0] == f"{100 * share:#.3g} %"
    near = [f"#{row.index}" for row in saekit.features(run, store, near=5, top=5)]
    assert texts(tab, "#neighbours .number, #neighbours a") == near
    assert texts(tab, "#known-labels .data-label")
    # rows are drawn anew when tokens arrive: who is on one stays there
    tab.evaluate("document.querySelector('.row.pageless').focus()")
    at = tab.evaluate("document.activeElement.dataset.latent")
    choose(tab, "least-score", "0")
    assert at and tab.evaluate("document.activeElement.dataset.latent") == at
    assert_quiet(tab, site)


def test_in_print_the_command_is_whole_and_buttons_are_not_there(tab, made):
    site = made[2]
    tab.open(site.url(5))
    tab.view(375, 667)
    try:
        tab.call("Emulation.setEmulatedMedia", media="print")
        tab.wait("document.querySelector('#hint pre')")
        overflow = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('#hint pre'))"
        assert tab.evaluate(overflow) == 0
        shown = "[...document.querySelectorAll('.button')].filter(e => e.checkVisibility()).length"
        assert tab.evaluate(shown) == 0
        tab.call("Emulation.setEmulatedMedia", media="screen")
        assert tab.evaluate(overflow) > 0 and tab.evaluate(shown) > 0
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
        tab.view(1400, 900)


def test_latents_with_a_page_come_first_where_that_is_wanted(tab, made):
    site = made[2]
    tab.open(site.url())
    choose(tab, "sort", "index")
    tab.click("#paged-first")
    first = listed(tab)
    assert first[:6] == [20, 21, 22, 0, 1, 2]
    assert tab.evaluate("location.hash").endswith("first=1")

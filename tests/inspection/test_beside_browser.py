"""Another dictionary beside this one, in a browser: lists of matches, two latents side by side, the
figures of both as a whole, and the filter of latents without a partner."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import page_fixture as fixture
import pytest
import torch
from test_explorer_browser import (
    Site,
    assert_quiet,
    at_four_digits,
    number,
    text,
    texts,
    wait_for,
)

from saekit.inspection.beside import matches_of
from saekit.inspection.beside_match import PARTNER, nearest_directions, summary
from saekit.inspection.beside_page import LATENTS_EACH_FILE, Beside, Match
from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser
LATENTS, OTHERS, PAGED, WIDTH = 700, 90, [2, 7, 30, 601], 24
TRAINED = {
    "kind": "topk k=32", "latents": LATENTS, "width": WIDTH, "seed": 0, "order": 0, "rows": 64_000,
    "content": "0123456789abcdef", "here": True,
}  # fmt: skip
OF_OTHER = {"kind": "jumprelu", "latents": OTHERS}


@dataclasses.dataclass(frozen=True)
class PairedSite(Site):
    beside: Beside
    images: bool


def made_beside(out: Path, images: bool, of_other: dict[str, Any] | None = None) -> PairedSite:
    """Directions of which half agree; figures of rows made up, but for one match that has none."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(LATENTS, WIDTH, generator=generator)
    V = W[:OTHERS] + 0.6 * torch.randn(OTHERS, WIDTH, generator=generator)
    alive, others = torch.ones(LATENTS, dtype=torch.bool), torch.ones(OTHERS, dtype=torch.bool)
    cosines = nearest_directions(W, V, alive, others)
    matches = {}
    for j, found in matches_of(PAGED, W, V, cosines, None).items():
        figures = [
            (10 * n + 3, fixture.chance("jaccard", j, n), fixture.chance("correlation", j, n))
            for n in range(len(found))
        ]
        matches[j] = [Match(m.index, m.cosine, *on) for m, on in zip(found, figures)]
    found = sorted({m.index for of_one in matches.values() for m in of_one})
    best = cosines.cosine_FK[:, 0]
    facts = {
        "name": "runs/other</script>", "checkpoint": "other", "kind": "jumprelu",
        "latents": OTHERS, "partner": PARTNER,
        "trained": [TRAINED, {**TRAINED, **OF_OTHER, **(of_other or {})}],
        **summary(W, V, alive, others, cosines),
        "correlation_chance": 0.12345,
        "without": (best < PARTNER).nonzero()[:, 0].tolist(),
    }  # fmt: skip
    if images:
        thumbnails, keys, pixels, labels = fixture.digit_images(60)
        own = fixture.image_records(max(PAGED) + 1, keys, pixels, labels)
        records = [own[j] for j in PAGED]
        meta = fixture.image_meta(own, LATENTS, 6400)
        all_others = fixture.image_records(OTHERS, keys, pixels, labels)
        other = fixture.image_meta(all_others, OTHERS, 6400)
        of_others = [all_others[j] for j in found]
    else:
        thumbnails = {}
        records = list(fixture.text_records(PAGED, LATENTS))
        meta = fixture.text_meta(LATENTS, PAGED)
        other = fixture.text_meta(OTHERS, list(range(OTHERS)))
        of_others = list(fixture.text_records(found, OTHERS))
    beside = Beside(other, facts, matches, of_others)
    write_page(records, meta, thumbnails, out, beside=beside)
    return PairedSite(out, beside, images)


@pytest.fixture(scope="module", params=["text", "image"])
def site(tmp_path_factory, request) -> PairedSite:
    return made_beside(tmp_path_factory.mktemp("beside"), request.param == "image")


def open_feature(tab, site: Site, latent: int) -> None:
    tab.open(site.url(latent))
    wait_for(tab, latent)
    tab.wait("document.querySelector('#by-cosine li')")


@pytest.mark.parametrize("latent", PAGED)
def test_a_feature_lists_its_matches(tab, site, latent):
    open_feature(tab, site, latent)
    matches = site.beside.matches[latent]
    for block, measure in {"by-cosine": "cosine", "by-rows": "correlation"}.items():
        expected = sorted(matches, key=lambda m: -getattr(m, measure))[:5]
        assert texts(tab, f"#{block} a") == [f"#{m.index}" for m in expected]
        assert [number(t) for t in texts(tab, f"#{block} .value")] == [
            at_four_digits(getattr(m, measure)) for m in expected
        ]
    tip = tab.evaluate("document.querySelector('#by-cosine li').dataset.about")
    assert f"{matches[0].together} rows together" in tip
    unmatched = latent in site.beside.facts["without"]
    assert unmatched == (matches[0].cosine < PARTNER)
    assert unmatched == tab.evaluate("document.getElementById('no-partner') !== null")
    assert_quiet(tab, site)


def test_both_kinds_of_latents_are_on_the_page(site):
    unmatched = {j in site.beside.facts["without"] for j in PAGED}
    assert unmatched == {True, False}
    assert {j // LATENTS_EACH_FILE for j in PAGED} == {0, 1}


def shown_examples(tab, side: str) -> list[float]:
    return [number(t) for t in texts(tab, f"#pair-{side} .act")]


def test_two_latents_stand_side_by_side(tab, site):
    latent = PAGED[0]
    open_feature(tab, site, latent)
    tab.evaluate("document.querySelector('#by-cosine a').focus()")
    tab.press("Enter")
    tab.wait("document.getElementById('pair-other')")
    match = max(site.beside.matches[latent], key=lambda m: m.cosine)
    assert text(tab, "#pair") == f"#{latent} beside #{match.index}"
    figures = {"cosine": match.cosine, "correlation": match.correlation, "jaccard": match.jaccard}
    for name, value in figures.items():
        assert number(text(tab, f"#pair-{name}")) == at_four_digits(value)
    assert text(tab, "#pair-together") == f"{match.together} rows"
    record = next(r for r in site.beside.records if r.index == match.index)
    expected = [at_four_digits(e.act) for e in record.examples if e.group == "top"][:10]
    assert shown_examples(tab, "other") == expected
    facts = text(tab, "#pair-other .pair-facts")
    assert number(facts.split("max ")[1]) == at_four_digits(site.beside.meta.max[match.index])
    assert f"#{match.index}" in text(tab, "#pair-other-title")
    # the list still marks the feature, and arrows go on from it
    assert tab.evaluate("document.querySelector('[aria-current=page]').dataset.latent") == "2"
    tab.press("ArrowRight")
    tab.press("ArrowLeft")
    tab.wait("location.hash.startsWith('#/f/')")
    assert_quiet(tab, site)


def test_another_match_is_one_click_away(tab, site):
    latent = PAGED[1]
    first, second = site.beside.matches[latent][:2]
    tab.open(site.url() + f"#/beside/{latent}/{first.index}")
    tab.wait("document.getElementById('pair-other')")
    tab.click(f".pair-links a[href='#/beside/{latent}/{second.index}']")
    tab.wait(f"document.getElementById('pair').textContent.endsWith('#{second.index}')")
    assert number(text(tab, "#pair-cosine")) == at_four_digits(second.cosine)
    tab.click("#pair a")
    wait_for(tab, latent)


def test_what_is_no_pair_is_said(tab, site):
    other = next(g for g in range(OTHERS) if g not in {m.index for m in site.beside.matches[2]})
    tab.open(site.url() + f"#/beside/2/{other}")
    tab.wait("document.getElementById('hint')")
    assert text(tab, "#hint-title") == "Not a pair of this page"


@pytest.mark.parametrize(
    ("address", "named", "last"),
    [
        ("#/beside/99999/1", "99999", LATENTS - 1), ("#/beside/700", "700", LATENTS - 1),
        ("#/beside/-1", "-1", LATENTS - 1), ("#/beside/two%20words", "two words", LATENTS - 1),
        ("#/beside/2/90", "90", OTHERS - 1), ("#/beside/2/x", "x", OTHERS - 1),
    ],
)  # fmt: skip
def test_a_latent_that_there_is_not_is_said_with_the_range(tab, site, address, named, last):
    tab.open(site.url() + address)
    tab.wait("document.getElementById('hint')")
    assert text(tab, "#hint-title") == "No such feature"
    whose = "this dictionary" if last == LATENTS - 1 else site.beside.facts["name"]
    assert text(tab, "#hint p") == f"“{named}” is not in {whose}: its features are 0 to {last}."
    assert_quiet(tab, site)


def test_a_feature_without_another_opens_its_best_match(tab, site):
    tab.open(site.url() + f"#/beside/{PAGED[1]}")
    tab.wait("document.getElementById('pair-other')")
    assert text(tab, "#pair") == f"#{PAGED[1]} beside #{site.beside.matches[PAGED[1]][0].index}"
    tab.open(site.url() + "#/beside/3")
    tab.wait("document.getElementById('hint')")
    assert text(tab, "#hint-title") == "No matches"
    assert_quiet(tab, site)


def test_seeds_and_stores_of_both_are_said(tab, site):
    tab.open(site.url() + "#/beside")
    tab.wait("document.getElementById('beside-training')")
    said = text(tab, "#beside-training")
    assert said.startswith("Both were trained with seed 0 on the same store")
    assert "matches likelier" in said
    assert texts(tab, "#beside-kind td") == ["topk k=32", "jumprelu"]
    assert texts(tab, "#beside-seed td") == ["0", "0"]
    assert texts(tab, "#beside-size td") == [f"{n} × {WIDTH}" for n in (LATENTS, OTHERS)]
    assert texts(tab, "#beside-store td") == ["this page's"] * 2
    assert texts(tab, "#beside-rows td") == ["64,000"] * 2
    # the two sizes differ, so numbers say nothing
    assert "under their own number" not in said
    tab.open(site.url() + f"#/beside/{PAGED[0]}")
    tab.wait("document.getElementById('pair-other')")
    assert text(tab, "#pair-seeds") == "0 and 0"


def test_partners_under_the_same_number_are_said(tab, tmp_path):
    site = made_beside(tmp_path, images=False)
    facts = {**site.beside.facts, "partners": 1500, "same_number": 1234}
    beside = dataclasses.replace(site.beside, facts=facts)
    docs = list(fixture.text_records(PAGED, LATENTS))
    write_page(docs, fixture.text_meta(LATENTS, PAGED), {}, tmp_path, beside=beside)
    tab.open(site.url() + "#/beside")
    tab.wait("document.getElementById('beside-training')")
    said = "Of the 1,500 latents here with a partner 1,234 have it under their own number "
    assert said in text(tab, "#beside-training")


@pytest.mark.parametrize(
    ("of_other", "said", "store"),
    [
        ({"seed": 1}, "with seed 1, on the same store, in one order of the rows (seed 0).", None),
        ({"seed": 1, "order": 1}, "with seed 1, on the same store.", None),
        ({"seed": 1, "order": 1, "content": "fedcba9876543210", "here": False},
         "with seed 1, on different stores.", "another, fedcba98"),
        ({"seed": None, "order": None, "content": None, "here": None, "rows": None},
         "does not say with which seed and on which store it was trained.", "–"),
    ],
)  # fmt: skip
def test_what_differs_between_the_two_runs_is_said(tab, tmp_path, of_other, said, store):
    site = made_beside(tmp_path, images=False, of_other=of_other)
    tab.open(site.url() + "#/beside")
    tab.wait("document.getElementById('beside-training')")
    assert text(tab, "#beside-training").endswith(said)
    assert "likelier" not in text(tab, "#beside-training")
    if store is not None:
        assert texts(tab, "#beside-store td")[1] == store


def test_the_figures_of_both_are_at_the_top(tab, site):
    tab.open(site.url())
    tab.press("b")
    tab.wait("document.getElementById('beside-title')")
    facts = site.beside.facts
    rows = {
        "share": [100 * at_four_digits(value) for value in facts["share"]],
        "mean": [at_four_digits(value) for value in facts["mean_best"]],
        "chance": [at_four_digits(value) for value in facts["chance"]],
        "alive": facts["alive"],
        "matched": [at_four_digits(facts["one_to_one"])] * 2,
    }
    for row, expected in rows.items():
        shown = [number(t) for t in texts(tab, f"#beside-{row} td")]
        assert shown == pytest.approx(expected, rel=1e-12)
    lead = text(tab, ".gallery-header .lead")
    assert [number(part) for part in re.findall(r"[\d.]+ %", lead)] == pytest.approx(rows["share"])
    bars = [
        int(tip.split(": ")[1].split(" ")[0].replace(",", ""))
        for tip in tab.evaluate(
            "Array.from(document.querySelectorAll('.spread rect'), r => r.dataset.about)"
        )
    ]
    assert sum(bars) == LATENTS + OTHERS
    assert text(tab, "#beside-title").endswith("beside runs/other</script>")
    assert_quiet(tab, site)


def test_the_list_of_those_without_a_partner(tab, site):
    tab.open(site.url() + "#/beside")
    tab.wait("document.getElementById('show-without')")
    unmatched = site.beside.facts["without"]
    assert text(tab, "#without p").startswith(f"{len(unmatched)} latents")
    tab.click("#show-without")
    assert text(tab, "#found") == f"{len(unmatched)} of {LATENTS} latents"
    assert tab.evaluate("location.hash").startswith("#/beside?") and "unmatched=1" in tab.evaluate(
        "location.hash"
    )
    shown = {int(t) for t in texts(tab, "#rows .row .number")}
    assert shown and shown <= set(unmatched)


@pytest.mark.parametrize("dark", [False, True])
def test_views_fit_a_narrow_screen(tab, site, dark):
    tab.view(375, 800, dark)
    try:
        latent = PAGED[0]
        match = site.beside.matches[latent][0].index
        for address, mark in {
            "#/beside": "#beside-table, .beside-table",
            f"#/beside/{latent}/{match}": "#pair-other",
            f"#/f/{latent}": "#by-cosine li",
        }.items():
            tab.open(site.url() + address)
            tab.wait(f"document.querySelector({mark!r})")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 375, address
        tab.open(site.url() + f"#/beside/{latent}/{match}")
        tab.wait("document.getElementById('pair-other')")
        left = "document.getElementById('pair-{}').getBoundingClientRect().left"
        assert tab.evaluate(left.format("own")) == tab.evaluate(left.format("other"))
        assert_quiet(tab, site)
    finally:
        tab.view(1400, 900)

"""The explorer in a browser, opened from disk as a user would: what it shows, what the keys do,
that it reaches no network."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from pathlib import Path

import page_fixture as fixture
import pytest

from saekit.inspection.page import write_page
from saekit.types import Example, FeatureRecord

pytestmark = pytest.mark.browser

LATENTS = 24_576
TEXT_PAGES = 40
HOSTILE_LATENT = 5
# How tokens that cannot be seen as they are look in running text; the others stand as themselves.
SEEN_AS = {
    "\n": "↵",
    "over\u202eride\n": "overU+202Eride↵",
    "\t": "⇥",
    "\u202edesrever": "U+202Edesrever",
    "\u200b": "U+200B",
    "  ": "··",
    "": "",  # a narrow box: the token holds part of a character
    "\ud800": "U+D800",
}


@dataclasses.dataclass(frozen=True)
class Site:
    """A written page, and its records as features.jsonl has them."""

    out: Path

    def url(self, latent: int | None = None) -> str:
        return (self.out / "index.html").as_uri() + ("" if latent is None else f"#/f/{latent}")

    @functools.cached_property
    def records(self) -> dict[int, FeatureRecord]:
        lines = (self.out / "features.jsonl").read_text(encoding="utf-8").splitlines()
        return {
            record.index: record
            for record in (FeatureRecord.from_json(json.loads(line)) for line in lines)
        }


@pytest.fixture(scope="session")
def text_site(tmp_path_factory) -> Site:
    """The densest features of a dictionary of 24,576, and one whose every string is an attack."""
    paged = fixture.densest(TEXT_PAGES, LATENTS)
    records = [*fixture.text_records(paged, LATENTS), fixture.hostile_record(HOSTILE_LATENT)]
    meta = fixture.text_meta(LATENTS, paged)
    hostile = records[-1]
    meta.density[HOSTILE_LATENT], meta.max[HOSTILE_LATENT] = hostile.density, hostile.max
    out = tmp_path_factory.mktemp("text")
    write_page(records, meta, {}, out)
    return Site(out)


@pytest.fixture(scope="session", params=["folder", "single file"])
def image_site(tmp_path_factory, request) -> Site:
    images, keys, pixels, labels = fixture.digit_images()
    records = fixture.image_records(20, keys, pixels, labels)
    out = tmp_path_factory.mktemp("image")
    write_page(
        records,
        fixture.image_meta(records, 24, 6400),
        images,
        out,
        single_file=request.param == "single file",
    )
    return Site(out)


def at_four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def number(text: str) -> float:
    """A figure on the page as a number: grouped thousands, a true minus sign, a unit after a
    space."""
    return float(text.split(" ")[0].replace(",", "").replace("−", "-"))


def texts(tab, selector: str) -> list[str]:
    return tab.evaluate(
        f"Array.from(document.querySelectorAll({json.dumps(selector)}), e => e.textContent)"
    )


def text(tab, selector: str) -> str:
    return tab.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def shown_latent(tab) -> int:
    return int(text(tab, "#index").removeprefix("#"))


def wait_for(tab, latent: int) -> None:
    tab.wait(f"document.getElementById('feature').dataset.latent === '{latent}'")


def assert_quiet(tab, site: Site) -> None:
    """No complaint on the console, and no request but to files of this page."""
    assert tab.problems == []
    folder = site.out.as_uri()
    assert tab.requests, "requests are not being recorded"
    assert [url for url in tab.requests if not url.startswith((folder, "data:", "about:"))] == []


def test_the_page_shows_the_record(tab, text_site):
    latent, record = next(
        (latent, record) for latent, record in text_site.records.items() if record.label
    )
    tab.open(text_site.url(latent))
    assert shown_latent(tab) == latent
    assert text(tab, "#label") == record.label
    assert f"{record.active_rows:,} of {fixture.ROWS:,} rows" in text(tab, "#density")
    assert number(text(tab, "#density")) == pytest.approx(
        100 * at_four_digits(record.density), rel=1e-12
    )
    top = [example for example in record.examples if example.group == "top"]
    for place, example in enumerate(top, start=1):
        tokens = texts(tab, f"#top li:nth-child({place}) .token")
        unmarked = [
            token.replace("\n", "↵").replace(" ", "·") if not token.strip(" ") else token
            for token in example.tokens
        ]
        assert tokens == [token.replace("\n", "↵") for token in unmarked]
        assert text(tab, f"#top li:nth-child({place}) .source-name") == example.source
    assert_quiet(tab, text_site)


def test_numbers_equal_features_jsonl(tab, text_site):
    for latent, record in itertools.islice(text_site.records.items(), 3):
        tab.open(text_site.url(latent))
        assert number(text(tab, "#max")) == at_four_digits(record.max)
        top = [example for example in record.examples if example.group == "top"]
        assert [number(t) for t in texts(tab, "#top .act")] == [
            at_four_digits(example.act) for example in top
        ]
        assert [number(t) for t in texts(tab, "#neighbours .value")] == [
            at_four_digits(n["cosine"]) for n in record.neighbours
        ]
        assert [t.removeprefix("#") for t in texts(tab, "#neighbours a, #neighbours .number")] == [
            str(n["index"]) for n in record.neighbours
        ]
        assert [number(t) for t in texts(tab, "#coactivation .value")] == [
            at_four_digits(n["jaccard"]) for n in record.coactivation
        ]
        for side in ("raised", "lowered"):
            entries = record.logits["top" if side == "raised" else "bottom"]
            assert [number(t) for t in texts(tab, f".{side} .value")] == [
                at_four_digits(entry["value"]) for entry in entries
            ]
        counts = record.histogram["counts"]
        assert [number(t) for t in texts(tab, ".band-rows")] == [
            sum(counts[i:j]) for i, j in itertools.pairwise(fixture.BAND_ENDS)
        ]
        heights = tab.evaluate(
            "Array.from(document.querySelectorAll('.plot rect'), r =>"
            " Number(r.getAttribute('height')))"
        )
        assert heights == pytest.approx([100 * n / max(counts) for n in counts])


def test_pointing_at_a_token_tells_value_and_position(tab, text_site):
    latent, record = next(iter(text_site.records.items()))
    tab.open(text_site.url(latent))
    example = record.examples[0]
    tab.hover("#top li:first-child .centre")
    assert tab.evaluate("document.getElementById('tip').hidden") is False
    assert text(tab, "#tip b").replace("·", " ") == example.tokens[example.centre]
    value, position = text(tab, "#tip span").split(" · ")
    assert (number(value), position) == (
        at_four_digits(example.act),
        f"position {example.position}",
    )
    assert tab.evaluate(
        "parseFloat(document.querySelector('.marker').style.left)"
    ) == pytest.approx(100 * example.act / record.max, rel=1e-3)


def test_keyboard_reads_an_example_token_by_token(tab, text_site):
    latent, record = next(iter(text_site.records.items()))
    tab.open(text_site.url(latent))
    tab.press("Tab")  # the keyboard was used last
    tab.evaluate("document.querySelector('#top .tokens').focus()")
    tab.press("ArrowLeft")
    example = record.examples[0]
    assert text(tab, "#tip span").endswith(f"position {example.position - 1}")
    assert shown_latent(tab) == latent


def test_shading_is_in_proportion_to_the_feature_s_maximum(tab, text_site):
    latent, record = next(iter(text_site.records.items()))
    tab.open(text_site.url(latent))
    shades = tab.evaluate(
        "Array.from(document.querySelectorAll('#top li:nth-child(2) .token'), e =>"
        " Number(e.style.getPropertyValue('--t')))"
    )
    assert shades == pytest.approx(
        [value / record.max for value in record.examples[1].values], abs=1e-3
    )


def test_hostile_strings_stay_text(tab, text_site):
    tab.open(text_site.url(HOSTILE_LATENT))
    expected = [SEEN_AS.get(token, token) for token in fixture.HOSTILE]
    assert texts(tab, "#top li:first-child .token") == expected
    assert text(tab, "#label") == fixture.HOSTILE[0]
    assert (
        tab.evaluate(
            "document.querySelectorAll('main script, main img, main b b, main .token > b').length"
        )
        == 0
    )
    assert tab.evaluate("document.querySelectorAll('#list img, .row b').length") == 0
    assert_quiet(tab, text_site)


def test_next_and_previous_follow_the_list(tab, text_site):
    order = sorted(
        text_site.records.values(),
        key=lambda record: (-at_four_digits(record.density), record.index),
    )
    tab.open(text_site.url())
    tab.press("ArrowRight")  # from the gallery: the first of the list
    wait_for(tab, order[0].index)
    tab.press("ArrowRight")
    wait_for(tab, order[1].index)
    tab.click("#next")
    wait_for(tab, order[2].index)
    tab.click("#previous")
    wait_for(tab, order[1].index)
    tab.press("ArrowLeft")
    wait_for(tab, order[0].index)
    assert tab.evaluate("document.getElementById('previous').disabled") is True
    assert tab.evaluate("document.querySelector('.row[aria-current]').dataset.latent") == str(
        order[0].index
    )
    assert_quiet(tab, text_site)


def test_search_finds_index_token_and_label(tab, text_site):
    records = text_site.records
    tab.open(text_site.url())
    tab.press("/")
    tab.type("negation")
    labelled = {latent for latent, record in records.items() if record.label == "negation"}
    found = {
        int(latent)
        for latent in tab.evaluate(
            "Array.from(document.querySelectorAll('.row'), e => e.dataset.latent)"
        )
    }
    assert labelled and found == labelled
    tab.press("Enter")
    tab.wait("document.getElementById('label')?.textContent === 'negation'")
    tab.evaluate("document.getElementById('search').select()")
    tab.type("kittens")
    assert all("kittens" in row for row in texts(tab, ".row .preview"))
    tab.evaluate("document.getElementById('search').select()")
    tab.type("24575")
    assert tab.evaluate("document.querySelector('.row').dataset.latent") == "24575"
    assert text(tab, "#found") == "1 of 24,576 latents"


def test_filters_and_sorting(tab, text_site):
    tab.open(text_site.url())
    tab.click("#only-paged")
    assert text(tab, "#found") == f"{TEXT_PAGES + 1} of 24,576 latents"
    tab.evaluate(
        "(e => { e.value = 'index'; e.dispatchEvent(new Event('input', {bubbles: true}));"
        " })(document.getElementById('sort'))"
    )
    tab.evaluate("document.getElementById('list').scrollTop = 0")
    tab.wait(f"document.querySelector('.row[data-latent=\"{HOSTILE_LATENT}\"]')")
    shown = [int(t) for t in texts(tab, ".row .number")]
    assert sorted(shown) == sorted(text_site.records)[: len(shown)]
    tab.evaluate(
        "(e => { e.value = -0.5; e.dispatchEvent(new Event('input', {bubbles: true}));"
        " })(document.getElementById('density-low'))"
    )
    # only the hostile one fires on half of the rows
    assert text(tab, "#found") == "1 of 24,576 latents"
    tab.open(text_site.url())
    tab.click("#hide-dead")
    dead = sum(
        fixture.chance("dead", j) < 1 / 12 and j not in text_site.records for j in range(LATENTS)
    )
    assert text(tab, "#found") == f"{LATENTS - dead:,} of 24,576 latents"


def test_links_open_pages_and_explain_what_has_none(tab, text_site):
    latent = list(text_site.records)[7]
    tab.open(text_site.url(latent))
    assert shown_latent(tab) == latent
    missing = next(
        j
        for j in range(LATENTS)
        if j not in text_site.records and fixture.chance("dead", j) >= 1 / 12
    )
    tab.evaluate(f"location.hash = '#/f/{missing}'")
    wait_for(tab, missing)
    assert text(tab, "#hint code") == f"{fixture.COMMAND} --features {missing}"
    dead = next(
        j
        for j in range(LATENTS)
        if fixture.chance("dead", j) < 1 / 12 and j not in text_site.records
    )
    tab.evaluate(f"location.hash = '#/f/{dead}'")
    wait_for(tab, dead)
    assert "Never active" in text(tab, "#hint")
    tab.evaluate("location.hash = '#/f/24576'")
    tab.wait("document.getElementById('hint')?.textContent.includes('0 to 24575')")
    tab.evaluate("history.back()")
    wait_for(tab, dead)
    assert_quiet(tab, text_site)


def test_theme_help_and_logarithm_answer_their_keys(tab, text_site):
    tab.open(text_site.url(next(iter(text_site.records))))
    paper = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(paper)
    tab.press("t")
    assert tab.evaluate(paper) != before
    tab.press("t")
    assert tab.evaluate(paper) == before
    tab.press("?")
    assert tab.evaluate("document.getElementById('help').open") is True
    tab.press("Escape")
    assert tab.evaluate("document.getElementById('help').open") is False
    smallest = (
        "Math.min(...Array.from(document.querySelectorAll('.plot rect'), r =>"
        " Number(r.getAttribute('height'))).filter(h => h))"
    )
    linear = tab.evaluate(smallest)
    tab.press("l")
    assert tab.evaluate(smallest) > linear
    tab.press("l")


def test_a_list_of_24576_opens_quickly_and_holds_few_rows(tab, text_site):
    seconds = tab.open(text_site.url())
    assert seconds < 5
    assert len(texts(tab, ".row")) < 60
    tab.evaluate("document.getElementById('list').scrollTop = 1e9")
    tab.wait(
        "document.querySelectorAll('.row').length < 60 && document.querySelector('.row"
        " .density').textContent === 'dead'"
    )


def test_heat_maps_are_drawn_and_toggled(tab, image_site):
    latent, record = next(
        (latent, record) for latent, record in image_site.records.items() if record.examples
    )
    tab.open(image_site.url(latent))
    tab.wait(
        "Array.from(document.querySelectorAll('.frame img')).every(e => e.complete &&"
        " e.naturalWidth === 8)"
    )
    opacities = tab.evaluate(
        "Array.from(document.querySelectorAll('#top .heat'), c => Array.from(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 3))"
    )
    top = [example for example in record.examples if example.group == "top"]
    assert len(opacities) == len(top) and max(opacities[0]) == 255
    for drawn, example in zip(opacities, top):  # one scale for all images of a feature
        assert drawn == pytest.approx([255 * value / record.max for value in example.values], abs=1)
    # spotlight, heat map, picture: the same activations as what the veil leaves
    veils = tab.evaluate(
        "Array.from(document.querySelectorAll('#top .veil'), c => Array.from(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 3))"
    )
    for veil, heat in zip(veils, opacities, strict=True):
        assert veil == pytest.approx([255 - value for value in heat], abs=1)
    seen = {}
    for overlay in ("spotlight", "heat", "contour", "none"):
        assert tab.evaluate("document.body.dataset.overlay") == overlay
        pressed = "document.querySelector('[data-sets-overlay=\"{}\"]').ariaPressed"
        assert tab.evaluate(pressed.format(overlay)) == "true"
        displayed = "getComputedStyle(document.querySelector('{}')).display !== 'none'"
        seen[overlay] = [tab.evaluate(displayed.format(c)) for c in (".veil", ".heat", ".outline")]
        tab.press("h")
    assert seen == {
        "spotlight": [True, False, True],
        "heat": [False, True, False],
        "contour": [False, False, True],
        "none": [False, False, False],
    }
    assert tab.evaluate("document.body.dataset.overlay") == "spotlight"
    assert texts(tab, "#top .under .data-label") == [example.label for example in top]
    assert number(texts(tab, ".color-bar span")[-1]) == at_four_digits(record.max)
    assert tab.evaluate("document.getElementById('logits')") is None
    assert_quiet(tab, image_site)


@pytest.mark.parametrize("width", [375, 800, 1400])
def test_nothing_is_wider_than_the_window(tab, text_site, width):
    tab.view(width, 800)
    try:
        for latent in (HOSTILE_LATENT, next(iter(text_site.records))):
            tab.open(text_site.url(latent))
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate(
                "document.querySelector('main').scrollWidth <="
                " document.querySelector('main').clientWidth + 1"
            )
        if width < 820:
            tab.click("#open-list")
            assert (
                tab.evaluate("document.querySelector('.row').getBoundingClientRect().width")
                == width
            )
    finally:
        tab.view(1400, 900)


def test_density_that_does_not_apply_is_left_out(tab, tmp_path):
    record = dataclasses.replace(next(fixture.text_records([3], 8)), density=None)
    meta = dataclasses.replace(fixture.text_meta(8, [3]), density=[None] * 8)
    write_page([record], meta, {}, tmp_path)
    tab.open(Site(tmp_path).url(3))
    assert shown_latent(tab) == 3
    assert tab.evaluate("document.getElementById('density')") is None
    assert (
        tab.evaluate("getComputedStyle(document.getElementById('density-filter')).display")
        == "none"
    )
    assert_quiet(tab, Site(tmp_path))


def test_a_missing_shard_is_explained(tab, tmp_path):
    record = next(fixture.text_records([3], 8))
    write_page([record], fixture.text_meta(8, [3]), {}, tmp_path)
    (tmp_path / "shards" / "000.js").unlink()
    tab.open(Site(tmp_path).url(3))
    assert "shards/000.js could not be read" in text(tab, "#hint")


def test_the_policy_stops_what_would_leave_the_machine(tab, text_site):
    """Also shows that the tests above would have seen a request or a complaint."""
    tab.open(text_site.url())
    assert (
        tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        == "refused"
    )
    tab.evaluate(
        "new Promise(done => { const i = new Image(); i.onerror = done; i.src ="
        " 'http://127.0.0.1:9/x.png'; })"
    )
    assert any("Content Security Policy" in problem for problem in tab.problems)


def signed_record(latent: int) -> FeatureRecord:
    """Four activations of either sign; the text is right-to-left, in tokens that cut words."""
    tokens, values = ["של", "ום", " עו", "לם"], [0.0, -4.0, 2.0, 0.0]
    edges, counts = [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0], [3, 0, 0, 1, 0, 4]
    examples = [
        Example("top", -4.0, 0, 0, 1, values, source="a", tokens=tokens, centre=1),
        Example("top", 2.0, 1, 1, 2, values, source="b", tokens=tokens, centre=2),
    ]
    bands = [
        {"low": 0.8 * i, "high": 0.8 * (i + 1), "rows": rows}
        for i, rows in enumerate((1, 0, 4, 0, 3))
    ]
    return FeatureRecord(
        latent, 0.5, 8, 4.0, {"edges": edges, "counts": counts}, examples, bands=bands
    )


@pytest.fixture(scope="session")
def signed_site(tmp_path_factory) -> Site:
    out = tmp_path_factory.mktemp("signed")
    meta = dataclasses.replace(fixture.text_meta(2, [0, 1]), density=[0.5, 0.0], max=[4.0, 0.0])
    write_page([signed_record(0)], meta, {}, out)
    return Site(out)


def test_signed_latents_show_both_ends_in_two_hues(tab, signed_site):
    tab.open(signed_site.url(0))
    assert texts(tab, "#top h4") == ["Above 0", "Below 0"]
    assert [number(t) for t in texts(tab, "#top .act")] == [2.0, -4.0]
    assert [number(t) for t in texts(tab, ".color-bar span")[::2]] == [-4.0, 4.0]
    assert [number(t) for t in texts(tab, ".band-rows")] == [1, 0, 4, 0, 3]
    cold = tab.evaluate(
        "Array.from(document.querySelectorAll('.plot rect'), r => r.classList.contains('cold'))"
    )
    assert cold == [True] * 4 + [False] * 2
    color = "getComputedStyle(document.querySelector('#top {} .word')).backgroundColor"
    colors = [tab.evaluate(color.format(kind)) for kind in (".token.cold", ".token.lit:not(.cold)")]
    channels = [
        [float(c) for c in re.findall(r"[0-9.]+", color.replace("srgb", ""))] for color in colors
    ]
    assert channels[0][2] > channels[0][0] and channels[1][0] > channels[1][2], (
        "blue below 0, orange above"
    )
    shares = tab.evaluate(
        "Array.from(document.querySelectorAll('#top .lit'), s =>"
        " Number(s.style.getPropertyValue('--t')))"
    )
    assert shares == [1.0, 0.5] * 2
    assert_quiet(tab, signed_site)


def test_right_to_left_text_runs_from_the_right(tab, signed_site):
    tab.open(signed_site.url(0))
    lefts = tab.evaluate(
        "Array.from(document.querySelector('#top .tokens').querySelectorAll('[data-place]'), s =>"
        " s.getBoundingClientRect().left)"
    )
    assert lefts == sorted(lefts, reverse=True)
    line = "document.querySelector('#top .tokens')"
    assert tab.evaluate(f"getComputedStyle({line}).direction") == "rtl"
    assert tab.evaluate(f"{line}.textContent") == "שלום עולם"

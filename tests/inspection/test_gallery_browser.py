"""What the page opens with, what it calls features, and what it says about its figures, in a
browser."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import page_fixture as fixture
import pytest
import torch
from test_explorer_browser import Site, assert_quiet, number, text, texts, wait_for

from saekit.indexing.entries import Triples
from saekit.indexing.histogram import BINS, Histogram
from saekit.inspection.existing import ExistingPage
from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser

PAGED, LATENTS = 12, 64
MISSING, DEAD = 40, 63


def with_meaning(record):
    """As inspect leaves it: a label, a score, a context, and output tokens that stand out on one
    side."""
    tokens = [e.tokens[e.centre] for e in record.examples if e.group == "top"]
    record.meaning = {"kind": "token", "text": tokens[0], "count": 17, "of": 20, "coherence": 0.8}
    record.score = 1 - record.index / 100
    record.logit_test = {"raised": 6.5, "lowered": 3.25, "raised_chance": 5, "lowered_chance": 5}
    counts = np.exp(9 - (np.arange(50) - 20) ** 2 / 30).round()
    counts[-1] = 2
    edges = np.linspace(-2, 2, 51)
    record.logit_histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
    for example in record.examples:
        first = example.position - example.centre
        fires = [(first + i, value) for i, value in enumerate(example.values) if value]
        example.context_values = [[place, value] for place, value in fires]
    return record


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Site:
    docs = fixture.documents()
    records = [with_meaning(fixture.text_record(j, docs, LATENTS)) for j in range(PAGED)]
    records[0].neighbours = [{"index": j, "cosine": 0.5} for j in (1, MISSING, 2)]
    meta = fixture.text_meta(LATENTS, list(range(PAGED)))
    density, largest = list(meta.density), list(meta.max)
    density[MISSING], largest[MISSING], density[DEAD], largest[DEAD] = 0.001, 2.0, 0.0, 0.0
    meanings = [record.meaning for record in records] + [None] * (LATENTS - PAGED)
    meanings[MISSING] = {"kind": "next", "text": " pet", "count": 9, "of": 12, "coherence": 0.5}
    meta = dataclasses.replace(
        meta,
        density=density,
        max=largest,
        score=[r.score for r in records] + [None] * (LATENTS - PAGED),
        meanings=meanings,
        gallery=[{"index": j, "twins": [11] if j == 4 else []} for j in (4, 0, 5)],
        identity="0123-4567",
    )
    out = tmp_path_factory.mktemp("gallery")
    write_page(records, meta, {}, out, contexts=dict(enumerate(docs)))
    return Site(out)


def test_the_page_opens_on_the_gallery(tab, site):
    tab.open(site.url())
    assert text(tab, "#gallery-title") == "Three features worth reading"
    assert texts(tab, ".card-number") == ["#4", "#0", "#5"]
    record = site.records[4]
    first = "#gallery li:first-child "
    assert text(tab, first + "h3").replace("·", " ") == f"on {record.meaning['text']}"
    facts = text(tab, first + ".card-facts")
    assert "automatic: 17 of 20 examples" in facts and "score 0.96" in facts
    assert "+ 1 near-duplicate" in facts and "near-duplicate" not in text(
        tab, "#gallery li:nth-child(2)"
    )
    acts = [number(t) for t in texts(tab, first + ".card-texts .act")]
    assert acts[:2] == [float(f"{e.act:.3g}") for e in record.examples[:2]]
    # without samples of all rows, one of half the maximum, which is called so
    middle = [e for e in record.examples if e.interval is not None]
    nearest = min(abs(e.act / record.max - 0.5) for e in middle)
    assert abs(acts[2] / record.max - 0.5) == pytest.approx(nearest, abs=0.01)
    assert texts(tab, first + ".card-kind") == ["half of its maximum"]
    # a card opens its feature, and g comes back
    tab.evaluate("document.querySelector('.card-link').click()")
    wait_for(tab, 4)
    tab.press("g")
    tab.wait("document.getElementById('gallery')")
    assert_quiet(tab, site)


def test_the_list_is_in_the_order_of_the_score(tab, site):
    tab.open(site.url())
    assert [int(t) for t in texts(tab, ".row .number")][:PAGED] == list(range(PAGED))
    tab.press("/")
    tab.type("pet")  # the automatic label of a latent without a page
    assert str(MISSING) in texts(tab, ".row .number")


def test_the_second_of_a_label_counts_half(tab, tmp_path):
    docs = fixture.documents()
    records = [with_meaning(fixture.text_record(j, docs, 8)) for j in range(4)]
    words, scores = ["cat", " Cat", "dog", None], [0.9, 0.8, 0.5, 0.42, *[None] * 4]
    meanings = [w and {**r.meaning, "text": w} for w, r in zip(words, records)] + [None] * 4
    meta = dataclasses.replace(fixture.text_meta(8, [0, 1, 2, 3]), score=scores, meanings=meanings)
    write_page(records, meta, {}, tmp_path)
    tab.open(Site(tmp_path).url())
    order = "Array.from(document.querySelectorAll('.row .number'), e => parseInt(e.textContent))"
    assert tab.evaluate(order)[:4] == [0, 2, 3, 1]
    tab.evaluate(
        "(e => { e.value = 'score'; e.dispatchEvent(new Event('input', {bubbles: true}));"
        " })(document.getElementById('sort'))"
    )
    assert tab.evaluate(order)[:4] == [0, 1, 2, 3]


def test_automatic_labels_are_marked_and_say_what_is_raised(tab, site):
    tab.open(site.url(0))
    assert text(tab, "#automatic .badge") == "automatic"
    assert "17 of 20 examples" in text(tab, "#automatic")
    raised = site.records[0].logits["top"][0]["token"]
    assert text(tab, "#automatic .raises .chip").replace("·", " ") == raised


def test_output_tokens_no_better_than_random_are_not_shown_and_said_so(tab, site):
    tab.open(site.url(0))
    assert len(texts(tab, "#logits .raised li")) == 10
    assert texts(tab, "#logits .lowered li") == []
    said = text(tab, "[data-hidden-side=lowered]")
    assert "no better than those of a random direction" in said
    assert "3.25 standard deviations" in said and "stay below 5.00" in said
    assert tab.evaluate("document.querySelector('#logits .lowered')") is None


def test_a_token_that_stands_out_by_itself_is_told_and_the_ten_are_not(tab, tmp_path):
    docs = fixture.documents()
    record = with_meaning(fixture.text_record(2, docs, LATENTS))
    record.logits["top"][0]["token"] = "'t"
    one = {"raised_one": 9.5, "raised_one_chance": 7, "raised_beyond": 1}
    other = {"lowered_one": 4.25, "lowered_one_chance": 7, "lowered_beyond": 0}
    record.logit_test |= {"raised": 4.5} | one | other
    meanings = [record.meaning if j == 2 else None for j in range(LATENTS)]
    shown = {"gallery": [{"index": 2, "twins": []}], "meanings": meanings}
    meta = dataclasses.replace(fixture.text_meta(LATENTS, [2]), **shown)
    write_page([record], meta, {}, tmp_path)
    tab.open(Site(tmp_path).url(2))
    assert text(tab, "[data-single-side=raised] h4") == "Raises one token"
    assert texts(tab, "[data-single-side=raised] li .chip") == ["'t"]
    value = number(text(tab, "[data-single-side=raised] .value"))
    assert value == record.logits["top"][0]["value"]
    said = text(tab, "[data-single-side=raised] .note")
    assert "9.50 standard deviations" in said and "stays below 7.00" in said
    assert "as a list of ten are not shown" in text(tab, "[data-hidden-side=raised]")
    assert "by itself: 4.25, where 99 % stay below 7.00" in text(tab, "[data-hidden-side=lowered]")
    assert texts(tab, "#logits .raised li") == [] and texts(tab, "#logits .lowered li") == []
    assert len(texts(tab, ".logit-plot .mark.raised")) == 1
    assert text(tab, "#automatic .raises") == "raises one token: 't"
    # the shard has this token of the ten, and no other
    (tmp_path / "features.jsonl").unlink()
    (read,) = ExistingPage(tmp_path).records()
    assert [entry["token"] for entry in read.logits["top"]] == ["'t"]
    assert read.logits["bottom"] == [] and read.logit_test["raised_beyond"] == 1
    tab.press("g")
    tab.wait("document.getElementById('gallery')")
    assert "raises one token: 't" in text(tab, ".card-facts")
    assert_quiet(tab, Site(tmp_path))


def test_the_distribution_of_output_tokens_marks_those_that_are_told(tab, site):
    record = site.records[0]
    counts = record.logit_histogram["counts"]
    tab.open(site.url(0))
    assert f"{int(sum(counts)):,} tokens of the vocabulary" in text(tab, "#logit-histogram h4")
    heights = tab.evaluate(
        "Array.from(document.querySelectorAll('.logit-plot rect'), r =>"
        " Number(r.getAttribute('height')))"
    )
    # the axis is logarithmic, from half a token
    scale = 100 / np.log(max(counts) / 0.5)
    expected = [scale * np.log(n / 0.5) if n else 0 for n in counts]
    assert heights == pytest.approx(expected)
    # marks of the ten that are raised; those that are lowered are no better than chance
    marks = tab.evaluate(
        "Array.from(document.querySelectorAll('.logit-plot .mark'), m =>"
        " [m.className, parseFloat(m.style.left)])"
    )
    assert {name for name, _ in marks} == {"mark raised"}
    values = [entry["value"] for entry in record.logits["top"]]
    assert [left for _, left in marks] == pytest.approx([(v + 2) / 4 * 100 for v in values])
    # the last bin with its two tokens, and the one of them that is listed
    tab.hover(".logit-plot")
    box = tab.evaluate(
        "(b => [b.right, b.y, b.height])(document.querySelector('.logit-plot')"
        ".getBoundingClientRect())"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] - 2, y=box[1] + box[2] / 2)
    assert text(tab, "#tip b") == "1.920 to 2.000"
    inside = [e["token"] for e in record.logits["top"] if e["value"] >= 1.92]
    assert text(tab, "#tip span").startswith("2 tokens") and len(inside) <= 1
    assert_quiet(tab, site)


def test_a_distribution_that_says_no_more_than_chance_is_left_out_with_the_reason(tab, tmp_path):
    docs = fixture.documents()
    record = with_meaning(fixture.text_record(3, docs, 8))
    record.logit_test |= {"raised": 4.0}
    record.logit_histogram = None
    write_page([record], fixture.text_meta(8, [3]), {}, tmp_path)
    tab.open(Site(tmp_path).url(3))
    assert tab.evaluate("document.getElementById('logit-histogram')") is None
    assert len(texts(tab, "[data-hidden-side]")) == 2
    assert "the distribution over the vocabulary is not shown" in text(tab, "#logits")


def test_the_label_says_how_many_times_it_is_above_chance(tab, tmp_path):
    docs = fixture.documents()
    record = with_meaning(fixture.text_record(4, docs, 8))
    meta = fixture.text_meta(8, [4])
    meaning = {**record.meaning, "lift": 123.4}
    meta = dataclasses.replace(meta, meanings=[meaning if j == 4 else None for j in range(8)])
    write_page([record], meta, {}, tmp_path)
    tab.open(Site(tmp_path).url(4))
    assert "17 of 20 examples, 120 × chance" in text(tab, "#automatic")
    assert text(tab, ".row[data-latent='4'] .lift") == "× 120"
    tab.open(Site(tmp_path).url())
    assert "120 × chance" in text(tab, ".card-facts")


def test_neighbours_without_a_page_are_text_with_the_command_that_adds_them(tab, site):
    tab.open(site.url(0))
    assert texts(tab, "#neighbours a") == ["#1", "#2"]
    assert texts(tab, "#neighbours .number") == [f"#{MISSING}"]
    row = "#neighbours li:nth-child(2)"
    assert text(tab, f"{row} .preview").replace("·", " ") == "before  pet"
    added = {n["index"] for n in site.records[0].coactivation} - set(range(PAGED)) | {MISSING}
    command = text(tab, ".add-pages code")
    assert command.startswith(f"{fixture.COMMAND} --features ")
    assert {int(n) for n in command.rsplit(" ", 1)[1].split(",")} == added
    links = tab.evaluate("Array.from(document.querySelectorAll('main a'), a => a.hash)")
    assert all(int(link.removeprefix("#/f/")) < PAGED for link in links)
    assert "page yet" not in text(tab, "body")


def test_a_reader_s_own_name_stays_and_is_found(tab, site):
    tab.open(site.url(5))
    tab.evaluate("localStorage.clear()")
    tab.open(site.url(5))
    tab.click("#own-name")
    tab.type("pets & <b>kin</b>")
    tab.press("Enter")
    tab.open(site.url(5))
    assert tab.evaluate("document.getElementById('own-name').value") == "pets & <b>kin</b>"
    assert text(tab, ".row[data-latent='5'] .own-label") == "pets & <b>kin</b>"
    tab.press("/")
    tab.type("<b>kin")
    assert [int(t) for t in texts(tab, ".row .number")] == [5]
    tab.open(site.url())
    assert text(tab, "#gallery li:nth-child(3) h3") == "pets & <b>kin</b>"
    # the file, and what is read back from it
    tab.evaluate(
        "URL.createObjectURL = blob => { window.saved = blob; return 'data:,'; };"
        "HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; }"
    )
    tab.click("#names-button")
    tab.click("#names-save")
    saved = json.loads(tab.evaluate("window.saved.text()"))
    assert saved["names"] == [{"index": 5, "name": "pets & <b>kin</b>"}]
    assert saved["identity"] == "0123-4567" and saved["favorites"] == saved["notes"] == []
    assert tab.evaluate("window.savedAs").endswith(".json")
    for identity, expected in (("0123-4567", "from a file"), ("other", "pets & <b>kin</b>")):
        tab.open(site.url(5))
        read_names(tab, {"identity": identity, "names": [{"index": 5, "name": "from a file"}]})
        tab.wait("document.getElementById('names-message').textContent")
        kept = tab.evaluate("document.getElementById('own-name').value")
        assert kept == expected
        tab.evaluate(
            "(field => { field.value = 'pets & <b>kin</b>'; field.dispatchEvent(new"
            " Event('change')); })(document.getElementById('own-name'))"
        )
    tab.evaluate("localStorage.clear()")
    assert_quiet(tab, site)


def read_names(tab, content: dict | str) -> None:
    """Give the page a file, as the file chooser would."""
    written = content if isinstance(content, str) else json.dumps(content)
    tab.evaluate(
        "(text => { const files = new DataTransfer();"
        " files.items.add(new File([text], 'n.json'));"
        " const field = document.getElementById('names-file'); field.files = files.files;"
        f" field.dispatchEvent(new Event('change')); }})({json.dumps(written)})"
    )


def test_a_whole_context_opens_below_its_example(tab, site):
    docs = fixture.documents()
    tab.open(site.url(0))
    example = site.records[0].examples[0]
    assert tab.evaluate("document.querySelectorAll('.context').length") == 0
    button = "#top li:first-child .context-button"
    tab.click(button)
    tab.wait("document.querySelector('.context .tokens')")
    tokens = docs[example.doc_id]
    shown = texts(tab, ".context .token")
    assert len(shown) == len(tokens) > len(example.tokens)
    assert [t.replace("↵", "\n").strip("· ") for t in shown] == [t.strip(" ") for t in tokens]
    shades = tab.evaluate(
        "Array.from(document.querySelectorAll('.context .token'), e =>"
        " Number(e.style.getPropertyValue('--t')))"
    )
    expected = np.zeros(len(tokens))
    for place, value in example.context_values:
        expected[place] = value / site.records[0].max
    assert shades == pytest.approx(expected.tolist(), abs=1e-3)
    centre = "document.querySelector('.context .centre').dataset.place"
    assert int(tab.evaluate(centre)) == example.position
    assert tab.evaluate(f"document.querySelector('{button}').ariaExpanded") == "true"
    tab.click(button)
    assert tab.evaluate("document.querySelectorAll('.context').length") == 0
    assert_quiet(tab, site)


FIGURES = (
    ".act", ".stats > div", ".metrics > div", ".measures li", ".band-rows", ".density",
    ".color-bar", ".source-names", ".meaning-count", ".raises", "#automatic", "#density-filter",
    ".card-facts > span", "h4:has(.unit)", "#histogram h3", "#top h3", "#logits h3",
    "#intervals h3", "#own-name",
)  # fmt: skip


def test_every_figure_says_what_it_is(tab, site):
    without = (
        "Array.from(document.querySelectorAll({}), e => e.closest('[data-about]') ? '' :"
        " e.outerHTML.slice(0, 200)).filter(Boolean)"
    )
    seen = set()
    for url in (site.url(), site.url(0)):
        tab.open(url)
        for selector in FIGURES:
            # of a card the numbers beside its examples are those of the feature's page
            within = ":is(main, header, aside) " + selector + ":not(.card-texts *)"
            assert tab.evaluate(without.format(json.dumps(within))) == []
            if tab.evaluate(f"document.querySelectorAll({json.dumps(within)}).length"):
                seen.add(selector)
    assert seen == set(FIGURES)
    tab.hover("#density")
    assert (
        "active" in text(tab, "#tip")
        and tab.evaluate("document.getElementById('tip').hidden") is False
    )
    tab.hover("#top li:first-child .act")
    assert text(tab, "#tip") == "Activation at the marked token or patch."
    # by the keyboard: an underlined name tells it when it gets the focus, and to a screen reader
    tab.press("Tab")
    tab.evaluate("document.querySelector('#density').parentNode.querySelector('dt').focus()")
    assert "active" in text(tab, "#tip")
    described = "document.querySelector('#density').parentNode.querySelector('dt').ariaDescription"
    assert tab.evaluate(described) == text(tab, "#tip")


@pytest.mark.parametrize("bins", [51, 73, BINS])
def test_intervals_count_the_rows_of_any_histogram(tab, tmp_path, bins):
    """A scan's histogram has 51 to 100 bins; the page's five intervals are counted from the values
    themselves here."""
    values = np.random.default_rng(bins).exponential(0.3, 3000)
    values = np.append(values[values < 1], [1.0, bins / 50]).astype(np.float32)
    histogram = Histogram(1)
    for part in (values[:-1], values[-1:]):
        part = torch.from_numpy(part)
        rows = torch.zeros(len(part), dtype=torch.int64)
        histogram.add(Triples(rows, rows, part), part.max()[None])
    assert len(histogram.of(0)["counts"]) == bins
    record = next(fixture.text_records([3], 8))
    record = dataclasses.replace(
        record, max=float(values.max()), active_rows=len(values), histogram=histogram.of(0),
        bands=histogram.bands(0),
    )  # fmt: skip
    write_page([record], fixture.text_meta(8, [3]), {}, tmp_path)
    tab.open(Site(tmp_path).url(3))
    edges = np.array([band["high"] for band in record.bands])
    assert edges[-1] * (1 + 1e-6) >= values.max() > edges[-2]
    expected = [int(((values > a) & (values <= b)).sum()) for a, b in zip([0, *edges], edges)]
    shown = [number(t) for t in texts(tab, ".band-rows")]
    # a value at an edge may be a bit on either side
    assert sum(shown) == len(values) and shown == pytest.approx(expected, abs=1)
    # equal widths, as far as bins allow
    assert np.diff([0, *edges]) == pytest.approx(np.full(5, edges[-1] / 5), abs=0.021)
    bars = tab.evaluate("document.querySelectorAll('.plot rect').length")
    assert bars == bins


def test_pictures_are_enlarged(tab, tmp_path):
    images, keys, pixels, labels = fixture.digit_images(60)
    records = fixture.image_records(3, keys, pixels, labels)
    latent, shown = next((r.index, r.examples) for r in records if r.examples)
    shown[0].source = "crab #2"
    write_page(records, fixture.image_meta(records, 3, 960), images, tmp_path)
    tab.open(Site(tmp_path).url(latent))
    tab.click("#top .frame")
    assert tab.evaluate("document.getElementById('zoom').open") is True
    small, large = (
        tab.evaluate(f"document.querySelector('{where} .frame').getBoundingClientRect().width")
        for where in ("#top", ".zoomed")
    )
    assert large > 2.5 * small
    facts = text(tab, "#zoom-facts")
    assert facts.startswith("activation ") and "4 × 4 patches" in facts
    # a numbered name is the caption, a file's name is not
    assert text(tab, "#zoom-title") == "crab" and facts.endswith("crab #2")
    captions = tab.evaluate(
        "Array.from(document.querySelectorAll('#top .under .data-label'), e => e.textContent)"
    )
    assert captions[:3] == ["crab", shown[1].label, shown[2].label]
    tip = "document.querySelector('#top .under .data-label').dataset.about"
    assert tab.evaluate(tip) == f"crab #2 · {shown[0].label}"
    tab.press("Escape")
    assert tab.evaluate("document.getElementById('zoom').open") is False
    # the patches of at least half the maximum have a line round them
    drawn, light = tab.evaluate(
        "Array.from(document.querySelector('#top .outline').children, p => p.getAttribute('d'))"
    )
    example = next(r for r in records if r.index == latent).examples[0]
    half = np.array(example.values).reshape(4, 4) >= 0.5 * max(
        r.max for r in records if r.index == latent
    )
    padded = np.pad(half, 1)
    edges = sum(int((padded != np.roll(padded, 1, axis)).sum()) for axis in (0, 1))
    assert drawn.count("M") == edges > 0 and light == drawn
    assert_quiet(tab, Site(tmp_path))

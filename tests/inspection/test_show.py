"""`saekit.show`: a latent as one piece of HTML, with the figures of the page and nothing that runs
or is fetched; and the tables of what the library returns."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import page_fixture as fixture
import pytest
import tiny
from made_stores import write_store
from PIL import Image

import saekit
from saekit.errors import DataError, UsageError
from saekit.inspection.card import card
from saekit.inspection.compact import rounded_share
from saekit.inspection.described import KIND_WORDS
from saekit.inspection.markup import figure, percent, visible
from saekit.inspection.meanings import LABEL, NAME, TOKEN_KINDS
from saekit.inspection.page import asset
from saekit.inspection.shown import Feature
from saekit.types import Progress

TEXTS = ["the cat sat on a mat", "a dog ran far away from it", "the dog sat on a cat and ran"] * 6


class Parsed(HTMLParser):
    """Elements, attributes and texts of a piece of HTML; raises for one that is not closed."""

    VOID = ("img",)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, store, run) of a tiny language model."""
    folder, model = tmp_path_factory.mktemp("show"), tiny.random_model("llama")
    options = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
    saekit.harvest(model, TEXTS, folder / "store", tokenizer=tiny.tokenizer(), **options)
    saekit.train(folder / "store", folder / "run", latents=32, k=4, rows=640, batch=64)
    return model, folder / "store", folder / "run"


def test_the_record_is_that_of_the_page(made, tmp_path):
    model, store, run = made
    saekit.inspect(run, store, tmp_path / "page", features="3", top=6, live=model, jsonl=True)
    (line,) = (tmp_path / "page" / "features.jsonl").read_text().splitlines()
    shown = saekit.show(run, 3, store=store, top=6, live=model)
    assert shown.record.to_json() == json.loads(line)
    assert (shown.checkpoint, shown.rows) == ("run", len(saekit.open_store(store)))
    record = shown.record
    assert repr(shown).startswith(f"Feature(3, density={record.density:.4g}, max=")
    assert "\n" not in repr(shown) and f"examples={len(record.examples)})" in repr(shown)


def test_the_card_shows_the_figures_of_the_record(made):
    model, store, run = made
    shown = saekit.show(run, 3, store=store, live=model)
    record, page = shown.record, Parsed(shown._repr_html_())
    assert page.words["h3"] == ["#3"]
    assert page.words["dt"][:2] == ["Density", "Max"]
    assert page.words["dd"][0].strip() == f"{figure(100 * record.density)} %"
    assert page.words["dd"][1] == figure(record.max)
    assert f"{record.active_rows:,} of {shown.rows:,} rows" in page.words["span"]
    # bars: their heights are the counts
    counts = record.histogram["counts"]
    bars = [attributes for tag, attributes in page.elements if tag == "rect"]
    heights = [float(bar["height"]) for bar in bars]
    assert heights == pytest.approx([100 * n / max(counts) for n in counts], abs=1e-3)
    # shaded tokens: share of the maximum, and the value
    lit = [
        (value, example)
        for example in sorted(record.examples, key=lambda e: (e.group != "top", -(e.interval or 0)))
        for at, value in enumerate(example.values)
        if value or at == example.centre
    ]
    words = [
        a for tag, a in page.elements if tag == "span" and a.get("class", "").startswith("word")
    ]
    assert len(words) == len(lit)
    for attributes, (value, _) in zip(words, lit):
        assert attributes["style"] == f"--t:{min(abs(value) / record.max, 1):.3f}"
        assert attributes["title"] == figure(value)
    near = [f"#{n['index']} " for n in record.neighbours]
    assert [word for word in page.words["span"] if word in near] == near


KINDS = {*TOKEN_KINDS, LABEL, NAME}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_card_says_the_label_of_every_kind_with_its_lift_and_what_it_raises(kind):
    (record,) = fixture.text_records([3], 64)
    meaning = {"kind": kind, "text": " sea", "count": 9, "of": 11, "coherence": 0.8, "lift": 7.849}
    page = Parsed(card(replace(record, meaning=meaning), "run", 100, {}))
    line = "".join(page.words["p"])
    assert f" {KIND_WORDS[kind]} " in line and "raises" in line
    assert "9 of 11 examples, 7.8 × chance" in page.words["span"]
    seen = " sea" in page.words["span"]  # the space of a token is a dot of its own
    assert seen == (kind not in TOKEN_KINDS)
    none_told = dict.fromkeys(("raised", "lowered", "raised_beyond", "lowered_beyond"), 0.0)
    chance = dict.fromkeys(("raised_chance", "lowered_chance"), 3.0)
    by_chance = replace(record, meaning=meaning, logit_test=none_told | chance)
    assert "raises" not in card(by_chance, "run", 100, {})
    one = by_chance.logit_test | {"raised_beyond": 1.0}
    assert "raises one token: <" in card(replace(by_chance, logit_test=one), "run", 100, {})


def test_every_kind_of_label_has_its_words_on_the_page_and_its_filter():
    assert set(KIND_WORDS) == KINDS
    (words,) = re.findall(r"const KIND = \{(.*?)\n\};", asset("gallery.js"), re.DOTALL)
    texts, images = (
        set(re.findall(r"(\w+): \"", line.partition("{")[2])) for line in words.split("\n")[1:]
    )
    assert texts == {*TOKEN_KINDS, LABEL} and images == {LABEL, NAME}
    (select,) = re.findall(r'<select id="label-kind">(.*?)</select>', asset("explorer.html"), re.S)
    assert set(re.findall(r'value="(\w+)"', select)) - {"own", "none"} == KINDS


def test_a_share_is_rounded_once():
    share = 1089 / 40_000  # 2.7225 %
    assert percent(share) == "2.723 %" and f"{share:.3%}" == "2.723%"
    assert percent(rounded_share(share)) == percent(share)
    for active in range(1, 40_000, 7):
        assert percent(rounded_share(active / 40_000)) == percent(active / 40_000)


def test_nothing_runs_and_nothing_is_fetched(made):
    model, store, run = made
    html = saekit.show(run, 3, store=store, live=model)._repr_html_()
    hostile = card(fixture.hostile_record(5), "</div><script>", fixture.ROWS, {})
    for text in (html, hostile):
        page = Parsed(text)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "iframe", "object", "form", "input", "b"}
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")]
            assert not {"href", "src", "srcset"} & attributes.keys() or (
                tag == "img" and attributes["src"].startswith("data:image/png;base64,")
            )
        style = "".join(page.words["style"])
        assert "url(" not in style and "@import" not in style
        # every rule is of the card only
        rules = re.findall(r"^([^\s/}][^{]*)\{", style, re.MULTILINE)
        assert rules and all(
            ".saekit-card" in selector for rule in rules for selector in rule.split(", .")[:1]
        )


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", " the"), ("<b>", "&lt;b&gt;"), ("\n", "↵"), ("  ", "··"), ("\u202ea", "U+202Ea"),
        ("\u200b", "U+200B"), ("\u200d", "U+200D"), ("", ""), ('"', "&quot;"), ("\ud800", "U+D800"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_seen_are_marked(token, shown):
    assert re.sub("<[^>]*>", "", visible(token)) == shown


def test_figures_have_four_digits():
    values = [0, None, 0.5, 12.3456, -3.21987, 123456.7, 0.000012345, 48.0]
    assert [figure(value) for value in values] == [
        "0", "–", "0.5000", "12.35", "−3.220", "123,500", "1.234e-05", "48.00",
    ]  # fmt: skip


def test_images_are_in_the_card_with_their_patches(digits, tmp_path):
    run = saekit.train(digits, tmp_path / "run", latents=16, k=2, rows=2000, batch=32).path
    shown = saekit.show(run, saekit.features(run, digits, sort="score", top=1)[0].index, digits)
    page = Parsed(shown._repr_html_())
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    top = [e for e in shown.record.examples if e.group == "top"]
    assert len(images) == len(shown.record.examples) and len(top) == 10
    content = base64.b64decode(images[0].partition(",")[2])
    assert content == shown.images[top[0].image]
    assert Image.open(io.BytesIO(content)).size == (8, 8)


def test_examples_as_a_frame(made):
    frames = pytest.importorskip("pandas")
    model, store, run = made
    shown = saekit.show(run, 3, store=store, live=model)
    frame = shown.to_pandas()
    assert isinstance(frame, frames.DataFrame) and len(frame) == len(shown.record.examples)
    first = shown.record.examples[0]
    assert frame["act"][0] == first.act and frame["token"][0] == first.tokens[first.centre]
    assert frame["text"][0] == "".join(first.tokens)
    rows = saekit.features(run, store, sort="score", top=4)
    table = rows.to_pandas()
    assert table["index"].tolist() == [row.index for row in rows]
    assert table["score"].tolist() == [row.score for row in rows]


def test_what_cannot_be_shown_is_said(made, tmp_path):
    _, store, run = made
    for latent in (-1, 32):
        with pytest.raises(DataError, match=r"this model has 32 \(0 to 31\)"):
            saekit.show(run, latent, store)
    with pytest.raises(UsageError, match="top=0 must be between 1 and 40"):
        saekit.show(run, 3, store, top=0)
    with pytest.raises(DataError, match=r"takes 32 values per row"):
        saekit.show(run, 3, write_store(tmp_path / "other", 200))
    model = saekit.load(run)
    model.b_enc.data[7] = -1e6
    with pytest.raises(DataError, match="feature 7 never fired") as error:
        saekit.show(model, 7, store)
    assert error.value.hint == 'features with sort="score" lists those worth reading'
    # a page says it before it is opened
    for spec, told in (("3,7", "feature 7 never fires in "), ("3", "")):
        said: list[Progress] = []
        saekit.inspect(model, store, tmp_path / spec, features=spec, progress=said.append)
        lines = " ".join(progress.message or "" for progress in said)
        assert told in lines and ("never" in lines) == bool(told)


def test_results_are_tables_in_a_notebook(made):
    _, store, run = made
    rows = saekit.features(run, store, sort="score", top=3)
    lines = repr(rows).splitlines()
    assert lines[0].split()[:3] == ["index", "act", "max"] and len(lines) == 4
    assert lines[1].startswith(str(rows[0].index))
    assert Parsed(rows._repr_html_()).words["td"][0] == str(rows[0].index)
    model = saekit.load(run)
    cells = Parsed(model._repr_html_()).words
    assert cells["th"] == ["d_in", "latents", "sparsity", "k", "parameters"]
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert cells["td"] == ["32", "32", "topk", "4", f"{weights:,}"]
    assert "Store" in Parsed(saekit.open_store(store)._repr_html_()).words["caption"]


def test_a_signed_latent_has_two_hues():
    record = next(iter(fixture.text_records([3], 64)))
    negative = replace(record.examples[0], act=-1.0, values=[-v for v in record.examples[0].values])
    edges = [-record.max, 0.0, record.max]
    signed = replace(
        record, examples=[negative], histogram={"edges": edges, "counts": [2, 3]}, bands=None
    )
    page = Parsed(Feature(signed, "run", 100)._repr_html_())
    assert any("cold" in (a.get("class") or "") for tag, a in page.elements if tag == "span")
    assert [a.get("class") for tag, a in page.elements if tag == "rect"] == ["cold", None]
    assert "Largest size" in page.words["dt"]

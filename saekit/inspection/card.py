"""A FeatureRecord as one piece of HTML, for a cell of a notebook: the elements and the colors of
the page of `inspect`, drawn here, since a cell may not run scripts and may be read long after.

Every string goes through `escape`. Style and images are inside, nothing is fetched.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from saekit.inspection.markup import figure, percent, plain, seen, visible
from saekit.inspection.output_tests import told
from saekit.inspection.page import asset, theme
from saekit.types import Example, FeatureRecord

KINDS = {"token": "on", "next": "before", "previous": "after", "label": "in"}
ONE_BY_ONE = {"raised": "raises", "lowered": "lowers"}
STRONG = 0.72  # of the maximum: the shade on which black letters are read


def card(
    record: FeatureRecord,
    checkpoint: str,
    rows: int,
    images: Mapping[str, bytes],
    notes: Sequence[str] = (),
) -> str:
    """`rows`: of the store. `images`: PNG files by `Example.image`."""
    top = [example for example in record.examples if example.group == "top"]
    parts = [
        _header(record, checkpoint),
        _stats(record, rows),
        _section("Activations", _histogram(record)),
        _section("Top activating examples", _scale(record) + _examples(top, record.max, images)),
        _intervals(record, images),
        _output_tokens(record),
        _neighbours(record),
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
    ]
    return f'<div class="saekit-card"><style>{style()}</style>{"".join(parts)}</div>'


def style() -> str:
    """The variables of the theme, for the card only, and its own rules."""
    (variables,) = re.findall(r":root \{\n(.*?)\n\}", theme(), re.DOTALL)
    named = "\n".join(line for line in variables.split("\n") if "color-scheme" not in line)
    return f".saekit-card {{{named}}}\n{asset('card.css')}"


# -- the parts of the card


def _header(record: FeatureRecord, checkpoint: str) -> str:
    meaning = record.meaning
    label = "" if record.label is None else f'<p class="label">{plain(record.label)}</p>'
    if meaning is not None:
        label += (
            f'<p class="label"><span class="badge">automatic</span> {KINDS[meaning["kind"]]}'
            f' <span class="chip">{visible(meaning["text"], meaning["kind"] != "label")}</span>'
            f' <span class="soft">{meaning["count"]} of {meaning["of"]} examples</span></p>'
        )
    return (
        f'<div class="head"><h3>#{record.index}</h3><span class="soft">{plain(checkpoint)}</span>'
        f"</div>{label}"
    )


def _stats(record: FeatureRecord, rows: int) -> str:
    of = f"{record.active_rows:,} of {rows:,} rows"
    shown = {
        "Density": None if record.density is None else f"{percent(record.density)}|{of}",
        "Active": of if record.density is None else None,
        "Largest size" if _signed(record) else "Max": figure(record.max),
        "Score": None if record.score is None else _score(record.score),
    }
    if record.hook_shares is not None:
        shares = (f"{name} {percent(share)}" for name, share in record.hook_shares.items())
        shown["Decoder norm by hook"] = " · ".join(shares)
    cells = ""
    for name, value in shown.items():
        if value is not None:
            main, _, more = value.partition("|")
            more = f' <span class="soft">{more}</span>' if more else ""
            cells += f"<div><dt>{name}</dt><dd>{plain(main)}{more}</dd></div>"
    return f'<dl class="stats">{cells}</dl>'


def _score(score: float) -> str:
    return f"{score:.2f}" if score >= 0.005 or score == 0 else "below 0.01"


def _section(title: str, content: str) -> str:
    return f"<h4>{title}</h4>{content}"


def _histogram(record: FeatureRecord) -> str:
    """Bars of the rows in each bin, their heights linear, as SVG."""
    edges, counts = record.histogram["edges"], record.histogram["counts"]
    most = max(counts, default=0)
    if not most:
        return '<p class="note">No activation was counted.</p>'
    width, bars = edges[-1] - edges[0], ""
    for low, high, count in zip(edges, edges[1:], counts):
        middle = (low + high) / 2
        shade = 0.3 + 0.7 * min(abs(middle) / record.max, 1)
        height = 100 * count / most
        cold = ' class="cold"' if middle < 0 else ""
        bars += (
            f'<rect{cold} x="{(low - edges[0]) / width * 100 + 0.15:.3f}" y="{100 - height:.3f}"'
            f' width="{max(100 / len(counts) - 0.3, 0.1):.3f}" height="{height:.3f}"'
            f' fill-opacity="{shade:.3f}"><title>{figure(low)} to {figure(high)}: {count:,}'
            "</title></rect>"
        )
    about = f"Histogram of {sum(counts):,} rows from {figure(edges[0])} to {figure(edges[-1])}"
    return (
        f'<svg class="histogram" viewBox="0 0 100 100" preserveAspectRatio="none" role="img"'
        f' aria-label="{about}">{bars}</svg><div class="axis"><span>{figure(edges[0])}</span>'
        f"<span>up to {most:,} rows per bin</span><span>{figure(edges[-1])}</span></div>"
    )


def _signed(record: FeatureRecord) -> bool:
    return record.histogram["edges"][0] < 0


def _scale(record: FeatureRecord) -> str:
    low = figure(-record.max) if _signed(record) else "0"
    ramp = "ramp signed" if _signed(record) else "ramp"
    return (
        f'<p class="scale" role="img" aria-label="Shading from {low} to {figure(record.max)}">'
        f'{low}<span class="{ramp}"></span>{figure(record.max)}</p>'
    )


def _examples(examples: Iterable[Example], largest: float, images: Mapping[str, bytes]) -> str:
    examples = list(examples)
    if not examples:
        return '<p class="note">No example.</p>'
    if examples[0].tokens is None:
        items = "".join(_image(example, largest, images) for example in examples)
        return f'<ol class="images">{items}</ol>'
    items = "".join(_text(example, largest) for example in examples)
    return f'<ol class="texts">{items}</ol>'


def _text(example: Example, largest: float) -> str:
    tokens = list(example.tokens or [""])
    if re.match(r" \S", tokens[0]):  # lines begin at one edge
        tokens = [tokens[0][1:], *tokens[1:]]
    pairs = zip(tokens, [*example.values, *[0.0] * len(tokens)])
    line = "".join(
        _token(token, value, largest, at == example.centre)
        for at, (token, value) in enumerate(pairs)
    )
    label = "" if example.label is None else f"{plain(example.label)} · "
    return (
        f'<li><div class="of"><span>{figure(example.act)}</span><span class="soft">{label}'
        f'{plain(example.source)}</span></div><p class="tokens" dir="auto">{line}</p></li>'
    )


def _token(token: str, value: float, largest: float, centre: bool) -> str:
    share = min(abs(value) / largest, 1.0) if largest else 0.0
    if not share and not centre:
        return visible(token)
    # the space before a word is not shaded
    space, word = (" ", token[1:]) if re.match(r" \S", token) else ("", token)
    names = ["word", *["cold"] * (value < 0), *["strong"] * (share > STRONG)]
    names += ["centre"] * centre
    return (
        f'{space}<span class="{" ".join(names)}" style="--t:{share:.3f}"'
        f' title="{figure(value)}">{visible(word)}</span>'
    )


def _image(example: Example, largest: float, images: Mapping[str, bytes]) -> str:
    height, width = example.grid or (1, 1)
    cells = ""
    for place, value in enumerate(example.values):
        share = min(abs(value) / largest, 1.0) if largest else 0.0
        if share:
            row, column = divmod(place, width)
            cold = ' class="cold"' if value < 0 else ""
            cells += (
                f'<rect{cold} x="{column}" y="{row}" width="1" height="1"'
                f' fill-opacity="{0.8 * share:.3f}"><title>{figure(value)}, row {row}, column'
                f" {column}</title></rect>"
            )
    name = example.label if example.label is not None else example.source
    content = base64.b64encode(images[example.image]).decode() if example.image else ""
    picture = f'<img src="data:image/png;base64,{content}" alt="{escape(seen(name))}">'
    return (
        f'<li><div class="frame" style="aspect-ratio:{width}/{height}">{picture if content else ""}'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{cells}</svg></div>'
        f'<div class="of"><span class="soft">{figure(example.act)}</span><span>{plain(name)}'
        "</span></div></li>"
    )


def _intervals(record: FeatureRecord, images: Mapping[str, bytes]) -> str:
    parts = ""
    for number, band in reversed(list(enumerate(record.bands or []))):
        examples = [example for example in record.examples if example.interval == number]
        if examples:
            name = f"{figure(band['low'])} to {figure(band['high'])}"
            parts += (
                f'<details><summary>{name} <span class="soft">{int(band["rows"]):,} rows</span>'
                f"</summary>{_examples(examples, record.max, images)}</details>"
            )
    return _section("Examples by interval", parts) if parts else ""


def _output_tokens(record: FeatureRecord) -> str:
    """The sides, or single tokens, that stand out against random directions."""
    lists = ""
    if record.logits is None:
        return ""
    for side, key in (("raised", "top"), ("lowered", "bottom")):
        count = told(record.logit_test, side)
        chips = "".join(
            f'<span class="chip" title="{figure(entry["value"])}">{visible(entry["token"], True)}'
            "</span> "
            for entry in record.logits[key][:count]
        )
        name = side if count is None else f"{ONE_BY_ONE[side]} {count} token{'s' * (count > 1)}:"
        if chips:
            lists += f'<p><span class="soft">{name}</span> {chips}</p>'
    none = '<p class="note">No better than those of a random direction.</p>'
    return _section("Output tokens", lists or none)


def _neighbours(record: FeatureRecord) -> str:
    if not record.neighbours:
        return ""
    entries: list[Any] = [
        f'<span class="chip">#{int(near["index"])} <span class="soft">{figure(near["cosine"])}'
        "</span></span> "
        for near in record.neighbours
    ]
    return _section("Nearest decoder directions", f"<p>{''.join(entries)}</p>")

"""The page of a report: one HTML file that opens from disk and loads nothing else.

No script runs: the content security policy allows the page's own style by hash and pictures inside
the file, and denies everything else. Names and labels are escaped here, in charts by
saekit.report.axes. No clock: equal inputs give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from saekit.display import finite
from saekit.inspection.page import theme
from saekit.report.images import png_data_uri

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Panel:
    """A section of the page, and its numbers, which the JSON block has in full."""

    title: str
    html: str
    numbers: dict[str, Any] = field(default_factory=dict)


def document(
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    panels: Sequence[Panel],
    numbers: dict[str, Any],
) -> str:
    """The whole file. `numbers` and those of the panels are one JSON value in <script
    type="application/json" id="numbers">."""
    report_css = resources.files("saekit.report").joinpath("assets", "report.css")
    style = theme() + report_css.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:"
    links = "".join(f'<li><a href="#{_anchor(p.title)}">{escape(p.title)}</a></li>' for p in panels)
    terms = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    body = "\n".join(
        f'<section id="{_anchor(p.title)}">\n<h2>{escape(p.title)}</h2>\n{p.html}\n</section>'
        for p in panels
    )
    every = dict(numbers)
    for panel in panels:
        every |= panel.numbers
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<dl class="facts">{terms}</dl>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<script type="application/json" id="numbers">{json_block(every)}</script>
</body>
</html>
"""


def json_block(value: Any) -> str:
    """JSON that cannot end its script element, whatever its strings contain; numbers that are not
    finite are null."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def notes(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="note">{items}</ul>' if items else ""


def picture(image: Image.Image, alt: str) -> str:
    return (
        f'<img src="{png_data_uri(image)}" width="{image.width}" height="{image.height}"'
        f' alt="{escape(alt)}">'
    )


def figure(content: str, caption: str = "") -> str:
    """`content` is the HTML of a picture or a chart."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>"


def grid(items: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(items)}</div>' if items else ""


def pictures(items: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(items)}</div>' if items else ""


def versions(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Rows of pictures with their names: (name, small print, class of the name, picture)."""
    cells = []
    for name, small, kind, content in rows:
        below = f"<small>{escape(small)}</small>" if small else ""
        cells.append(f'<div class="name {kind}">{escape(name)}{below}</div><div>{content}</div>')
    return f'<div class="versions">{"".join(cells)}</div>'


def cell(text: str, kind: str = "", extra: str = "") -> str:
    """One <td>; `extra` is HTML after the text."""
    inside = escape(text)
    if kind in ("best", "other", "same"):
        inside = f'<span class="{kind}">{inside}</span>'
    opening = '<td class="left">' if kind == "left" else "<td>"
    return f"{opening}{inside}{extra}</td>"


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: int = 1) -> str:
    """rows: (class of the row, its cells as `cell` makes them); the first `left` headings are
    left-aligned."""
    headings = "".join(
        f'<th scope="col"{" class=left" if i < left else ""}>{escape(name)}</th>'
        for i, name in enumerate(header)
    )
    head = f"<thead><tr>{headings}</tr></thead>"
    body = "".join(f'<tr class="{kind}">{"".join(cells)}</tr>' for kind, cells in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())

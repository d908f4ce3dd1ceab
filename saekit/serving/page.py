"""The page of the server: the style and the drawing functions are those of the page of `inspect`
(saekit/inspection/assets), so that a token looks the same in both."""

from __future__ import annotations

import html
from importlib import resources

from saekit.inspection.page import asset, theme

# Of the explorer, then of this page. In this order they are one script in one closure.
SHARED = (
    *("format.js", "data.js", "explain.js", "bar.js", "charts.js", "text.js", "images.js"),
    *("patches.js", "search.js"),
)
OWN = (
    *(
        "ask.js",
        "tokens.js",
        "patches.js",
        "panel.js",
        "answerable.js",
        "find.js",
        "edits.js",
        "controls.js",
    ),
    *("steer.js", "serve.js"),
)


def page_files(title: str) -> dict[str, tuple[str, str]]:
    """Name -> (content, media type)."""
    script = "\n".join([*map(asset, SHARED), *map(_own, OWN)])
    return {
        "index.html": (_own("serve.html").replace("{{title}}", html.escape(title)), "text/html"),
        "page.css": (theme() + asset("explorer.css") + _own("serve.css"), "text/css"),
        "page.js": (f"(() => {{\n{script}}})();\n", "text/javascript"),
    }


def _own(name: str) -> str:
    return resources.files("saekit.serving").joinpath("assets", name).read_text(encoding="utf-8")

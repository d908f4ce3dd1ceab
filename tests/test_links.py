"""Links and anchors of every Markdown file, and the pages of the site (mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import website
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "benchmarks", "examples", "saekit", "tests")
PAGES = sorted(ROOT.glob("*.md")) + [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))
]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
TARGET = re.compile(r'\]\(([^)\s]+)[^)]*\)|(?:href|src)="([^"]+)"|^\[[^\]]+\]: (\S+)', re.MULTILINE)


def prose(text: str) -> str:
    """The text without blocks of code."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    return {website.slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(text), re.M)}


def broken(page: Path, text: str) -> list[str]:
    """The targets of a page that lead nowhere."""
    faults = []
    for groups in TARGET.findall(CODE.sub("", prose(text))):
        target = "".join(groups)
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        if not linked.exists() or name.startswith("/"):
            faults.append(target)
        elif anchor:
            there = text if not name else linked.read_text()
            if linked.suffix != ".md" or anchor not in anchors(there):
                faults.append(target)
    return faults


def nav_pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry if isinstance(entry, list) else entry.values()
    return [page for value in values for page in nav_pages(value)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert broken(page, page.read_text()) == []


def test_the_pages_are_all_read():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= names
    assert {"docs/guide.md", "docs/notes/log.md"} <= names


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Of k, *and* `--rows`\n```sh\n# No heading\n```\n")
    text = (
        "## Here\n[a](other.md#of-k-and---rows) [b](#here) [c](https://x.y/#z) `[d](none.md)`\n"
        "```\n[e](none.md)\n```\n"
        '[f](none.md) ![g](none.png) [h](other.md#no-heading) [i](#there) <a href="none.py">j</a>'
    )
    (tmp_path / "page.md").write_text(text)
    assert broken(tmp_path / "page.md", text) == [
        "none.md", "none.png", "other.md#no-heading", "#there", "none.py",
    ]  # fmt: skip


def test_every_page_is_in_the_navigation_once():
    listed = nav_pages(SITE["nav"])
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_the_site_loads_nothing_from_the_network():
    """A font, script or style by its URL. What the theme itself loads is turned off."""
    assert SITE["theme"]["font"] is False and "repo_url" not in SITE
    scripts = SITE["extra"]["polyfills"] + SITE.get("extra_javascript", [])
    assert all((ROOT / "docs" / script).is_file() for script in scripts)
    assert any("iframe-worker" in script for script in scripts), "else the plugin adds a URL"
    assert "://" not in (ROOT / "mkdocs.yml").read_text()


def test_lists_and_tables_begin_after_a_blank_line():
    """Python-Markdown takes them for a part of the paragraph otherwise, unlike code hosts."""
    item, faults = re.compile(r"(?:[-*]|\d+\.) "), []
    for page in (ROOT / "docs").rglob("*.md"):
        for block in prose(website.for_site(page.read_text(), page.name)).split("\n\n"):
            first, *lines = block.strip("\n").split("\n")
            starts = item.match(first) or first.startswith("|")
            if not starts and any(item.match(line) or line.startswith("|") for line in lines):
                faults.append(f"{page.name}: {first}")
    assert faults == []


def test_a_page_becomes_one_of_the_site():
    text = "[a](b.md#c) [e](../examples) [r](../README.md#top)\n<!-- table x -->\n| `a\\|b` \\| c |"
    assert website.for_site(text, "page.md") == (
        '[a](b.md#c) <a href="../examples">e</a> <a href="../README.md#top">r</a>\n\n'
        "| `a|b` \\| c |"
    )
    assert website.for_site("[d](../page.md)", "notes/log.md") == "[d](../page.md)"

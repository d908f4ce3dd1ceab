"""How these pages become a site (mkdocs.yml): `make docs` builds it, and the same files are read on
a code host. Headings have the same anchors in both, links to files outside docs/ lead to them from
site/ too, which lies beside docs/."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
COMMENT = re.compile(r"^<!--.*-->$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
FENCE_NOTE = re.compile(r"^(```\w+) [\w-]+$", re.MULTILINE)  # for tests


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, from its Markdown or its text."""
    text = LINK.sub(r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", separator)


def leads_out(page: str, target: str) -> bool:
    """Whether a link of a page, both as paths, leaves the folder of all pages."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return "://" not in target and path.startswith("../")


def for_site(markdown: str, page: str) -> str:
    """The text of a page, as Python-Markdown needs it."""

    def outside(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        if not leads_out(page, target):
            return match[0]
        return f'<a href="{target}{anchor}">{text}</a>'  # mkdocs refuses it as a link

    def whole_pipes(line: str) -> str:
        """A pipe in code needs no backslash, and would keep it."""
        return CODE.sub(lambda code: code[0].replace("\\|", "|"), line)

    text = FENCE_NOTE.sub(r"\1", COMMENT.sub("", LINK.sub(outside, markdown)))
    lines = text.split("\n")
    return "\n".join(whole_pipes(line) if line.startswith("|") else line for line in lines)


# -- what mkdocs calls


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return for_site(markdown, page.file.src_uri)

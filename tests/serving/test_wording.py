"""Errors and hints as the page writes them: its own fields, no flags and no names of Python."""

from __future__ import annotations

import re
from importlib import resources

from saekit.errors import DataError, UsageError, opt
from saekit.serving.wording import FIELDS, fault, page_word


def test_options_are_the_fields_of_the_page():
    cause, hint = UsageError(
        f"{opt('max_new_tokens', 0)} must be at least 1", f"drop {opt('chat')}"
    ).spelled(page_word)
    assert (cause, hint) == ("“Tokens” 0 must be at least 1", "drop “Chat”")
    assert fault(DataError(f"{opt('token', ' a')} or {opt('near')}")) == "“token: a” or “near:”"
    two = UsageError(f"{opt('token', 'cat', 'Cat')}: capitals count")
    assert fault(two) == "“token:cat” or “token:Cat”: capitals count"
    assert fault(UsageError(f"{opt('raw', True)} takes")) == "“Raw strengths” takes"
    assert fault(UsageError(f"start with {opt('store')}")) == "start with the option store"
    assert fault(UsageError(opt("max_density", 2))) == "max density 2"


def test_the_page_has_these_fields():
    assets = resources.files("saekit.serving").joinpath("assets")
    names = ("serve.html", "steer.js")
    page = "".join(assets.joinpath(name).read_text(encoding="utf-8") for name in names)
    for name in FIELDS.values():
        assert re.search(rf'[>"] ?{re.escape(name)}[<" ]', page), name

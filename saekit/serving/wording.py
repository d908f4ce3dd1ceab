"""Options in the words of the page, for errors and hints: the names of its fields, what is typed
into its box, and the options with which its server was started."""

from __future__ import annotations

from typing import Any

from saekit.errors import SaekitError, literal

# As serve.html and steer.js write them.
FIELDS = {
    "prompt": "Prompt",
    "max_new_tokens": "Tokens",
    "temperature": "Temperature",
    "seed": "Seed",
    "positions": "Where",
    "error": "Keep the error",
    "raw": "Raw strengths",
    "chat": "Chat",
    "targets": "Target",
    "dose": "Compare with controls",
    "by": "Order",
    "not_bos": "not BOS",
}
BOX = ("token", "label", "near", "explained")
STARTED_WITH = ("store", "page", "model", "device")


def page_word(name: str, values: list[Any]) -> str:
    """The style of the page, for saekit.errors.spelled: “Temperature” -1, “near:12”, the option
    store."""
    shown = [value for value in values if value is not True]
    if name in BOX:
        return " or ".join(f"“{name}:{value}”" for value in shown) or f"“{name}:”"
    if name in FIELDS:
        called = f"“{FIELDS[name]}”"
    elif name in STARTED_WITH:
        called = f"the option {name}"
    else:
        called = name.replace("_", " ")
    return " ".join([called, *(repr(v) if isinstance(v, str) else literal(v) for v in shown)])


def fault(error: SaekitError) -> str:
    """What is wrong, without the hint."""
    return error.spelled(page_word)[0]

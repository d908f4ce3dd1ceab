"""docs/troubleshooting.md quotes messages as the code has them."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text()
# what a table or a paragraph quotes: code with a space in it that is not a command
QUOTED = sorted(
    {
        quote
        for quote in re.findall(r"`([^`\n]+)`", TEXT)
        if " " in quote
        and not re.match(r"(saekit|python|git|hf|pip|unset|SAEKIT_\w+=1) ", quote)
        and not quote.startswith("--")
    }
)


@functools.cache
def messages() -> list[str]:
    """Every string of the code, with ... for what is put into it."""
    texts = []
    for folder in ("saekit", "kernels", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (
                        part.value if isinstance(part, ast.Constant) else "..."
                        for part in node.values
                    )
                    texts.append("".join(map(str, parts)))
    return texts


def is_of(quote: str, message: str) -> bool:
    """Whether the parts of a quote stand in a message in their order."""
    parts = [part.strip() for part in quote.split("...") if part.strip()]
    pattern = ".*?".join(re.escape(part) for part in parts)
    return re.search(pattern, message, re.DOTALL) is not None


@pytest.mark.parametrize("quote", QUOTED)
def test_a_message_is_one_of_the_code(quote):
    assert any(is_of(quote, message) for message in messages())


def test_messages_are_quoted_at_all():
    assert len(QUOTED) > 30
    assert not is_of("the loss exploded at step ...", "the loss diverged at step ...: ...")

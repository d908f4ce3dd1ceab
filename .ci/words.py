"""Fail on phrases that are not the English of this project: .ci/words.toml lists them, and the
files to check."""

from __future__ import annotations

import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`]+`|\]\([^)\s]+\)", re.DOTALL | re.MULTILINE)
CODE_TOKENS = {
    tokenize.COMMENT,
    tokenize.STRING,
    getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING),
}


def _blank(code: re.Match[str]) -> str:
    """A code span as one word of no letters, a block or the target of a link as spaces; as long as
    before, with its line ends."""
    is_span = code.group().startswith("`") and not code.group().startswith("```")
    return re.sub(r"[^\n]", "·" if is_span else " ", code.group())


def spoken(text: str, is_code: bool) -> str:
    """The part of a file that is written for people, in its place: the rest is blank."""
    if not is_code:
        return CODE.sub(_blank, text)
    rows = [" " * len(line) for line in text.splitlines()]
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in CODE_TOKENS:
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1):
            begin, stop = start if row == first else 0, end if row == last else len(lines[row - 1])
            words = lines[row - 1][begin:stop].replace("#", " ")
            rows[row - 1] = rows[row - 1][:begin] + words + rows[row - 1][stop:]
    return "\n".join(rows)


def hits(text: str, phrases: list[dict], is_code: bool = False) -> Iterator[tuple[int, str, str]]:
    """(line, phrase found, what to write) for every phrase in `text`."""
    prose = spoken(text, is_code)
    one_line = prose.replace("\n", " ")  # same length, so that positions stay
    for phrase in phrases:
        if is_code and phrase.get("spelling"):
            continue
        for match in re.finditer(phrase["find"].replace(" ", " +"), one_line, re.IGNORECASE):
            line = prose.count("\n", 0, match.start()) + 1
            yield (
                line,
                " ".join(text[match.start() : match.end()].replace("#", " ").split()),
                phrase["write"],
            )


def main(extra: list[str]) -> int:
    """Check the listed files, or the Python files named on the command line."""
    listed = tomllib.loads((ROOT / ".ci" / "words.toml").read_text())
    files = [
        (path, kind == "code")
        for kind in ("prose", "code")
        for name in listed[kind]
        for path in sorted(ROOT.glob(name))
    ]
    if extra:
        files = [(Path(name).resolve(), name.endswith(".py")) for name in extra]
    failed = 0
    for path, is_code in files:
        for line, phrase, better in sorted(hits(path.read_text(), listed["phrase"], is_code)):
            print(f"{path.relative_to(ROOT)}:{line}: '{phrase}': write {better}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The commands of the pages below, and what they print: `python docs/guide.py [PAGE...]` runs those
of each page in a new folder and writes their output into it. tests/test_guide.py and
tests/test_chapters.py compare the two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PAGE, CHOOSING, VISION = (
    Path(__file__).with_name(name) for name in ("guide.md", "choosing.md", "vision.md")
)
BLOCK = re.compile(
    r"^```(sh|python)(?: (hub))?\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
MORE = "..."


@dataclass(frozen=True)
class Block:
    """A command block. quoted: the output that the page shows below it, or None; where its last
    line is MORE, the page shows the beginning only. hub: it names models of the hub, which only
    the tests have, as small random ones."""

    language: str
    source: str
    quoted: str | None
    hub: bool = False


def blocks(page: str) -> list[Block]:
    return [
        Block(language, source, quoted, hub is not None)
        for language, hub, source, quoted in (match.groups() for match in BLOCK.finditer(page))
    ]


def run(block: Block, folder: Path, hub_cache: Path | None = None) -> str:
    """What the block prints on stdout, with spaces at line ends removed. Raises RuntimeError where
    it fails."""
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = {} if hub_cache is None else {"HF_HUB_CACHE": str(hub_cache)}
    done = subprocess.run(
        [*programs[block.language], block.source],
        cwd=folder,
        env=os.environ | cache | {"PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{block.source}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def shown(block: Block, output: str) -> str:
    """The part of the output that the page shows for this block."""
    assert block.quoted is not None
    quoted = block.quoted.splitlines()
    if quoted[-1:] != [MORE]:
        return output
    return "".join(f"{line}\n" for line in [*output.splitlines()[: len(quoted) - 1], MORE])


def main(names: list[str]) -> None:
    for path in map(Path, names) if names else (PAGE, CHOOSING, VISION):
        page = path.read_text()
        with tempfile.TemporaryDirectory() as folder:
            for block in blocks(page):
                if block.hub:
                    continue
                output = run(block, Path(folder))
                if block.quoted is not None:
                    old = f"{block.source}```\n\n```text\n{block.quoted}```"
                    new = f"{block.source}```\n\n```text\n{shown(block, output)}```"
                    page = page.replace(old, new)
        path.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])

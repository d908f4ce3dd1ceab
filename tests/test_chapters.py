"""The commands of docs/choosing.md, vision.md and install.md: they run from top to bottom, and
print what the pages show. In this process, where that is possible: a command in its own takes
seconds to import torch."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import guide
import pytest
from command import saekit
from made_hub import put_clip, put_dinov2, put_photos
from test_guide import assert_same

DOCS = Path(guide.__file__).parent
INSTALL = DOCS / "install.md"
CHAPTERS = (guide.CHOOSING, guide.VISION, INSTALL)
CODE = re.compile(r"^```sh.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def output_of(block: guide.Block, folder: Path, capsys) -> str:
    """As guide.run; a command of saekit is called, not started."""
    lines = block.source.splitlines()
    if block.language != "sh" or block.hub:
        return guide.run(block, folder, folder / "hub")
    printed = ""
    for line in lines:
        if line.startswith("saekit "):
            status, out, err = saekit(capsys, *shlex.split(line, comments=True)[1:])
            assert status == 0, f"{line}\n{err}"
            printed += "".join(f"{text.rstrip()}\n" for text in out.splitlines())
        else:
            printed += guide.run(guide.Block("sh", line, None), folder)
    return printed


@pytest.mark.slow  # trains a few dictionaries of digits: 20 s together
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_the_commands_print_what_the_page_shows(path, tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    blocks = guide.blocks(path.read_text())
    if any(block.hub for block in blocks):
        put_clip(tmp_path / "hub")
        put_dinov2(tmp_path / "hub")
        put_photos(tmp_path / "photos", 16)
    for block in blocks:
        output = output_of(block, tmp_path, capsys)
        if block.quoted is not None:
            assert_same(block.quoted, guide.shown(block, output))
    if path == guide.CHOOSING:
        said = re.search(r"It prints fvu ([\d.]+), ([\d.]+) and ([\d.]+)", path.read_text())
        members = json.loads((tmp_path / "widths" / "sweep.json").read_text())["members"]
        fvu = [member["metrics"]["fvu"] for member in members]
        assert fvu == pytest.approx([float(figure) for figure in said.groups()], rel=0.05)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_the_blocks_are_all_run(path):
    """Nothing on the page is a command that a test does not see."""
    text = path.read_text()
    blocks = guide.blocks(text)
    fences = re.findall(r"^```(\w+)", text, re.MULTILINE)
    assert len(blocks) == fences.count("sh") + fences.count("python") > 0
    assert set(fences) <= {"sh", "python", "text"}


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line
            for path in DOCS.rglob("*.md")
            for text in CODE.findall(path.read_text())
            for line in text.replace("\\\n", " ").splitlines()
            if line.startswith("saekit ")
        }
    ),
)
def test_every_flag_of_a_command_is_one(line, capsys):
    """Without running it: help is shown once all flags were read."""
    arguments = shlex.split(line, comments=True)[1:]
    status, out, err = saekit(capsys, *arguments, "--help")
    assert status == 0 and out.startswith("Usage: saekit"), err

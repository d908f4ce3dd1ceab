"""AGENTS.md: its commands run, and print the keys that it lists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from command import saekit
from made_language import CTX, made_language

PAGE = (Path(__file__).parents[1] / "AGENTS.md").read_text()
(BLOCK,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line)[1:] for line in BLOCK.splitlines()]
KEYS = {
    verb: (value.split()[0].strip(","), re.sub(r" \(.*?\)", "", keys).split(", "))
    for verb, value, keys in re.findall(
        r"^\| (\w+) \| ((?:object|list).*?) \| (.*) \|$", PAGE, re.M
    )
}
# The commands as they stand, with a small model and words that it knows.
SMALL = {
    "embedded:smollm2-135m": "{model}",
    "embedded:pydocs": "{text}",
    "blocks.9": "blocks.1",
    "4000": "700",
    "1024": "64",
    "16": "4",
    " file": "cat",
    "The file could not be opened": "cat sat",
    "The file": "the cat",
    "Open the": "the",
}


def test_every_command_of_the_block_has_its_keys():
    assert [command[0] for command in COMMANDS] == list(KEYS)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    made = made_language(folder / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield lambda capsys, command: saekit(
            capsys,
            *(SMALL.get(word, word).format(model=made.model, text=made.text) for word in command),
            *(["--ctx", CTX] if command[0] == "harvest" else []),
        )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_prints_one_value_with_these_keys(printed, capsys, command):
    status, out, err = printed(capsys, command)
    assert status == 0, err
    value = json.loads(out)
    kind, keys = KEYS[command[0]]
    assert {"object": dict, "list": list}[kind] is type(value)
    assert set(keys) <= set(value if kind == "object" else value[0])

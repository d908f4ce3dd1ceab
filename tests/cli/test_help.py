"""Help pages: what matters first, all on request, in the terminal's width; what shells complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from command import saekit
from saekit_cli import train as train_verb
from saekit_cli.app import VERBS
from saekit_cli.command import options
from saekit_cli.help_page import ALL, folded

FLAG = re.compile(r"^  (?:-\w, )?(--[\w-]+)", re.MULTILINE)
LONG = [name for name, verb in VERBS.items() if getattr(verb, "KEY", None)]


def flags(page: str) -> list[str]:
    """Those that the page explains, in its order."""
    return FLAG.findall(page.partition("\nMore:")[0])


def helped(*arguments: str, **environment: str) -> str:
    """What a fresh process writes, as a pipe gets it."""
    command = [sys.executable, "-m", "saekit_cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert done.stderr == ""
    return done.stdout


def test_the_help_of_train_shows_eight_flags_and_where_the_others_are(capsys):
    _, page, _ = saekit(capsys, "train", "--help")
    eight = ["--model", "--sparsity", "--expansion", "--k", "--rows", "--lr"]
    assert flags(page) == [*eight, "--resume", "--overwrite"]
    every = len([o for o in options(train_verb, []).values() if not o.doc.hidden])
    rest = page.partition("\nMore:")[2]
    assert re.search(rf"{ALL} +Show {every - 2 - 8} more options: Model, Training", rest)
    assert "--model NAME --help" in rest


def test_help_all_shows_every_option_under_its_topic(capsys):
    status, page, _ = saekit(capsys, "train", ALL)
    shown = [o for o in options(train_verb, []).values() if not (o.doc.hidden or o.doc.positional)]
    assert status == 0 and set(flags(page)) == {*(o.flag for o in shown), "--help"}
    topics = re.findall(r"^(\w.*):$", page, re.MULTILINE)
    assert topics == [
        *("Arguments", "Model: sae --sparsity topk", "Training", "Data", "Run"),
        *("Common options", "Examples"),
    ]


@pytest.mark.parametrize(
    ("arguments", "present", "absent"),
    [
        (("--model", "vae"), {"--beta", "--hidden", "--latents"}, {"--k", "--schedule"}),
        (("--sparsity", "gated"), {"--target-l0", "--coef", "--expansion"}, {"--k", "--aux-k"}),
        (("--sparsity", "topk"), {"--k", "--k-start", "--k-anneal"}, {"--aux-k"}),
    ],
)
def test_a_model_or_variant_adds_its_own_options(capsys, arguments, present, absent):
    found = set(flags(saekit(capsys, "train", *arguments, "--help")[1]))
    assert present <= found and not absent & found


@pytest.mark.parametrize("verb", LONG)
def test_a_short_help_shows_what_it_says_and_names_the_rest(capsys, verb):
    known = options(VERBS[verb], [])
    assert set(VERBS[verb].KEY) <= known.keys()
    _, page, _ = saekit(capsys, verb, "--help")
    short, rest = flags(page), page.partition("\nMore:")[2]
    every = set(flags(saekit(capsys, verb, ALL)[1])) - {"--help"}
    assert len(short) <= 9 and set(short) < every
    counted = re.search(r"Show (\d+) more options", rest)
    named = set(re.findall(r"--[\w-]+", rest.partition("Show also:")[2].partition("Examples:")[0]))
    assert named in (set(), every - set(short))
    assert len(every) - len(short) == (int(counted[1]) if counted else len(named))


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - set(LONG)))
def test_a_help_that_is_short_anyway_shows_everything(capsys, verb):
    _, page, _ = saekit(capsys, verb, "--help")
    assert "\nMore:" not in page and len(flags(page)) <= 10
    assert saekit(capsys, verb, ALL)[1] == page


@pytest.mark.parametrize("columns", [74, 80])
def test_no_flag_is_cut_in_two_at_the_end_of_a_line(columns):
    page = helped("features", "--help", COLUMNS=str(columns), NO_COLOR="1")
    assert (
        not re.search(r"--?\w[\w-]*-$", page, re.MULTILINE)
        and "\N{NON-BREAKING HYPHEN}" not in page
    )


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_page_is_as_wide_as_the_terminal_and_plain_in_a_pipe(columns):
    page = helped("harvest", "--help", COLUMNS=str(columns), NO_COLOR="1")
    widths = [len(line) for line in page.splitlines()]
    assert max(widths) <= columns and "\x1b" not in page
    # texts use the width: none is wrapped at 200 columns, many are at 60
    count = {60: 55, 80: 45, 200: 30}[columns]
    assert abs(len(widths) - count) <= 10
    assert max(widths) > 0.6 * columns


def test_examples_stand_one_on_a_line_and_can_be_pasted():
    for verb in VERBS.values():
        for example in verb.EXAMPLES:
            assert folded(example, 500) == [example]
            for width in (76, 100):
                rows = folded(example, width)
                assert all(len(row) + 2 <= width for row in rows), rows
                pasted = "\n".join(rows).replace("\\\n", "")
                words = [shlex.split(text, comments=True) for text in (pasted, example)]
                assert words[0] == words[1]


def test_a_flag_stays_with_its_value_where_an_example_is_folded():
    assert folded("saekit steer runs/a --prompt 'The list is' --dose -8:8:9 --chat", 40) == [
        "saekit steer runs/a \\",
        "    --prompt 'The list is' \\",
        "    --dose -8:8:9 --chat",
    ]


# -- shells


@pytest.fixture
def completed(capsys, monkeypatch):
    """What bash offers after some words."""

    def run(words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        monkeypatch.setenv("_SAEKIT_COMPLETE", "complete_bash")
        with pytest.raises(SystemExit):
            saekit(capsys)
        out, err = capsys.readouterr()
        assert err == ""
        return out.splitlines()

    return run


def test_shells_complete_commands_flags_and_values(completed):
    assert completed("saekit ") == list(VERBS)
    assert completed("saekit at") == ["attribute", "attack"]
    assert completed("saekit train --target-") == ["--target-store"]
    assert completed("saekit train --sparsity l1 --target-") == ["--target-l0", "--target-store"]
    assert completed("saekit train --model u") == ["unet"]
    assert completed("saekit train --schedule ") == ["constant", "linear", "cosine"]
    assert completed("saekit models ga") == ["gan", "gated"]


def test_completion_of_words_that_make_no_sense_says_nothing(completed):
    assert completed("saekit train --model nonsense --sched") == ["--schedule"]
    assert completed("saekit nonsense --s") == ["--show-completion"]
    assert [line for line in completed("saekit evaluate ru") if line] == []  # files, by the shell


def test_the_script_of_a_shell_can_be_shown():
    assert "complete -o default -F" in helped(_SAEKIT_COMPLETE="source_bash")

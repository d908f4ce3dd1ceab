"""Progress bars: shown where somebody watches, silent everywhere else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys

import pytest

import saekit
import saekit.progress as progress_module
from saekit.interop import hub
from saekit.progress import Bars, is_interactive, reporter, silent
from saekit.public import public
from saekit.types import Progress

REPORT = (
    "from saekit.progress import reporter; from saekit.types import Progress; shown = reporter();"
    " call = shown.__enter__(); call(Progress('train', 256, 512)); call(Progress('train', 512, 512,"
    " figures={'fvu': 0.5})); shown.__exit__(None, None, None); print('done', call)"
)


def on_a_terminal(*arguments: str, typed: str = "", until: str = "") -> str:
    """What Python writes to a pseudo-terminal, as a user sees it; `until`: the text after which
    the prompt is left."""
    main, other = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=other, stdout=other, stderr=other, close_fds=True,
        env=environment | {"TERM": "dumb", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(other)
    if typed:
        os.write(main, f"{typed}\n".encode())
    seen = b""
    while select.select([main], [], [], 60)[0]:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the process has ended
            break
        if until and re.search(until.encode(), seen):
            os.write(main, b"exit()\n")
            until = ""
    assert process.wait(60) == 0
    os.close(main)
    return seen.decode()


def test_at_a_prompt_there_is_a_bar():
    seen = on_a_terminal("-i", "-q", typed=REPORT, until="done <")
    assert re.search(r"train: +100%\|.*\| 512/512 .*rows/s, fvu=0.5000\]", seen)


def test_a_script_is_silent_even_on_a_terminal():
    assert on_a_terminal("-c", REPORT).startswith("done <function silent")


def test_tests_and_pipes_are_silent(store, capfd, monkeypatch):
    assert not is_interactive()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert not is_interactive()  # stderr is a file of pytest
    saekit.train(store, latents=16, k=2, rows=512, batch=128)
    assert capfd.readouterr() == ("", "")


def reports(figures=None) -> list[Progress]:
    return [
        Progress("harvest", 50, 200),
        Progress("harvest", 0, 0, message="a note"),
        Progress("harvest", 200, 200),
        Progress("train", 20_000, 40_000, figures=figures or {}),
    ]


def test_each_phase_has_a_bar_and_messages_their_lines(capsys):
    with Bars() as bars:
        for report in reports({"fvu": 0.51234, "l0": 32.0, "dead": None, "else": 1.0}):
            bars(report)
    out, err = capsys.readouterr()
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip()]
    assert out == "" and "note    a note" in lines
    assert any("harvest: 100%" in line and "200/200" in line for line in lines)
    last = lines[-1]
    assert last.startswith("train:  50%") and "20.0k/40.0k" in last
    assert "fvu=0.5123, l0=32.0" in last and "else" not in last and "dead" not in last


def test_the_bars_end_when_the_work_fails(capsys):
    with pytest.raises(RuntimeError), reporter(True) as progress:
        progress(Progress("train", 1, 10))
        raise RuntimeError
    assert capsys.readouterr().err.endswith("\n")  # a prompt after it has a line of its own


def test_what_a_caller_gives_as_progress():
    seen = []
    with reporter(seen.append) as progress:
        progress("anything")
    assert seen == ["anything"]
    for given in (False, None):
        with reporter(given) as progress:
            assert progress is silent
    with reporter(True) as progress:
        assert isinstance(progress, Bars)


def test_what_only_downloads_shows_a_bar_too(capsys, monkeypatch):
    def fetched(name: str) -> str:
        for done in (10, 20_000):
            hub._report.get()(Progress("download", done, 20_000, "bytes"))
        return name

    called = public(fetched)
    assert called("a") == "a" and capsys.readouterr().err == ""
    monkeypatch.setattr(progress_module, "is_interactive", lambda: True)
    assert called("a") == "a"
    assert "download: 100%" in (err := capsys.readouterr().err) and "B/s" in err


def test_public_functions_take_a_callback_a_bool_or_nothing(store, capsys):
    small = dict(latents=16, k=2, rows=512, batch=128)
    seen: list[Progress] = []
    saekit.train(store, **small, progress=seen.append)
    assert {p.phase for p in seen} == {"train"} and capsys.readouterr().err == ""
    saekit.train(store, **small, progress=False)
    assert capsys.readouterr().err == ""
    saekit.train(store, **small, progress=True)
    assert "train: 100%" in capsys.readouterr().err

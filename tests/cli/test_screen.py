"""What reaches the terminal: lines no wider than it, characters that its encoding lacks, numbers as
they are meant."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
from saekit_cli import screen
from saekit_cli.command import number_list

from saekit.errors import SaekitError, UsageError
from saekit.inspection.records import check_features
from saekit.types import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (12, ""),
        (20, "eta"),
        (60, "eta loss"),
        (80, "eta loss fvu"),
        (200, "eta loss fvu l0 dead rows/s #"),
    ],
)
def test_a_progress_line_has_what_fits_the_terminal(monkeypatch, columns, shown):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    figures = {"loss": 123.4, "fvu": 0.1234, "l0": 32.0, "dead": 0.01, "rows_per_s": 9e5}
    screen.Reporter()(Progress("train", 12_345_678, 123_456_789, figures=figures))
    line = terminal.getvalue().removeprefix("\r\x1b[2K")
    assert line.startswith("train") and len(line) < columns
    parts = ("eta", "loss", "fvu", "l0", "dead", "rows/s", "#")
    assert " ".join(part for part in parts if part in line) == shown
    assert ("12,345,678/123,456,789 rows" in line) == (columns >= 60)


def test_a_log_gets_a_line_every_ten_seconds_whatever_the_phases(monkeypatch):
    log, now = io.StringIO(), [100.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with screen.Reporter() as reporter:
        for second in range(35):  # seven phases of five seconds, all of which end
            now[0] = 100.0 + second
            phase, done = divmod(second, 5)
            reporter(Progress(f"phase{phase}", (done + 1) * 10**9, 5 * 10**9))
    lines = log.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["phase2", "phase4", "phase6"]
    assert all(len(line) < 40 and "#" not in line for line in lines)


def test_a_bar_ends_full_however_short_its_phase(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(screen.time, "monotonic", lambda: 5.0)
    monkeypatch.setenv("COLUMNS", "80")
    with screen.Reporter() as reporter:
        for done in range(1, 4):
            reporter(Progress("scan", done, 3))
    first, last = terminal.getvalue().removeprefix("\r\x1b[2K").split("\r\x1b[2K")
    assert "1/3" in first and "3/3" in last and "#" * screen.BAR in last and last.endswith("\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    screen.take_any_encoding()
    print("漢 a")
    assert raw.getvalue() == b"\\u6f22 a\n"


@pytest.mark.parametrize(
    "text", ["٣", "8,²", "8,,16", "8,", "", " ", "1_0", "8;16", "0x8", "-8", "8.0", "１"]
)
def test_numbers_of_k_are_ascii_digits_with_commas(text):
    with pytest.raises(UsageError, match=r"^k="):
        number_list("k", text)


def test_numbers_with_blanks_around_them_are_read():
    assert number_list("k", "8, 16 ,32") == (8, 16, 32)
    assert check_features(" 4 , 7-9", 100) == [4, 7, 8, 9]


@pytest.mark.parametrize(
    "spec",
    [
        "³",
        "2-³",
        "४",
        "top:४",
        "7-",
        "-7",
        "9-2",
        "2,,3",
        "",
        " ",
        "1_0",
        "top:",
        "top:0",
        "top:-3",
        "all,x",
        "2e1",
        "1" * 5000,
    ],
)
def test_features_that_are_no_numbers_are_refused_in_words(spec):
    with pytest.raises(SaekitError, match="write 0-255"):
        check_features(spec, 10**6)


def test_json_has_null_for_what_is_no_number(capsys):
    screen.print_json({"perplexity": [math.inf, -math.inf, math.nan, 2.5], "tokens": (1, "a")})
    written = capsys.readouterr().out
    assert json.loads(written) == {"perplexity": [None, None, None, 2.5], "tokens": [1, "a"]}
    assert "Infinity" not in written

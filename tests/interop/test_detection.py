"""The content of the files decides the format, and exactly one module recognizes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_formats import WRITERS

from saekit.interop.opening import FORMATS, recognized


def test_every_format_has_a_fixture():
    assert WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", WRITERS)
def test_exactly_one_module_recognizes_each_fixture(tmp_path, format):
    for number, write in enumerate(WRITERS[format]):
        path = write(tmp_path / str(number))
        assert [name for name in FORMATS if FORMATS[name].recognizes(path)] == [format]
        assert recognized(path) == format


def test_files_of_no_format_are_recognized_by_none(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("W_enc")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "config.json", tmp_path / "absent"):
        assert recognized(path) is None
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", "/", ""):
        assert recognized(Path(name)) is None

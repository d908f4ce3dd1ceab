"""Paths as a shell leaves them, and terminals of any encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_stores import write_store
from saekit_cli import app
from saekit_cli.settings import expand

import saekit
from saekit.options import options_of
from saekit.training.config import TrainConfig


def status_of(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        app.main([str(each) for each in arguments])
    return ended.value.code


def test_an_error_is_told_on_a_latin_terminal():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    command = [sys.executable, "-m", "saekit_cli", "evaluate", "прогон", "--store", "хранилище"]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="latin-1", check=False
    )
    assert (
        process.returncode == 4 and process.stderr.startswith("error  ") and "\\u" in process.stderr
    )


def test_home_is_expanded_in_paths_and_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = options_of(TrainConfig)
    for text, path in (("~/a", f"{tmp_path}/a"), ("b~", "b~"), ("~", str(tmp_path))):
        assert expand(text, options["stores"]) == expand(text, options["target_store"]) == path
        assert expand(text, options["model"]) == text
    write_store(tmp_path / "acts", 400)
    (tmp_path / "run.toml").write_text('latents = 16\nmodel = "pca"\n')
    assert status_of("train", "~/acts", "~/run", "--config", "~/run.toml", "-q") == 0
    assert status_of("evaluate", "~/run", "--store=~/acts") == 0
    assert saekit.load(tmp_path / "run").latents == 16
    assert not (Path.cwd() / "~").exists()


@pytest.mark.parametrize("hidden", ["²", "٤", "1_0", "4,,8", "+4", "4.0"])
def test_widths_are_decimal_digits(capsys, hidden):
    assert status_of("train", "acts", "run", "--model", "dense", f"--hidden={hidden}") == 2
    assert "give numbers with commas" in capsys.readouterr().err

"""A tiny language model with its dictionary, served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_language import Made, made_language
from served import CPU, Client, Running

import saekit
from saekit.serving.workbench import Workbench, open_workbench


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return made_language(tmp_path_factory.mktemp("served"))


def without_index(run: Path, folder: Path) -> Path:
    """A copy of a run, whose index other tests may have made."""
    return shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("index", "scans"))


@pytest.fixture(scope="session")
def bare_run(made, tmp_path_factory) -> Path:
    return without_index(made.run, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def indexed_run(made, tmp_path_factory) -> Path:
    run = without_index(made.run, tmp_path_factory.mktemp("indexed"))
    saekit.index(run, made.store)
    return run


@pytest.fixture(scope="session")
def bench(made) -> Workbench:
    return open_workbench(made.run, [made.store], device=CPU)


@pytest.fixture(scope="session")
def client(bench) -> Iterator[Client]:
    with Running(bench) as running:
        yield running.client


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()

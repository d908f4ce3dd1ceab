"""A tiny language model with its dictionary, served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from made_language import Made, made_language
from served import CPU, Client, Running

from saekit.serving.workbench import Workbench, open_workbench


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return made_language(tmp_path_factory.mktemp("served"))


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

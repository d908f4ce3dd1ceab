"""A command killed before any of its file operations is gone on with, or leaves what was there before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from kills import content, killed_before

import saekit
from saekit.store.reader import Store

OPTIONS = {"k": 4, "expansion": 2, "rows": 1600, "batch": 100, "save_seconds": 0.0}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(7)
    for name, scale in (("a", 1.0), ("b", 3.0)):
        np.save(folder / f"{name}.npy", (scale * rng.standard_normal((900, 24))).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def store(arrays, tmp_path_factory):
    return Path(saekit.harvest("raw:array", str(arrays / "a.npy"), tmp_path_factory.mktemp("store") / "acts").path)


def harvest(array: Path, out: Path, **ways) -> None:
    saekit.harvest("raw:array", str(array), out, batch=100, shard_mb=1, **ways)


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    """What two runs of the same settings share: how long they took is not part of it."""
    times = re.compile(rb'"(rows_per_s|seconds)": [0-9.e+-]+')
    return {name: times.sub(b"", data) for name, data in files.items() if not name.startswith("scans/")}


def every_kill(folder: Path, begin, check) -> int:
    """Kill `begin` before its first, second ... operation, with `check` after each; how many there are."""
    operation = 0
    while killed_before(operation, folder, begin):
        check(operation)
        operation += 1
    return operation


def test_a_harvest_killed_anywhere_resumes_to_the_same_bytes(arrays, tmp_path):
    harvest(arrays / "a.npy", tmp_path / "whole")
    expected = content(tmp_path / "whole")
    work = tmp_path / "work"

    def check(operation: int) -> None:
        harvest(arrays / "a.npy", work / "acts", resume=True)
        assert content(work) == {f"acts/{name}": data for name, data in expected.items()}, f"killed before operation {operation}"
        shutil.rmtree(work)

    assert every_kill(work, lambda: harvest(arrays / "a.npy", work / "acts"), check) > 10


@pytest.mark.parametrize("options", [{}, {"model": "pca", "latents": 3, "k": None, "expansion": None}], ids=["topk", "pca"])
def test_a_training_killed_anywhere_resumes_to_the_same_bytes(store, tmp_path, options):
    settings = {name: value for name, value in (OPTIONS | options).items() if value is not None}
    if "model" in options:
        settings = options | {"k": None, "expansion": None}
        settings = {name: value for name, value in settings.items() if value is not None}
    saekit.train(store, tmp_path / "whole", **settings)
    expected, work = without_times(content(tmp_path / "whole")), tmp_path / "work"

    def check(operation: int) -> None:
        saekit.train(store, work / "run", resume=True, **settings)
        found = without_times(content(work))
        assert found == {f"run/{name}": data for name, data in expected.items()}, f"killed before operation {operation}"
        shutil.rmtree(work)

    assert every_kill(work, lambda: saekit.train(store, work / "run", **settings), check) > 5


def test_an_overwritten_run_is_the_old_or_the_new_one_at_every_moment(store, tmp_path):
    work, old, new = tmp_path / "work", OPTIONS | {"rows": 400}, OPTIONS | {"rows": 600, "seed": 3}
    for name, settings in (("old", old), ("new", new)):
        saekit.train(store, tmp_path / name, **settings)
    wanted = [without_times(content(tmp_path / name)) for name in ("old", "new")]
    shutil.copytree(tmp_path / "old", work / "run")
    seen = set()

    def check(operation: int) -> None:
        assert saekit.load(work / "run").latents == 48, "a reader finds a whole run"
        now = without_times(content(work / "run"))
        assert now in wanted, f"killed before operation {operation}"
        seen.add(wanted.index(now))
        if operation % 3 == 0:
            saekit.train(store, work / "run", resume=True, **new)
            assert without_times(content(work / "run")) == wanted[1]
        saekit.train(store, work / "run", overwrite=True, **old)
        assert [path.name for path in work.iterdir()] == ["run"], "nothing is left beside"

    assert every_kill(work, lambda: saekit.train(store, work / "run", overwrite=True, **new), check) > 30
    assert seen == {0, 1}


def test_several_stores_are_replaced_all_or_none(tmp_path):
    from tiny import text_model  # a language model of two blocks

    raise NotImplementedError(text_model)


def test_a_sweep_killed_anywhere_resumes_to_the_same_runs(store, tmp_path):
    grid = {"rows": 400, "batch": 100, "expansion": 2, "k": [2, 4], "save_seconds": 0.0}
    saekit.sweep(store, tmp_path / "whole", grid)
    expected, work = without_times(content(tmp_path / "whole")), tmp_path / "work"

    def check(operation: int) -> None:
        saekit.sweep(store, work / "sweep", grid, resume=True)
        found = without_times(content(work))
        assert found == {f"sweep/{name}": data for name, data in expected.items()}, f"killed before operation {operation}"
        shutil.rmtree(work)

    assert every_kill(work, lambda: saekit.sweep(store, work / "sweep", grid), check) > 20

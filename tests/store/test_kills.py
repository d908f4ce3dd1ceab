"""A command killed before any of its file operations can be resumed, or leaves what was there
before."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from kills import content, killed_before

import saekit
from saekit.errors import DataError
from saekit.harvesting.models import load_model
from saekit.store.reader import Store

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"k": 4, "expansion": 2, "rows": 600, "batch": 100, "save_seconds": 0.0}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(7)
    for name, scale in (("a", 1.0), ("b", 3.0)):
        np.save(folder / f"{name}.npy", (scale * rng.standard_normal((900, 24))).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def store(arrays, tmp_path_factory):
    return Path(
        saekit.harvest(
            "raw:array", str(arrays / "a.npy"), tmp_path_factory.mktemp("store") / "acts"
        ).path
    )


def harvest(array: Path, out: Path, **ways) -> None:
    saekit.harvest("raw:array", str(array), out, batch=100, shard_mb=1, **ways)


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    """What two runs of the same settings share: how long they took is not part of it."""
    times = re.compile(rb'"(rows_per_s|seconds)": [0-9.e+-]+')
    return {name: times.sub(b"", data) for name, data in files.items()}


def every_kill(folder: Path, begin, check, stride: int = 1) -> int:
    """Kill `begin` before every `stride`-th operation, each time followed by `check`; returns about
    how many operations there are."""
    operation = 0
    while killed_before(operation, folder, begin):
        check(operation)
        operation += stride
    return operation


SAMPLED_OR_ALL = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])


def test_a_harvest_killed_anywhere_resumes_to_the_same_bytes(arrays, tmp_path):
    harvest(arrays / "a.npy", tmp_path / "whole")
    expected = content(tmp_path / "whole")
    work = tmp_path / "work"

    def check(operation: int) -> None:
        harvest(arrays / "a.npy", work / "acts", resume=True)
        assert content(work) == {f"acts/{name}": data for name, data in expected.items()}, (
            f"killed before operation {operation}"
        )
        shutil.rmtree(work)

    assert every_kill(work, lambda: harvest(arrays / "a.npy", work / "acts"), check) > 10


@pytest.mark.parametrize("settings", [OPTIONS, {"model": "pca", "latents": 3}], ids=["topk", "pca"])
@SAMPLED_OR_ALL
def test_a_training_killed_anywhere_resumes_to_the_same_bytes(store, tmp_path, settings, stride):
    saekit.train(store, tmp_path / "whole", **settings)
    expected, work = without_times(content(tmp_path / "whole")), tmp_path / "work"

    def check(operation: int) -> None:
        saekit.train(store, work / "run", resume=True, **settings)
        found = without_times(content(work))
        assert found == {f"run/{name}": data for name, data in expected.items()}, (
            f"killed before operation {operation}"
        )
        shutil.rmtree(work)

    assert (
        every_kill(work, lambda: saekit.train(store, work / "run", **settings), check, stride) > 5
    )


@SAMPLED_OR_ALL
def test_an_overwritten_run_is_the_old_or_the_new_one_at_every_moment(store, tmp_path, stride):
    work, old, new = tmp_path / "work", OPTIONS | {"rows": 200}, OPTIONS | {"rows": 300, "seed": 3}
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
        begun = (work / ".run.new" / "run" / "run.json").exists()
        if begun or now == wanted[1]:
            saekit.train(store, work / "run", resume=True, **new)
        else:
            with pytest.raises(DataError, match="seed 0 -> 3"):
                saekit.train(store, work / "run", resume=True, **new)
        assert without_times(content(work / "run")) == wanted[begun or now == wanted[1]]
        if operation % 5 == 0:
            saekit.train(store, work / "run", overwrite=True, **new)
            assert [path.name for path in work.iterdir()] == ["run"], "nothing is left beside"
        shutil.rmtree(work)
        shutil.copytree(tmp_path / "old", work / "run")

    assert (
        every_kill(
            work, lambda: saekit.train(store, work / "run", overwrite=True, **new), check, stride
        )
        > 30
    )
    assert seen == {0, 1}


@SAMPLED_OR_ALL
def test_several_stores_are_replaced_all_or_none(tmp_path, stride):
    live = load_model(tiny.save("gpt2", tmp_path / "model"))
    (tmp_path / "texts").mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        (tmp_path / "texts" / f"{n}.txt").write_text(" ".join(rng.choice(tiny.WORDS, 40)))
    hooks, work = ["blocks.0", "blocks.1"], tmp_path / "work"

    def collect(out: Path, rows: int, **ways) -> None:
        saekit.harvest(
            live, str(tmp_path / "texts"), out, hook=hooks, rows=rows, ctx=16, batch=4, **ways
        )

    folders = [hook.replace("blocks", "transformer.h") for hook in hooks]
    collect(work / "acts", 60)
    shutil.copytree(work, tmp_path / "before")
    seen = set()

    def check(operation: int) -> None:
        rows = {len(Store(work / "acts" / folder)) for folder in folders}
        assert rows in ({60}, {90}), f"killed before operation {operation}"
        seen.update(rows)
        if operation % 5 == 0:
            collect(work / "acts", 90, overwrite=True)
            assert {path.name for path in (work / "acts").iterdir()} == set(folders)
        shutil.rmtree(work)
        shutil.copytree(tmp_path / "before", work)

    assert every_kill(work, lambda: collect(work / "acts", 90, overwrite=True), check, stride) > 30
    assert seen == {60, 90}


@SAMPLED_OR_ALL
def test_a_sweep_killed_anywhere_resumes_to_the_same_runs(store, tmp_path, stride):
    grid = {"rows": 400, "batch": 100, "expansion": 2, "k": [2, 4]}
    work = tmp_path / "work"
    saekit.sweep(store, work / "sweep", grid)
    expected = without_times(content(work))
    shutil.rmtree(work)

    def check(operation: int) -> None:
        saekit.sweep(store, work / "sweep", grid, resume=True)
        assert without_times(content(work)) == expected, f"killed before operation {operation}"
        shutil.rmtree(work)

    assert every_kill(work, lambda: saekit.sweep(store, work / "sweep", grid), check, stride) > 20


def test_a_training_killed_three_times_in_a_row_ends_as_if_it_had_not_been(store, tmp_path):
    settings, work = OPTIONS | {"rows": 400}, tmp_path / "work"
    saekit.train(store, work / "run", **settings)
    expected = without_times(content(work))
    rng = np.random.default_rng(11)
    for _ in range(4):
        shutil.rmtree(work)
        kills = rng.integers(4, 30, 3).tolist()
        for at in kills:
            killed_before(
                at, work, lambda: saekit.train(store, work / "run", resume=True, **settings)
            )
        saekit.train(store, work / "run", resume=True, **settings)
        assert without_times(content(work)) == expected, f"killed before operations {kills}"

"""What saekit did not write is never removed, and one command writes a folder at a time."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kills import content
from made_stores import write_store

import saekit
from saekit.errors import DataError, UsageError
from saekit.store import swap
from saekit.store.folder_kinds import PAGE, RUN, STORE, SWEEP
from saekit.store.lock import holder, locked
from saekit.store.run_folder import run_folder
from saekit.store.swap import Stage

TRAIN = {"k": 2, "expansion": 1, "rows": 200, "batch": 50}
HOLD = """
import sys, time
from pathlib import Path
from saekit.store.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    store = write_store(folder / "acts", rows=600)
    saekit.train(store, folder / "run", **TRAIN)
    saekit.sweep(store, folder / "sweep", {"rows": 200, "batch": 50, "expansion": 1, "k": [1, 2]})
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.parametrize(
    "place",
    [
        "notes.txt",
        "shards/mine.safetensors",
        "shards/00400.safetensors",
        "tokenizer/notes.md",
        "deep/er/a.npy",
    ],
)
def test_a_file_that_a_store_does_not_name_stops_overwriting_it(copy, place, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(8, dtype=np.float32))
    path = copy / "acts" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")
    before = content(copy)
    with pytest.raises(DataError, match=f"did not write: {place}"):
        saekit.harvest("raw:array", str(tmp_path / "x.npy"), copy / "acts", overwrite=True)
    assert content(copy) == before


@pytest.mark.parametrize(
    "verb, out, place",
    [
        ("train", "run", "plots/a.png"),
        ("sweep", "sweep", "k1/notes.txt"),
        ("sweep", "sweep", "mine/x"),
    ],
)
def test_a_file_among_runs_stops_overwriting_them(copy, verb, out, place):
    path = copy / out / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = content(copy)
    command = {
        "train": lambda: saekit.train(copy / "acts", copy / "run", overwrite=True, **TRAIN),
        "sweep": lambda: saekit.sweep(
            copy / "acts", copy / "sweep", {"rows": 200, "k": [2]}, overwrite=True
        ),
    }[verb]
    with pytest.raises(DataError, match=place):
        command()
    assert content(copy) == before


def test_the_store_that_a_run_reads_is_not_part_of_the_run(copy):
    shutil.move(copy / "acts", copy / "run" / "acts")
    with pytest.raises(DataError, match=r"acts/manifest\.json|acts/shards"):
        saekit.train(copy / "run" / "acts", copy / "run", overwrite=True, **TRAIN)
    assert saekit.open_store(copy / "run" / "acts").manifest.rows == 600


def test_a_linked_file_or_folder_is_somebody_elses(copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"precious")
    (copy / "run" / "model.safetensors").unlink()
    (copy / "run" / "model.safetensors").symlink_to(tmp_path / "elsewhere" / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        saekit.train(copy / "acts", copy / "run", overwrite=True, **TRAIN)
    assert (tmp_path / "elsewhere" / "model.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "marker",
    [
        '{"schema_version": 12, "tool": "another"}',
        "[1]",
        "null",
        "{",
        '"schema_version spec plan shards"',
    ],
)
def test_another_programs_marker_does_not_make_a_folder_ours(tmp_path, marker):
    for kind in (STORE, RUN, SWEEP, PAGE):
        (tmp_path / kind.marker).write_text(marker)
    for kind in (STORE, RUN, SWEEP, PAGE):
        with (
            pytest.raises(DataError, match="did not write"),
            run_folder(tmp_path, kind, resume=False, overwrite=True),
        ):
            pass
    assert len(list(tmp_path.iterdir())) == 4


def test_a_link_to_a_folder_is_followed_and_stays_a_link(copy):
    (copy / "link").symlink_to("run")
    (copy / "dangling").symlink_to("new")
    saekit.train(copy / "acts", copy / "link", overwrite=True, seed=1, **TRAIN)
    saekit.train(copy / "acts", copy / "dangling", **TRAIN)
    assert (copy / "link").is_symlink() and json.loads((copy / "run" / "run.json").read_text())[
        "seed"
    ] == 1
    assert (copy / "dangling").is_symlink() and saekit.load(copy / "new").d_in == 16


def test_the_current_folder_is_not_replaced_under_the_users_feet(copy, monkeypatch):
    monkeypatch.chdir(copy / "run")
    with pytest.raises(DataError, match="current directory") as error:
        saekit.train(copy / "acts", ".", overwrite=True, **TRAIN)
    assert "run" in error.value.hint
    assert saekit.load(copy / "run").d_in == 16


def test_an_error_leaves_the_old_result_and_nothing_beside_it(copy):
    before = content(copy)
    with pytest.raises(saekit.SaekitError):
        saekit.train(copy / "acts", copy / "run", overwrite=True, lr=1e30, **TRAIN)
    assert content(copy) == before and not list(copy.glob(".*"))


def test_resume_and_overwrite_contradict_each_other(tmp_path):
    with (
        pytest.raises(UsageError, match="contradict each other"),
        run_folder(tmp_path / "x", RUN, resume=True, overwrite=True),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(DataError, match="is a file"),
            run_folder(out, RUN, resume=False, overwrite=False),
        ):
            pytest.fail("nothing may begin")


def test_two_commands_on_one_folder_are_kept_apart_and_named(copy):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, copy / "run"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        for ways in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(DataError, match=f"process {other.pid}"):
                saekit.train(copy / "acts", copy / "run", **TRAIN, **ways)
        assert f"process {other.pid}" in holder(copy / "run")
        (copy / "run" / "config.json").unlink()
        with pytest.raises(DataError, match=f"being written by process {other.pid}"):
            saekit.load(copy / "run")
        other.kill()
        other.wait()
    assert holder(copy / "run") is None, "the lock died with its holder"
    saekit.train(copy / "acts", copy / "run", overwrite=True, **TRAIN)
    assert not list(copy.glob(".*"))


def test_a_lock_left_by_a_dead_command_is_taken_over(tmp_path):
    (tmp_path / ".run.lock").write_text('{"pid": 1, "command": "dead"}')
    with locked(tmp_path / "run"):
        assert f"process {os.getpid()}" in holder(tmp_path / "run")
    assert not (tmp_path / ".run.lock").exists()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_file_system_that_cannot_exchange_folders_gets_two_renames(copy, monkeypatch, cut):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a C library without renameat2
    saekit.train(copy / "acts", copy / "run", overwrite=True, seed=1, **TRAIN)
    assert json.loads((copy / "run" / "run.json").read_text())["seed"] == 1

    renames = []

    def rename(source, target):
        renames.append(target)
        if len(renames) == cut:
            raise InterruptedError
        os.replace(source, target)

    monkeypatch.setattr(swap.os, "rename", rename)
    with pytest.raises(InterruptedError):
        saekit.train(copy / "acts", copy / "run", overwrite=True, seed=2, **TRAIN)
    monkeypatch.undo()
    assert saekit.load(copy / "run").d_in == 16, "whoever looks finishes the exchange"
    assert json.loads((copy / "run" / "run.json").read_text())["seed"] == 2
    assert not Stage(copy / "run").folder.exists()

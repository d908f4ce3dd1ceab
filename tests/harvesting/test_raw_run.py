"""Harvests of raw data: how many rows, kills, refusals, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command import saekit as command
from kills import killed_after
from rawfiles import array, contents, pictures, texts

import saekit
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.config import RAW_KINDS
from saekit.harvesting.raw import KINDS
from saekit.harvesting.run import plan_harvest
from saekit.store.reader import open_store

# -- rows, shares, plans ---------------------------------------------------------------------------


def test_exactly_the_rows_asked_for_and_the_share_held_out(tmp_path):
    path, _ = array(tmp_path / "x.npy", 5000, 3)
    result = saekit.harvest("raw:array", path, tmp_path / "s", holdout=0.2)
    store = open_store(tmp_path / "s")
    assert (
        result.rows == 5000
        and len(store.split("holdout")) == 1000
        and len(store.split("train")) == 4000
    )
    assert store.manifest.plan["holdout"] == 0.2
    few = saekit.harvest("raw:array", path, tmp_path / "few", rows=101, batch=32)
    assert few.rows == few.asked == 101 and len(open_store(tmp_path / "few").split("holdout")) == 6
    assert "holdout" not in open_store(tmp_path / "few").manifest.plan
    assert saekit.harvest("raw:array", path, tmp_path / "all", rows=6000).rows == 5000


def test_the_plan_knows_the_rows_of_raw_data(tmp_path):
    path, _ = array(tmp_path / "x.npy", 50, 4, 3)
    plan = plan_harvest("raw:array", path, tmp_path / "s")
    assert (plan.hooks, plan.rows, plan.bytes, plan.shards) == ({"array": 3}, 200, 200 * 3 * 4, 1)
    assert (
        plan_harvest("raw:array", path, tmp_path / "s", rows=30, dtype="float16").bytes
        == 28 * 3 * 2
    )
    assert not (tmp_path / "s").exists()


def test_the_kinds_are_those_that_are_named_without_loading_them():
    assert tuple(KINDS) == RAW_KINDS


def test_no_model_library_is_loaded():
    code = (
        "import sys, tempfile, saekit\n"
        "saekit.harvest('raw:pixels', 'embedded:digits', tempfile.mkdtemp() + '/s', rows=64)\n"
        "print('transformers' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["raw:pixels", "raw:array", "raw:tfidf"])
def test_a_raw_harvest_killed_with_sigkill_resumes_to_the_same_bytes(tmp_path, monkeypatch, kind):
    from saekit.harvesting import raw
    from saekit.store import writer

    data = str(
        tmp_path / {"raw:pixels": "images", "raw:array": "x.npy", "raw:tfidf": "t.txt"}[kind]
    )
    if kind == "raw:pixels":
        pictures(Path(data), 50)
    elif kind == "raw:array":
        array(Path(data), 50, 3)
    else:
        texts(Path(data))
    opened, made = writer.StoreWriter.__init__, raw.RawHarvest._block
    # Every batch closes a shard, so that the kill falls between and within shards.
    monkeypatch.setattr(
        writer.StoreWriter,
        "__init__",
        lambda self, *a, **k: opened(self, *a, **{**k, "shard_bytes": 1}),
    )

    def run(out):
        saekit.harvest(kind, data, tmp_path / out, batch=3, rows=40, resume=True)

    def slow(*arguments):
        time.sleep(0.05)
        return made(*arguments)

    run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(raw.RawHarvest, "_block", slow)
        killed_after(tmp_path / "broken" / "shards" / "00003.safetensors", 0, lambda: run("broken"))
    with pytest.raises(DataError, match="not finished"):
        open_store(tmp_path / "broken")
    run("broken")
    broken, complete = contents(tmp_path / "broken"), contents(tmp_path / "whole")
    assert broken == complete and len(complete) > 12 and len(open_store(tmp_path / "whole")) == 40


@pytest.mark.parametrize("rows", [None, 17])
def test_a_raw_harvest_killed_before_the_report_resumes_to_the_same_bytes(
    tmp_path, monkeypatch, rows
):
    import saekit.store.writer as writer

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    path, _ = array(tmp_path / "x.npy", 30, 3)
    saekit.harvest("raw:array", path, tmp_path / "whole", rows=rows, batch=4)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "health_report", killed)
        with pytest.raises(Killed):
            saekit.harvest("raw:array", path, tmp_path / "broken", rows=rows, batch=4)
    saekit.harvest("raw:array", path, tmp_path / "broken", rows=rows, batch=4, resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_a_resume_with_other_settings_names_them(tmp_path):
    path, _ = array(tmp_path / "x.npy", 30, 3)
    saekit.harvest("raw:array", path, tmp_path / "s")
    for options, words in (
        ({"holdout": 0.2}, "holdout 0.05 -> 0.2"),
        ({"seed": 3}, "seed 0 -> 3"),
        ({"dtype": "float16"}, "dtype float32"),
    ):
        with pytest.raises(DataError, match=words):
            saekit.harvest("raw:array", path, tmp_path / "s", resume=True, **options)
    with pytest.raises(DataError, match="exists and is not empty"):
        saekit.harvest("raw:array", path, tmp_path / "s")
    texts(tmp_path / "t.txt")
    saekit.harvest("raw:tfidf", str(tmp_path / "t.txt"), tmp_path / "t", vocabulary=5)
    with pytest.raises(DataError, match="vocabulary 5 -> 6"):
        saekit.harvest(
            "raw:tfidf", str(tmp_path / "t.txt"), tmp_path / "t", vocabulary=6, resume=True
        )


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind,data,options,error,words",
    [
        ("raw:pixel", "x.npy", {}, UsageError, "raw:pixel is not a kind of raw data"),
        (
            "raw:array",
            "x.npy",
            {"hook": "blocks.0"},
            UsageError,
            "hook with raw:array: there is no model",
        ),
        ("raw:array", "x.npy", {"scope": "cls"}, UsageError, "scope with raw:array"),
        ("raw:array", "x.npy", {"ctx": 64, "pack": True}, UsageError, "ctx, pack with raw:array"),
        ("raw:array", "x.npy", {"max_norm": 3.0}, UsageError, "max_norm with raw:array"),
        ("raw:array", "x.npy", {"vocabulary": 30}, UsageError, "vocabulary with raw:array"),
        (
            "embedded:digits-vit",
            "x.npy",
            {"vocabulary": 30, "hook": "blocks.0"},
            UsageError,
            "vocabulary with embedded:digits-vit",
        ),
        (
            "raw:tfidf",
            "embedded:pydocs",
            {"vocabulary": 0},
            UsageError,
            "vocabulary=0 must be at least 1",
        ),
        ("raw:array", "x.npy", {"holdout": 0.0}, UsageError, r"holdout=0 must be in \(0, 1\)"),
        ("raw:array", "x.npy", {"holdout": 1.0}, UsageError, r"holdout=1 must be in \(0, 1\)"),
        ("raw:array", "x.npy", {"column": "a"}, UsageError, "column with raw:array"),
        (
            "raw:pixels",
            "embedded:digits",
            {"layout": "grid"},
            UsageError,
            'layout="grid": an image is one row',
        ),
        (
            "raw:array",
            "x.npy",
            {"layout": "grid"},
            DataError,
            r'layout="grid": .* has the shape \(8, 3\)',
        ),
        ("raw:array", "t.npy", {"rows": 3}, DataError, "rows=3 is below the 4 rows of one example"),
        ("raw:array", "nothing.npy", {}, MissingError, "no array file at"),
        ("raw:array", "words.txt", {}, DataError, "words.txt is not an array file"),
        ("raw:array", "objects.npy", {}, DataError, "objects.npy cannot be read as an array"),
        ("raw:array", "broken.npz", {}, DataError, "broken.npz cannot be read as an array"),
        ("raw:array", "names.npy", {}, DataError, "names.npy holds <U1, not numbers"),
        ("raw:array", "vector.npy", {}, DataError, r"vector.npy has the shape \(8,\)"),
        ("raw:array", "empty.npy", {}, DataError, r"empty.npy has the shape \(0, 3\)"),
        ("raw:array", "other.npz", {}, DataError, "other.npz has no array x; it holds a, b"),
        ("raw:array", "short.npz", {}, DataError, r"y has the shape \(7,\), and x 8 entries"),
        ("raw:pixels", "embedded:pydocs", {}, DataError, "embedded:pydocs holds texts, not images"),
        ("raw:tfidf", "embedded:digits", {}, DataError, "embedded:digits holds images, not texts"),
        (
            "raw:array",
            "x.npy",
            {"dtype": "float8"},
            UsageError,
            'dtype="float8": did you mean float',
        ),
    ],
)
def test_wrong_requests_leave_nothing_behind(
    tmp_path, monkeypatch, kind, data, options, error, words
):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((8, 3))
    odd = {
        "objects": np.array([{}, 1], object),
        "names": np.array([["a"]]),
        "vector": x[:, 0],
        "empty": x[:0],
    }
    for name, value in {"x": x, "t": np.zeros((2, 4, 3)), **odd}.items():
        np.save(f"{name}.npy", value)
    np.savez("other.npz", a=x, b=x)
    np.savez("short.npz", x=x, y=np.zeros(7))
    Path("broken.npz").write_bytes(Path("other.npz").read_bytes()[:300])
    Path("words.txt").write_text("river")
    with pytest.raises(error, match=words):
        saekit.harvest(kind, data, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


# -- the command line ------------------------------------------------------------------------------


def test_raw_data_from_the_command_line(capsys, tmp_path):
    out = tmp_path / "s"
    status, text, _ = command(
        capsys,
        "harvest",
        "raw:pixels",
        "embedded:digits",
        out,
        "--holdout",
        0.2,
        "--rows",
        500,
        "--json",
        "-q",
    )
    result = json.loads(text)
    assert (
        status == 0
        and set(result) == {"path", "rows", "asked", "fingerprint", "seconds", "rows_per_s"}
        and result["rows"] == 500
    )
    assert len(open_store(out).split("holdout")) == 100
    settings = tomllib.loads((out / "config.toml").read_text())
    assert (
        settings["model"] == "raw:pixels"
        and settings["holdout"] == 0.2
        and "hook" not in settings
        and settings["dtype"] == "float32"
    )
    status, _, _ = command(
        capsys,
        "harvest",
        "raw:pixels",
        "embedded:digits",
        tmp_path / "again",
        "--config",
        out / "config.toml",
        "-q",
    )
    assert status == 0 and contents(tmp_path / "again") == contents(out)


def test_a_dry_run_of_raw_data_writes_nothing(capsys, tmp_path):
    status, text, _ = command(
        capsys, "harvest", "raw:pixels", "embedded:digits", tmp_path / "s", "--dry-run"
    )
    assert status == 0 and "pixels  1,797 rows x 64" in text and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "arguments,status,cause",
    [
        (["raw:pixls", "embedded:digits", "OUT"], 2, "raw:pixls is not a kind of raw data"),
        (
            ["raw:pixels", "embedded:digits", "OUT", "--hook", "blocks.0"],
            2,
            "--hook with raw:pixels",
        ),
        (["raw:pixels", "--list-hooks"], 2, "--list-hooks with raw:pixels"),
        (
            ["raw:pixels", "embedded:digits", "OUT", "--holdout", "1.5"],
            2,
            "--holdout 1.5 must be in (0, 1)",
        ),
        (["raw:array", "nothing.npy", "OUT"], 4, "no array file at nothing.npy"),
        (["raw:pixels", "embedded:pydocs", "OUT"], 3, "embedded:pydocs holds texts, not images"),
    ],
)
def test_wrong_raw_commands(capsys, tmp_path, arguments, status, cause):
    given, _, err = command(
        capsys, "harvest", *[str(tmp_path / "o") if a == "OUT" else a for a in arguments]
    )
    assert given == status and cause in err and not (tmp_path / "o").exists()

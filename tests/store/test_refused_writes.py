"""What the system refuses to write, at any file that a command writes: a user's error with the
path, and the old result as it was.

The limit on the size of files stands for a full disk: writing fails in the middle of a file there,
too.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_runs import digits_store

from saekit.errors import DataError
from saekit.harvesting.run import harvest
from saekit.inspection.run import inspect
from saekit.report.comparison import compare
from saekit.store.run_folder import run_folder
from saekit.sweeps.run import sweep
from saekit.training.run import train

OPTIONS = {"latents": 64, "k": 4, "rows": 3000, "batch": 50}


@contextmanager
def files_of_at_most(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    digits_store(folder / "st")
    train(folder / "st", folder / "r", **OPTIONS)
    return folder


COMMANDS = {
    "harvest": lambda made, out, **way: harvest(
        "raw:pixels", "embedded:digits", out, rows=400, holdout=0.25, **way
    ),
    "train": lambda made, out, **way: train(made / "st", out, **OPTIONS, **way),
    "pca": lambda made, out, **way: train(made / "st", out, model="pca", latents=4, **way),
    "sweep": lambda made, out, **way: sweep(
        made / "st", out, {"k": [2, 4], "latents": 64, "rows": 3000, "batch": 50}, **way
    ),
    "inspect": lambda made, out: inspect(made / "r", made / "st", out),
    "compare": lambda made, out: compare([made / "r"], made / "st", out),
}


@pytest.fixture(scope="module", params=COMMANDS)
def whole(made, request, tmp_path_factory) -> tuple[str, Path]:
    """(name of a command, the folder that it writes when nothing stops it)."""
    out = tmp_path_factory.mktemp("whole") / "out"
    COMMANDS[request.param](made, out)
    return request.param, out


@pytest.mark.parametrize("size", [0, 20, 700, 3000])
def test_every_command_names_the_file_that_could_not_be_written(made, whole, tmp_path, size):
    command, expected = whole
    largest = max(path.stat().st_size for path in expected.rglob("*") if path.is_file())
    if largest <= size:
        pytest.skip(f"its files have at most {largest} bytes")
    with (
        files_of_at_most(size),
        pytest.raises(DataError, match=rf"{tmp_path}.*: File too large") as error,
    ):
        COMMANDS[command](made, tmp_path / "out")
    assert error.value.hint and not list(tmp_path.rglob("*.tmp"))
    begun = (tmp_path / "out").exists() and any((tmp_path / "out").iterdir())
    # nothing stands in the way of the next attempt
    COMMANDS[command](made, tmp_path / "out", **{"resume": True} if begun else {})
    written, wanted = (
        {path.relative_to(folder) for path in folder.rglob("*")}
        for folder in (tmp_path / "out", expected)
    )
    assert written == wanted


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(made, tmp_path):
    tmp_path.chmod(0o500)
    for command, call in COMMANDS.items():
        with pytest.raises(DataError, match=r"cannot be written|Permission denied"):
            call(made, tmp_path / command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_too_long_is_refused(made, tmp_path, command):
    with pytest.raises(DataError, match="File name too long"):
        COMMANDS[command](made, tmp_path / ("x" * 300))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_below_a_file_is_refused(made, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below", "file/far/below"):
        with pytest.raises(DataError, match="is a file"):
            COMMANDS[command](made, tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_too_many_open_files_are_exit_3(made, tmp_path):
    """In a process of its own, all of whose modules are loaded already."""
    code = (
        "import resource, sys; from saekit_cli import app; import saekit.training.run; from"
        " saekit.store.reader import open_store\napp._status(['train', sys.argv[1], sys.argv[2],"
        " '--model', 'pca', '--latents', '2', '-q'])\nimport os;"
        " resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,"
        " 1000))\nsys.exit(app._status(['train', sys.argv[1], sys.argv[3], '--model', 'pca',"
        " '--latents', '2', '-q']))"
    )
    arguments = [
        sys.executable,
        "-c",
        code,
        *map(str, (made / "st", tmp_path / "a", tmp_path / "b")),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 3 and "Too many open files" in done.stderr and "ulimit -n" in done.stderr
    ), done.stderr


def test_a_lock_that_cannot_be_written_is_let_go(tmp_path):
    from saekit.store.folder_kinds import RUN

    with (
        files_of_at_most(0),
        pytest.raises(DataError, match="File too large"),
        run_folder(tmp_path / "o", RUN, resume=False, overwrite=False),
    ):
        pass
    with run_folder(tmp_path / "o", RUN, resume=False, overwrite=False):
        pass

"""Which exit status ends a command that meets the machine's limits, or its user's Ctrl-C: 5, 3, 130
or 0, never "a bug"."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_stores import write_store
from saekit_cli import app, interrupts
from saekit_cli.screen import Reporter

import saekit.training.run as training
from saekit.types import Progress


@pytest.fixture(scope="module")
def acts(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("acts") / "store", 600)


LIMITED = """
import resource, sys
from saekit_cli import app
store, out = sys.argv[1:]
SMALL = ["--k", "4", "--rows", "256", "--batch", "64", "-q"]
assert app._status(["train", store, out + "-a", "--latents", "64", *SMALL]) == 0
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), used + (200 << 20)))
sys.exit(app._status(["train", store, out + "-b", "--latents", "4000000", *SMALL]))
"""


def test_memory_that_the_system_refuses_is_exit_5(acts, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, acts, tmp_path / "r"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        done.returncode == 5
        and "error  out of memory: " in done.stderr
        and "--latents" in done.stderr
    ), done.stderr


@pytest.mark.parametrize(
    "error,status,words",
    [
        (
            MemoryError("Unable to allocate 3.00 TiB"),
            5,
            "out of memory: Unable to allocate 3.00 TiB",
        ),
        (MemoryError(), 5, "out of memory: MemoryError"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"
            ),
            5,
            "out of memory",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory:"
                " you tried"
            ),
            5,
            "out of memory",
        ),
        (OSError(12, "Cannot allocate memory"), 5, "out of memory"),
        (OSError(28, "No space left on device", "/data/x"), 3, "/data/x: No space left on device"),
        (OSError(13, "Permission denied", "/data/x"), 3, "/data/x: Permission denied"),
        (OSError(30, "Read-only file system", "/data/x"), 3, "/data/x: Read-only file system"),
        (OSError(24, "Too many open files", "/data/x"), 3, "/data/x: Too many open files"),
        (OSError("no number"), 3, ""),
        (RecursionError("maximum recursion depth exceeded"), 3, "nested too deeply"),
        (
            RuntimeError("shapes do not match"),
            1,
            "bug in saekit: RuntimeError: shapes do not match",
        ),
    ],
)
def test_what_the_system_says_has_its_status(
    monkeypatch, capsys, acts, tmp_path, error, status, words
):
    """The errors stand for a machine that one cannot have in a test."""

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(training, "prepare", fails)
    assert app._status(["train", str(acts), str(tmp_path / "r"), "--k", "4", "-q"]) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[0] and lines[0].startswith("error  ") and lines[-1].startswith("try    ")


def test_a_reader_that_goes_away_ends_the_command_quietly():
    piped = f"{sys.executable} -m saekit_cli models | head -n 1; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "0" and len(done.stdout.splitlines()) == 1


def test_the_module_is_the_command(acts):
    program = "import sys; sys.argv[0] = 'saekit'; from saekit_cli.app import main; main()"
    ways = [[sys.executable, "-c", program], [sys.executable, "-m", "saekit_cli"]]
    arguments = ["evaluate", "none", "--store", str(acts)]
    one, other = (
        subprocess.run([*way, *arguments], capture_output=True, text=True, timeout=60)
        for way in ways
    )
    assert one.returncode == 4
    assert (one.returncode, one.stdout, one.stderr) == (
        other.returncode,
        other.stdout,
        other.stderr,
    )


DROPPED = """
import signal, sys
from saekit_cli import interrupts

interrupts.remember()
class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
Dropping()  # Python reports the KeyboardInterrupt of a finalizer, and goes on
assert interrupts.seen()
from saekit_cli.app import main
main(sys.argv[1:])
"""


def test_a_ctrl_c_that_python_dropped_is_answered(acts, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", DROPPED, "train", acts, tmp_path / "r", "--k", "4", "-q"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert result.returncode == 130 and "error  interrupted" in result.stderr, result.stderr
    assert not (tmp_path / "r").exists()


def test_a_dropped_ctrl_c_ends_a_run_at_its_next_sign_of_life(monkeypatch):
    monkeypatch.setattr(interrupts, "_seen", True)
    with pytest.raises(KeyboardInterrupt), Reporter(quiet=True) as reporter:
        reporter(Progress("train", 1, 2))
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:  # it was not dropped: what is done now may report
        reporter(Progress("train", 2, 2))


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.6])
def test_ctrl_c_is_130_at_any_moment(acts, tmp_path, seconds):
    arguments = [
        "train",
        acts,
        tmp_path / "r",
        "--k",
        4,
        "--expansion",
        4,
        "--batch",
        64,
        "--rows",
        64 * 500_000,
        "-q",
    ]
    command = [sys.executable, "-m", "saekit_cli", *map(str, arguments)]
    # A shell that runs the tests in the background has them ignore SIGINT, and so would the
    # command.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # While Python itself starts, before saekit is there, the shell makes 130 of the signal. Python
    # may also die of it with status 1, before it looks at saekit: on a busy machine within .3 s.
    interrupted = process.returncode == 130 and err.startswith("error  interrupted")
    of_python = process.returncode == 1 and "saekit_cli" not in err
    assert interrupted or process.returncode == -signal.SIGINT or of_python

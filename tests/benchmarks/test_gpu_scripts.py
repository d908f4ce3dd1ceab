"""The scripts for the first hour on a device run through under the interpreter, at tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


def run(script: str, *arguments: str) -> list[str]:
    finished = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--device", "cpu", *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout.splitlines()


@pytest.mark.slow
def test_every_operation_is_right_and_reads_nothing_that_was_not_written():
    *lines, last = run("operations.py", "--tiny")
    assert last == "0 failed"
    assert len([line for line in lines if line.startswith("ok ")]) == 10


@pytest.mark.slow
def test_everything_that_is_to_be_timed_runs(tmp_path):
    out = tmp_path / "times.jsonl"
    run("times.py", "--shapes", "16x128x8", "--k", "4", "--out", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line for line in lines if "error" in line] == []
    encoders = {"encode topk fused", "encode topk gemm", "encode batchtopk fused"}
    assert encoders | {"nested errors", "step topk", "step l1"} <= {line["what"] for line in lines}
    assert all(line.get("rows", 0) == 0 for line in lines)  # none is redone


@pytest.mark.slow
def test_every_code_trains_and_gives_the_same_bits_twice():
    lines = run(
        "training.py", "--backend", "triton", "--width", "8", "--rows", "200", "--steps", "2",
        "--batch", "16", "--latents", "128",
    )  # fmt: skip
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert "the same bits twice: True" in lines
    assert len([line for line in lines if line.startswith("ok ")]) == 9

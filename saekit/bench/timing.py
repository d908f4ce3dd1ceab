"""Interleaved timing, and the rows of results."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from saekit import __version__

Name = TypeVar("Name")
IN_A_ROW = 4
LARGER_PART = 0.6  # the rest is for what a step allocates


@dataclass
class Measurement:
    """One implementation in one comparison."""

    op: str
    mode: str  # which implementation: dense, saekit, ...
    backend: str  # torch | triton
    shape: str  # DxFxB
    dtype: str
    ms: float  # median
    ms_p20: float
    ms_p80: float
    ratio: float | None = None  # times faster than dense torch in the same run
    rows_per_s: float | None = None
    # times the floor: the encoder product on a CPU (with fused Adam for a step), else that of the
    # cost model
    of_floor: float | None = None
    k: int | None = None
    l0: float | None = None
    note: str = ""
    tflop_per_s: float | None = None  # of the work that the cost model counts for the operation
    gb_per_s: float | None = None
    # largest memory of one step beyond weights and optimizer, buffers included (memory.py)
    peak_mb: float | None = None
    ratio_topk: float | None = None  # its time over that of topk in the same run


@dataclass(frozen=True)
class Timer:
    """How often, where and by which clock calls are timed."""

    device: torch.device
    rounds: int
    clock: Callable[[], float] = time.perf_counter
    """Of a CPU, in seconds; a GPU is timed by its own events."""

    def __call__(
        self, calls: Mapping[Name, Callable[[], object]], times: int = 1
    ) -> dict[Name, tuple[float, float, float]]:
        """(median, p20, p80) in ms, calling each once per round, after one uncounted round; with
        `times` as many rounds."""
        results: dict[Name, list[float]] = {name: [] for name in calls}
        for counted in range(times * self.rounds + 1):
            for name, call in calls.items():
                ms = self._once(call)
                if counted:
                    results[name].append(ms)
        return {name: _quantiles(values) for name, values in results.items()}

    def _once(self, call: Callable[[], object]) -> float:
        """ms. On a GPU of one of several calls in a row, as in training: launches of the next one
        do not wait for the last."""
        if self.device.type != "cuda":
            started = self.clock()
            call()
            return 1e3 * (self.clock() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        for _ in range(IN_A_ROW):
            call()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / IN_A_ROW

    def fits(self, count: float) -> bool:
        """Whether so many bytes take no more than the larger part of the device's memory; True on
        a CPU."""
        if self.device.type != "cuda":
            return True
        total = torch.cuda.get_device_properties(self.device).total_memory
        return count <= LARGER_PART * total


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    median, p20, p80 = torch.tensor(values).quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
    return round(median, 3), round(p20, 3), round(p80, 3)


def machine(device: torch.device) -> dict[str, str]:
    """Where and with what a run was measured: processor, versions, commit, date."""
    name = f"{_processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "saekit": __version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


class CsvFile:
    """Measurements as they come: each line is on the disk once it is written, so an interrupted
    run keeps what it has measured. The first line makes the file; all have the same keys."""

    def __init__(self, path: Path, where: dict[str, str]) -> None:
        self.path, self.where, self.lines = path, where, 0

    def write(self, row: Mapping[str, Any]) -> None:
        """One line: the row, and `where` it was measured."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self.lines else "w", newline="") as file:
            writer = csv.DictWriter(file, [*row, *self.where])
            if not self.lines:
                writer.writeheader()
            writer.writerow({**row, **self.where})
        self.lines += 1


def version_of(package: str) -> str:
    """ "" where it is not installed, as when the sources are only on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        folder = str(Path(__file__).parent)
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

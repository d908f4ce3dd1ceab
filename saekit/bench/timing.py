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

Name = TypeVar("Name")


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
    peak_mb: float | None = None  # of device memory, on a GPU


def interleaved(
    calls: Mapping[Name, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Name, tuple[float, float, float]]:
    """(median, p20, p80) in ms, calling each once per round, after one uncounted round."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for counted in range(rounds + 1):
        for name, call in calls.items():
            ms = _once(call, device)
            if counted:
                times[name].append(ms)
    return {name: _quantiles(values) for name, values in times.items()}


def _once(call: Callable[[], object], device: torch.device) -> float:
    """ms"""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


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
        "triton": _version("triton"),
        "saekit": _version("saekit"),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def write_csv(path: Path, rows: list[dict[str, Any]], where: dict[str, str]) -> None:
    """One line per measurement, each with the machine. All rows have the same keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *where])
        writer.writeheader()
        writer.writerows(row | where for row in rows)


def _version(package: str) -> str:
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

"""metrics.jsonl: one JSON object per line, cut back to the resumed step so that a resumed run's
file reads like an unbroken one's.

Lines are appended; cutting back replaces the file as a whole, so that no kill loses a line of
before the saved state.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saekit.store.files import write_bytes
from saekit.store.oserrors import writing
from saekit.typed import as_type


class MetricsFile:
    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        before = path.read_bytes() if path.exists() else b""
        lines = before.decode(errors="replace").splitlines()
        remaining = "".join(line + "\n" for line in lines if _step(line) <= resumed_step).encode()
        if remaining != before:
            write_bytes(path, remaining)
        with writing(path):
            # nothing is left to be written when it is closed
            self._file = open(path, "ab", buffering=0)

    def write(self, figures: dict) -> None:
        with writing(self._path):
            line = (json.dumps(figures) + "\n").encode()
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """On disk, before a state is that a resume cuts these lines back to."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _step(line: str) -> float:
    """inf for a line that a kill cut short."""
    try:
        return as_type(as_type(json.loads(line), dict[str, Any], "line").get("step"), float, "step")
    except (ValueError, RecursionError):
        return float("inf")

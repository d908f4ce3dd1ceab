"""metrics.jsonl: one JSON object per line, truncated to the resumed step, so that the file of a
resumed run equals that of a run without interruption.

Lines are appended; truncating replaces the whole file, so that no kill loses a line from before the
saved state.
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
            # unbuffered: nothing remains to be written when it is closed
            self._file = open(path, "ab", buffering=0)

    def write(self, figures: dict) -> None:
        with writing(self._path):
            line = (json.dumps(figures) + "\n").encode()
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Flush to disk, before a state is saved that a resume truncates these lines to."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _step(line: str) -> float:
    """The step of a line; inf for a line that a kill truncated."""
    try:
        return as_type(as_type(json.loads(line), dict[str, Any], "line").get("step"), float, "step")
    except (ValueError, RecursionError):
        return float("inf")

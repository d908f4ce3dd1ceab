"""metrics.jsonl: one JSON object a line, cut back to the resumed step so that a resumed run's file reads like an unbroken one's."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsFile:
    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= resumed_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1)

    def write(self, figures: dict) -> None:
        self._file.write(json.dumps(figures) + "\n")

    def close(self) -> None:
        self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line that a kill cut short

"""The table of docs/notes/attribution.md is that of the recorded nodes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from bench_attribution import METHODS, PROMPTS, correlations

ROOT = Path(__file__).parents[2]
LINES = {
    "gradient": "| `gradient` | 10",
    "integrated": "| `integrated` | 10",
    "one path": "| `integrated --groups 1` |",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_line_of_the_table_has_the_correlations_of_the_file(method):
    with (ROOT / "benchmarks" / "results" / "attribution.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    assert {row["prompt"] for row in rows} == PROMPTS.keys() and len(rows) == 20 * len(PROMPTS)
    rows = [row | {name: float(row[name]) for name in ("effect", "ablated")} for row in rows]
    page = (ROOT / "docs" / "notes" / "attribution.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(LINES[method])]
    shown = [cell.split()[0] for cell in line.strip("| ").split("|")[2:]]
    assert shown == [f"{float(value):.3f}".lstrip("0") for value in correlations(rows)]
    assert method != "integrated" or float(shown[0]) >= 0.8

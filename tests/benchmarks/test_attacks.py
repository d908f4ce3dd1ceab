"""benchmarks/attacks.py: what it has measured it does not measure again; its tables in docs."""

from __future__ import annotations

from dataclasses import asdict

import attack_tables
import attacks

from saekit.bench.timing import CsvFile


def rows() -> list[attacks.Row]:
    """Of part 1, all of one seed."""
    every = [("clean", "-", 0.0), *attacks.jobs(quick=True)]
    return [
        attacks.Row("defense", "mnist-5k", adversary, *job, 0, 200, 0.25 * number, None, 2.0)
        for number, adversary in enumerate(attacks.ADVERSARIES)
        for job in every
    ]


def test_rows_are_read_back_and_skipped(tmp_path):
    file = CsvFile(tmp_path / "attacks.csv", {"device": "a machine"})
    reached = attacks.Row("noise", "7", "none", "noise", "-", 0.0, 0, 1, 3.0, 2.0, 1.5)
    measured = [*rows(), reached]
    for row in measured:
        file.write(asdict(row))
    assert attacks.read(tmp_path / "attacks.csv") == measured
    assert attacks.read(tmp_path / "none.csv") == [] == attacks.read(None)
    known = {(r.part, r.name, r.adversary, r.attack, r.norm, r.eps, r.seed) for r in measured}
    assert list(attacks.defense(True, 1, known, print)) == []
    text = attacks.lines_of(measured)
    assert "1.500" in text and "0.250" in text  # the activation over the maximum; an accuracy
    chart = attacks.chart(measured)
    assert chart.startswith("<svg") and "pgd: fgsm" in chart


def as_text(row: attacks.Row) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in asdict(row).items()}


def test_the_tables_of_docs_by_hand():
    measured = [as_text(row) for row in rows()]
    lines = attack_tables.defense(measured).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| pictures as they are | 0.0 %")
    assert "| 25.0 % | 25.0 % |" in lines[3] and lines[4].endswith("| 2 |")
    reached = [
        attacks.Row("noise", str(j), "none", "noise", "-", 0.0, 0, 1, value, 2.0, 1.0)
        for j, value in enumerate((0.0, 1.0, 2.5, 4.0))
    ]
    (line,) = attack_tables.latents([as_text(row) for row in reached]).splitlines()[2:]
    assert line == "| from noise | 4 | 0.88 | 0.00 | 2.00 | 1 | 2 |"
    accuracies = [
        attacks.Row("classifier", "embedded:x", "none", attack, norm, eps, 0, 50, value, None, 1.0)
        for attack, norm, eps, value in (
            ("clean", "-", 0.0, 0.9), ("fgsm", "linf", 4 / 255, 0.5), ("pgd", "linf", 4 / 255, 0.2),
        )
    ]  # fmt: skip
    (line,) = attack_tables.classifiers([as_text(row) for row in accuracies]).splitlines()[2:]
    assert line == "| `embedded:x` | 4/255 | 90.0 % | 50.0 % | 20.0 % |"

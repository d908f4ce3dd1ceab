"""How well attributions predict real ablations: embedded SmolLM2-135M, with the dictionary that
docs/notes/attribution.md trains.

    python benchmarks/bench_attribution.py runs/pydocs
        [--csv benchmarks/results/attribution.csv]

For each of ten prompts that are not from the training data, and each method, the 20 nodes with the
largest predicted effects on the difference of two logits are ablated one by one. A row of the file
is one node; rows are on the disk once a prompt is measured. The table is that of
docs/notes/attribution.md: Pearson r over all nodes and by prompt. "One path" is integrated
gradients along one path per position. The first position, an attention sink, is left as it is.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from saekit_cli.screen import table

from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.intervention.ablations import pearson
from saekit.intervention.attribute import attribute

PROMPTS = {
    "The capital of France is": (" Paris", " Rome"),
    "The opposite of hot is": (" cold", " warm"),
    "def add(a, b):\n    return a": (" +", " -"),
    "for i in range(10):\n    print": ("(", "."),
    "Raises a ValueError if the value is not": (" a", " None"),
    "This function returns the number of": (" elements", " times"),
    "If the argument is omitted, the default value is": (" used", " returned"),
    "import os\nimport": (" sys", " the"),
    "She was tired, so she went to": (" bed", " work"),
    "The module provides a class for reading and": (" writing", " reading"),
}
METHODS = {
    "gradient": {"method": "gradient"},
    "integrated": {"method": "integrated"},
    "one path": {"method": "integrated", "groups": 1},
}


def correlations(rows: list[dict]) -> list[str]:
    """Over all nodes of a method; over its latents; of a prompt: median, lowest, highest."""

    def r(chosen: list[dict]) -> float:
        value = pearson([row["effect"] for row in chosen], [row["ablated"] for row in chosen])
        return float("nan") if value is None else value

    latents = [row for row in rows if row["latent"] != "error"]
    each = [r([row for row in rows if row["prompt"] == prompt]) for prompt in PROMPTS]
    figures = (r(rows), r(latents), statistics.median(each), min(each), max(each))
    return [f"{figure:.3f}" for figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    file = None if asked.csv is None else CsvFile(asked.csv, machine(pick_device("cpu")))
    lines = []
    for name, options in METHODS.items():
        rows = []
        for prompt, versus in PROMPTS.items():
            result = attribute(
                asked.checkpoints, prompt=prompt, versus=versus, positions="1:",
                **options,
            )  # fmt: skip
            for node in result.nodes:
                latent = "error" if node.index is None else node.index
                row = {"method": name, "prompt": prompt, "hook": node.hook, "latent": latent}
                row |= {"position": node.position, "effect": node.effect, "ablated": node.ablated}
                rows.append(row)
                if file is not None:
                    file.write(row)
        lines.append([name, *correlations(rows)])
    header = [
        "method",
        "r, all nodes",
        "latents only",
        "r of a prompt: median",
        "lowest",
        "highest",
    ]
    print(table(header, lines, left=(0,)))


if __name__ == "__main__":
    main()

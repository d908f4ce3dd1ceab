"""The errors of a report: their histograms next to those of anomalies, and which classes a model
reconstructs badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.evaluation.passes import SampleOutput, chosen_batches, errors_of, outputs_of
from saekit.measures.anomaly import auroc, error_histogram, squared_errors
from saekit.models.metrics import METRICS
from saekit.report.charts import histogram, in_order
from saekit.report.page import Panel, cell, figure, grid, note, number, table
from saekit.report.panels import counted
from saekit.rows import Rows
from saekit.types import ActivationBatch

MOST_CLASSES = 20


def errors_panel(outputs: Sequence[SampleOutput], anomalies: Rows | None, seed: int) -> Panel:
    """Each model's errors next to those of shuffled rows and, where there are any, of real
    anomalies."""
    # histograms, and AUROC of each kind of anomaly
    items, numbers = [], {}
    for output in outputs:
        entry: dict[str, Any] = {"mean": float(output.errors.mean())}
        shuffled = _shuffled_errors(output, seed)
        real = _anomaly_errors(output, anomalies, seed)
        for key, name, errors in (
            ("auroc", "shuffled", shuffled),
            ("auroc_anomalies", "anomalies", real),
        ):
            if errors is None:
                continue
            entry[key] = auroc(output.errors, errors)
            if output.evaluated.role == "run":
                items.append(_histogram(output, name, errors))
        numbers[output.evaluated.name] = entry

    # means of each class
    classes, dropped = _classes(outputs[0].sample.labels)
    for output in outputs:
        numbers[output.evaluated.name]["by_class"] = _class_means(output, classes)

    text = note(_explanation(outputs, anomalies, classes, dropped))
    body = text + grid(items) + _errors_table(outputs, numbers, classes)
    return Panel("Errors", body, {"errors": numbers})


def _explanation(
    outputs: Sequence[SampleOutput], anomalies: Rows | None, classes: list[str], dropped: int
) -> str:
    text = (
        f"Squared errors of {counted(outputs)} that were evaluated, and of synthetic anomalies: the"
        " same with the values of each feature permuted among them, each feature by its own"
        " permutation. Every feature keeps its distribution; which values go together is lost."
        " AUROC: how often an anomaly has a larger error than a row as it is; 0.5 is chance. It is"
        " not computed for models of a target or of examples that differ in length."
    )
    if anomalies is not None:
        text += f" Anomalies: rows of {Path(anomalies.path).name}."
    if classes:
        text += " By class below, with the worst class of each model in bold."
    return text + (f" The {dropped} rarest classes are not shown." if dropped else "")


def _histogram(output: SampleOutput, name: str, anomalous: torch.Tensor) -> str:
    edges, counts = error_histogram(output.errors, anomalous)
    counts = {"as they are": counts["normal"], name: counts["anomalous"]}
    title, unit = f"{output.evaluated.name}: {name}", f"{output.evaluated.unit}s"
    return figure(histogram(counts, edges, title, "squared error", unit))


def _anomaly_errors(output: SampleOutput, anomalies: Rows | None, seed: int) -> torch.Tensor | None:
    if anomalies is None or output.evaluated.target is not None:
        return None
    count, examples = len(output.sample.labels), output.evaluated.examples
    return errors_of(
        output.evaluated.model, chosen_batches(anomalies, "all", count, seed, examples)
    )


def _errors_table(
    outputs: Sequence[SampleOutput], numbers: dict[str, dict[str, Any]], classes: list[str]
) -> str:
    headings = {"auroc": "AUROC, shuffled", "auroc_anomalies": "AUROC, anomalies"}
    columns = [key for key in headings if any(key in entry for entry in numbers.values())]
    rows = []
    for output in outputs:
        entry = numbers[output.evaluated.name]
        means = entry["by_class"]
        form = _form(max([entry["mean"], *means.values()]))
        worst = max(means.values(), default=None)
        cells = [
            cell(output.evaluated.name, "left"),
            *(cell(METRICS["auroc"].text(entry.get(key), "–")) for key in columns),
            cell(number(entry["mean"], form)),
            *(
                cell(number(means.get(name), form), "other" if means.get(name) == worst else "")
                for name in classes
            ),
        ]
        rows.append((output.evaluated.role, cells))
    header = ("", *(headings[key] for key in columns), "mean error", *classes)
    return table(header, rows)


def _form(largest: float) -> str:
    """Three digits of the largest value: a row of numbers that can be compared by eye."""
    forms = {100: ".0f", 10: ".1f", 1: ".2f", 0.01: ".3f"}
    return next((form for least, form in forms.items() if largest >= least), ".2e")


def _shuffled_errors(output: SampleOutput, seed: int) -> torch.Tensor | None:
    batch = output.sample.batch
    if batch.target is not None or batch.mask is not None or len(batch.x) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    flat = output.sample.x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    x = flat.gather(0, order).reshape(batch.x.shape)
    shuffled = ActivationBatch(x, batch.doc_id, batch.example_id, batch.position)
    return squared_errors(x, outputs_of(output.evaluated.model, shuffled)[0])


def _classes(labels: Sequence[str | None]) -> tuple[list[str], int]:
    """(labels of the sample, at most MOST_CLASSES; how many rarer ones are dropped)."""
    counts = Counter(label for label in labels if label is not None)
    if len(counts) < 2:
        return [], 0
    kept = in_order(name for name, _ in counts.most_common(MOST_CLASSES))
    return kept, len(counts) - len(kept)


def _class_means(output: SampleOutput, classes: Sequence[str]) -> dict[str, float]:
    labels = np.array([label or "" for label in output.sample.labels])
    members = {name: torch.from_numpy(labels == name) for name in classes}
    return {
        name: float(output.errors[chosen].mean())
        for name, chosen in members.items()
        if chosen.any()
    }

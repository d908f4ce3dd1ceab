"""The errors of a report: their histograms beside those of anomalies, and which classes a model
reconstructs badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.evaluation.passes import Look, errors_of, outputs_of, some
from saekit.measures.anomaly import auroc, error_histogram, squared_errors
from saekit.models.metrics import METRICS
from saekit.report.charts import histogram
from saekit.report.page import Panel, cell, figure, grid, note, number, table
from saekit.report.panels import counted
from saekit.rows import Rows
from saekit.types import ActivationBatch

MOST_CLASSES = 20


def errors_panel(looks: Sequence[Look], anomalies: Rows | None, seed: int) -> Panel:
    """Each model's errors beside those of shuffled rows and, where there is a store of them, of
    real anomalies."""
    items, found = [], {}
    for look in looks:
        entry: dict[str, Any] = {"mean": float(look.errors.mean())}
        shuffled, given = _shuffled_errors(look, seed), _strange_errors(look, anomalies, seed)
        for key, name, strange in (
            ("auroc", "shuffled", shuffled),
            ("auroc_anomalies", "anomalies", given),
        ):
            if strange is None:
                continue
            entry[key] = auroc(look.errors, strange)
            if look.subject.role == "run":
                items.append(_histogram(look, name, strange))
        found[look.subject.name] = entry
    classes, left = _classes(looks[0].sample.labels)
    for look in looks:
        found[look.subject.name]["by_class"] = _class_means(look, classes)
    what = (
        f"Squared errors of {counted(looks)} that were judged, and of made anomalies: the same with"
        " the values of each feature permuted among them, each feature by a permutation of its"
        " own. Every feature keeps its distribution; what is destroyed is which values go"
        " together. AUROC: how often an anomaly has the larger error than a row as it is; 0.5 is"
        " chance. It is left out for models of a target or of examples that differ in length."
    )
    if anomalies is not None:
        what += f" Anomalies: rows of {Path(anomalies.path).name}."
    worst = (
        " By class below; a model's worst class stands"
        f" out.{f' The {left} rarest classes are left out.' if left else ''}"
    )
    body = (
        note(what + (worst if classes else "")) + grid(items) + _errors_table(looks, found, classes)
    )
    return Panel("Errors", body, {"errors": found})


def _histogram(look: Look, name: str, strange: torch.Tensor) -> str:
    edges, counts = error_histogram(look.errors, strange)
    counts = {"as they are": counts["normal"], name: counts["anomalous"]}
    return figure(
        histogram(
            counts, edges, f"{look.subject.name}: {name}", "squared error", f"{look.subject.unit}s"
        )
    )


def _strange_errors(look: Look, anomalies: Rows | None, seed: int) -> torch.Tensor | None:
    if anomalies is None or look.subject.target is not None:
        return None
    batches = some(anomalies, "all", len(look.sample.labels), seed, look.subject.examples)
    return errors_of(look.subject.model, batches)


def _errors_table(
    looks: Sequence[Look], found: dict[str, dict[str, Any]], classes: list[str]
) -> str:
    columns = {"auroc": "AUROC, shuffled", "auroc_anomalies": "AUROC, anomalies"}
    columns = {
        key: name for key, name in columns.items() if any(key in entry for entry in found.values())
    }
    rows = []
    for look in looks:
        entry = found[look.subject.name]
        means = entry["by_class"]
        form = _form(max([entry["mean"], *means.values()]))
        marks = [
            cell(number(means.get(c), form), "other" if means.get(c) == max(means.values()) else "")
            for c in classes
        ]
        shown = [cell(METRICS["auroc"].text(entry.get(key), "–")) for key in columns]
        figures = [*shown, cell(number(entry["mean"], form))]
        rows.append((look.subject.role, [cell(look.subject.name, "left"), *figures, *marks]))
    return table(("", *columns.values(), "mean error", *classes), rows)


def _form(largest: float) -> str:
    """Three digits of the largest value: a row of numbers that can be compared by eye."""
    return (
        ".0f"
        if largest >= 100
        else (
            ".1f"
            if largest >= 10
            else ".2f"
            if largest >= 1
            else ".3f"
            if largest >= 0.01
            else ".2e"
        )
    )


def _shuffled_errors(look: Look, seed: int) -> torch.Tensor | None:
    batch = look.sample.batch
    if batch.target is not None or batch.mask is not None or len(batch.x) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    flat = look.sample.x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    x = flat.gather(0, order).reshape(batch.x.shape)
    x_hat, _ = outputs_of(
        look.subject.model, ActivationBatch(x, batch.doc_id, batch.example_id, batch.position)
    )
    return squared_errors(x, x_hat)


def _classes(labels: Sequence[str | None]) -> tuple[list[str], int]:
    """(labels of the sample, numbers in their order before words, at most MOST_CLASSES; how many
    rarer ones are left out)."""
    counts = Counter(label for label in labels if label is not None)
    if len(counts) < 2:
        return [], 0
    kept = [name for name, _ in counts.most_common(MOST_CLASSES)]
    return sorted(
        kept, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    ), len(counts) - len(kept)


def _class_means(look: Look, classes: Sequence[str]) -> dict[str, float]:
    of = np.array([label or "" for label in look.sample.labels])
    return {
        c: float(look.errors[torch.from_numpy(of == c)].mean()) for c in classes if (of == c).any()
    }

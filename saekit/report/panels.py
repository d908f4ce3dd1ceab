"""The sections of a report that any data has: the table, maps of the codes, settings; errors are in
error_panel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from saekit.evaluation.compare import IN_TABLES, Comparison, Inputs
from saekit.evaluation.models import EvaluatedModel
from saekit.evaluation.passes import Sample, SampleOutput
from saekit.measures.codes import map_2d
from saekit.models.metrics import METRICS
from saekit.report.charts import scatter
from saekit.report.page import Panel, cell, figure, grid, note, notes, table
from saekit.versions import versions

MAP_ROWS, TSNE_ROWS = 2000, 1000
WIDE = 256  # latents; wider codes are reduced by PCA first, as van der Maaten does before t-SNE
REDUCED = 50


def figures_panel(comparison: Comparison) -> Panel:
    shown = [
        name
        for name in IN_TABLES
        if name in ("fvu", "mse") or any(row.metrics[name] is not None for row in comparison.rows)
    ]
    groups: list[list] = []
    for row in comparison.rows:
        if row.role == "run" and (not groups or groups[-1][-1].role == "control"):
            groups.append([])
        groups[-1].append(row)
    rows = []
    for group in groups:
        values = [row.metrics["fvu"] for row in group if row.metrics["fvu"] is not None]
        best = min(values, default=None)
        for i, row in enumerate(group):
            kind = f"{row.role}{' opens' if i == 0 and group is not groups[0] else ''}"
            rows.append((kind, [*_identity(row), *(_metric(row, name, best) for name in shown)]))
    header = ("", "model", "parameters", "latents", "code", *shown)
    body = table(header, rows, left=2) + note(_meanings(comparison, shown))
    return Panel("Figures", body + notes(comparison.notes))


def _meanings(comparison: Comparison, shown: Sequence[str]) -> str:
    """What the columns are, in a paragraph."""
    examples = any(row.unit == "example" for row in comparison.rows)
    columns = {"code": "numbers that the code keeps of a row"}
    columns |= {name: METRICS[name].meaning for name in shown}
    if "knn" in shown:
        columns["knn"] += (
            f" ({comparison.k} of {comparison.reference_rows:,} training codes;"
            f" rows{' or examples' if examples else ''})"
        )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in columns.items())
    return (
        f"{meanings}; –: does not apply. A dot marks the lowest fvu among runs of one code size and"
        " their controls."
    )


def _identity(row: Any) -> list[str]:
    model = "" if row.role == "control" else row.model
    return [
        cell(row.name, "left"),
        cell(model, "left"),
        cell(f"{row.params:,}"),
        cell(f"{row.latents:,}"),
        cell(f"{row.code_size:,}"),
    ]


def _metric(row: Any, name: str, best: float | None) -> str:
    value = row.metrics[name]
    if name != "fvu":
        return cell(METRICS[name].text(value, "–"))
    return cell(
        METRICS[name].text(value, "–"),
        "best" if value is not None and value == best else "",
        "" if value is None else _gauge(value),
    )


def _gauge(share: float) -> str:
    return (
        '<svg class="gauge" viewBox="0 0 72 6" aria-hidden="true"><rect'
        f' width="{72 * min(max(share, 0), 1):.1f}" height="6"/></svg>'
    )


def codes_panel(outputs: Sequence[SampleOutput], raw: Sample | None, seed: int) -> Panel | None:
    """Maps of the codes of runs; k-means has no code to draw. `raw` (flat rows) is drawn as well,
    to see what the data shows by itself."""
    items = []
    for output in outputs:
        if output.evaluated.role == "run" and output.evaluated.kind != "kmeans":
            items += _maps(output.evaluated.name, output.codes, output.sample.labels, seed)
    if not items:
        return None
    if raw is not None:
        items += _maps("raw input", raw.x.flatten(1).numpy(), raw.labels, seed)
    labels = any(label is not None for label in outputs[0].sample.labels)
    text = (
        f"Codes of {counted(outputs, MAP_ROWS)}, at most {TSNE_ROWS:,} for t-SNE."
        " PCA keeps the distances along the two widest directions of the code. t-SNE keeps only"
        " neighbors: sizes of its clusters and gaps between them mean nothing. Codes of more than"
        f" {WIDE} latents are reduced to {REDUCED} numbers by PCA first."
        + (" Color is the data's own label, which training did not see." if labels else "")
    )
    return Panel("Codes", note(text) + grid(items))


def counted(outputs: Sequence[SampleOutput], most: int = 1 << 30) -> str:
    """'360 rows', or '80 examples and 1,920 rows' where models differ in what they take."""
    counts = {
        f"{output.evaluated.unit}s": min(len(output.sample.labels), most) for output in outputs
    }
    return " and ".join(f"{count:,} {unit}" for unit, count in counts.items())


def _maps(
    name: str, codes: np.ndarray | csr_matrix, labels: Sequence[str | None], seed: int
) -> list[str]:
    """One chart of a code of two values, else one of each method."""
    z_NF = codes[:MAP_ROWS].toarray() if isinstance(codes, csr_matrix) else codes[:MAP_ROWS]
    latents = z_NF.shape[1]
    z_NF = z_NF[:, z_NF.any(0)]  # latents that no row activates only cost time
    if z_NF.shape[1] < 2 or len(z_NF) < 3:
        return []

    def drawn(points: np.ndarray, title: str, *axes: str) -> str:
        names = [label or "no label" for label in labels[: len(points)]]
        unlabeled = all(label is None for label in labels)
        return figure(scatter(points, None if unlabeled else names, title, *axes))

    if latents == 2:
        return [drawn(z_NF, f"{name} as it is", "first value", "second value")]
    if z_NF.shape[1] > WIDE:
        z_NF = PCA(
            min(REDUCED, len(z_NF)), svd_solver="randomized", random_state=seed
        ).fit_transform(z_NF)
    items = []
    for method, title, count in (("pca", "PCA", MAP_ROWS), ("tsne", "t-SNE", TSNE_ROWS)):
        # so few points do not gain from threads, which cost much time on a busy machine
        with threadpool_limits(1):
            points = map_2d(z_NF[:count], method, seed)
        items.append(drawn(points, f"{name}: {title}"))
    return items


def settings_panel(inputs: Inputs) -> Panel:
    """Every setting of every run; where they differ, in bold."""
    runs, store = inputs.runs, inputs.store
    columns = {run.name: _settings(run, store.content) for run in runs}
    names = list(dict.fromkeys(name for settings in columns.values() for name in settings))
    rows = []
    for name in names:
        values = [columns[run.name].get(name, "–") for run in runs]
        kind = "other" if len(set(values) - {"–"}) > 1 else "same"
        rows.append(("", [cell(name, "left"), *(cell(value, kind) for value in values)]))
    text = "Settings that differ between the runs are in bold; – where a model has no such setting."
    used = versions()
    by = f"saekit {used['saekit']}, torch {used['torch']} evaluated them."
    body = note(
        f"{text} {by} Store: {store.spec.model}, {store.spec.hook}, of"
        f" {data_name(store.spec.dataset)}."
    ) + table(("", *columns), rows)
    return Panel(
        "Settings",
        body,
        {"settings": columns, "versions": versions()},
    )


def _settings(run: EvaluatedModel, content: str) -> dict[str, str]:
    """Of a model in memory only the options of the model itself are known."""
    options = {
        name: value
        for name, value in dataclasses.asdict(run.model.config).items()
        if name not in ("d_in", "d_out", "shape")
    }
    if run.config is None:
        settings = {"model": run.kind.split(" ")[0], **options, "trained on": "not known"}
        return _as_texts(settings)
    training = {
        name: value
        for name, value in run.config["training"].items()
        if name not in ("save_seconds", "model", *options)
    }
    trained_on = (
        "this store"
        if run.config["content"] == content
        else f"another: {data_name(run.config['spec']['dataset'])}"
    )
    settings = {"model": run.config["model"], **options, **training}
    settings |= {"backend": run.config["backend"]["name"], "trained on": trained_on}
    settings |= {f"{name} version": value for name, value in run.config["versions"].items()}
    return _as_texts(settings)


def _as_texts(settings: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", " "): _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def data_name(dataset: str | None) -> str:
    """Without the folders of a path: the page is for showing around. None: an import that does not
    say."""
    if dataset is None:
        return "not known"
    return dataset.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]

"""The sections of a report that any data has: the table, maps of the codes, settings; errors are in
error_panel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from saekit.evaluation.compare import COMPARED, Comparison, Inputs
from saekit.evaluation.models import EvaluatedModel
from saekit.evaluation.passes import Look, Sample
from saekit.measures.codes import map_2d
from saekit.models.metrics import METRICS
from saekit.report.charts import scatter
from saekit.report.page import Panel, cell, figure, grid, note, notes, table

MAP_ROWS, TSNE_ROWS = 2000, 1000
# numbers that wide codes are brought down to by PCA before they are drawn, as van der Maaten does
# before t-SNE
REDUCED = 50
WIDE = 256


def figures_panel(comparison: Comparison) -> Panel:
    shown = [
        name
        for name in COMPARED
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


def codes_panel(looks: Sequence[Look], raw: Sample | None, seed: int) -> Panel | None:
    """Runs only; k-means has no code to draw. `raw` (flat rows) is drawn as well, to see what the
    data shows by itself."""
    items = []
    for look in looks:
        if look.subject.role == "run" and look.subject.kind != "kmeans":
            items += _maps(look.subject.name, look.codes, look.sample.labels, seed)
    if not items:
        return None
    if raw is not None:
        items += _maps("raw input", raw.x.flatten(1).numpy(), raw.labels, seed)
    labels = any(label is not None for label in looks[0].sample.labels)
    what = (
        f"Codes of {counted(looks, MAP_ROWS)} that were judged, at most {TSNE_ROWS:,} for t-SNE."
        " PCA keeps the distances along the two widest directions of the code. t-SNE keeps"
        " neighbours only: sizes of its clusters and gaps between them mean nothing. Codes of more"
        f" than {WIDE} latents are brought down to {REDUCED} numbers by PCA before."
        + (" Colour is the data's own label, unseen in training." if labels else "")
    )
    return Panel("Codes", note(what) + grid(items))


def counted(looks: Sequence[Look], most: int = 1 << 30) -> str:
    """'360 rows', or '80 examples and 1,920 rows' where models differ in what they take."""
    counts = {f"{look.subject.unit}s": min(len(look.sample.labels), most) for look in looks}
    return " and ".join(f"{count:,} {unit}" for unit, count in counts.items())


def _maps(
    name: str, codes: np.ndarray | csr_matrix, labels: Sequence[str | None], seed: int
) -> list[str]:
    z_NF = np.asarray(
        codes[:MAP_ROWS].todense() if isinstance(codes, csr_matrix) else codes[:MAP_ROWS]
    )
    z_NF = z_NF[:, z_NF.any(0)]  # latents that no row activates only cost time
    drawn = (
        None
        if all(label is None for label in labels)
        else [label or "no label" for label in labels]
    )
    if z_NF.shape[1] < 2 or len(z_NF) < 3:
        return []
    if codes.shape[1] == 2:
        axes = ("first value", "second value")
        return [figure(scatter(z_NF, drawn and drawn[: len(z_NF)], f"{name} as it is", *axes))]
    if z_NF.shape[1] > WIDE:
        z_NF = PCA(
            min(REDUCED, len(z_NF)), svd_solver="randomized", random_state=seed
        ).fit_transform(z_NF)
    items = []
    for method, title, count in (("pca", "PCA", MAP_ROWS), ("tsne", "t-SNE", TSNE_ROWS)):
        # so few points gain nothing by threads, which lose much time where the machine has other
        # work
        with threadpool_limits(1):
            points = map_2d(z_NF[:count], method, seed)
        items.append(figure(scatter(points, drawn and drawn[: len(points)], f"{name}: {title}")))
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
    what = "Settings that differ between the runs are in bold; – where a model has no such setting."
    written = f"saekit {version('saekit')}, torch {version('torch')} judged them."
    body = note(
        f"{what} {written} Store: {store.spec.model}, {store.spec.hook}, of"
        f" {data_name(store.spec.dataset)}."
    ) + table(("", *columns), rows)
    return Panel(
        "Settings",
        body,
        {"settings": columns, "versions": {name: version(name) for name in ("saekit", "torch")}},
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
    return {name.replace("_", " "): _said(value) for name, value in settings.items()}


def _said(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return (
        f"{value:g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def data_name(dataset: str) -> str:
    """Without the folders of a path: the page is for showing around."""
    return dataset.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]

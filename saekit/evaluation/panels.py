"""The sections of a report that any data has: the table, maps of the codes, errors, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from saekit.evaluation.anomaly import auroc, error_histogram
from saekit.evaluation.charts import histogram, scatter
from saekit.evaluation.codes import map_2d
from saekit.evaluation.compare import METRICS, Comparison
from saekit.evaluation.page import Panel, cell, figure, grid, note, notes, number, table
from saekit.evaluation.passes import Look, Sample, errors, outputs_of
from saekit.evaluation.subjects import Subject
from saekit.store.reader import Store
from saekit.types import ActivationBatch

MAP_ROWS, TSNE_ROWS = 2000, 1000
REDUCED = 50  # numbers that wide codes are brought down to by PCA before they are drawn, as van der Maaten does before t-SNE
WIDE = 256
MOST_CLASSES = 20
FORMS = {"mse": ".4g", "l0": ".1f", "dead": ".1%", "knn": ".1%", "elbo": ".2f"}
MEANINGS = (
    "code: numbers that the code keeps of a row; fvu: squared error as a share of the rows' variance, 0 is perfect, 1 the mean row; mse: "
    "squared error summed over a row's values; cosine: between row and reconstruction; l0: active latents a row; dead: latents that no row "
    "activates; –: does not apply. A dot marks the lowest fvu among runs of one code size and their controls."
)


def figures_panel(comparison: Comparison) -> Panel:
    shown = [name for name in METRICS if name in ("fvu", "mse") or any(row.metrics[name] is not None for row in comparison.rows)]
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
    units = " or examples" if any(row.unit == "example" for row in comparison.rows) else ""
    knn = f" knn: share of held-out rows{units} whose label is that of most of their {comparison.k} nearest codes among "
    meanings = MEANINGS + (f"{knn}{comparison.reference_rows:,} training ones." if "knn" in shown else "")
    return Panel("Figures", table(header, rows, left=2) + note(meanings) + notes(comparison.notes))


def _identity(row: Any) -> list[str]:
    model = "" if row.role == "control" else row.model
    return [cell(row.name, "left"), cell(model, "left"), cell(f"{row.params:,}"), cell(f"{row.latents:,}"), cell(f"{row.code_size:,}")]


def _metric(row: Any, name: str, best: float | None) -> str:
    value = row.metrics[name]
    if name != "fvu":
        return cell(number(value, FORMS.get(name, ".4f")))
    return cell(number(value), "best" if value is not None and value == best else "", "" if value is None else _gauge(value))


def _gauge(share: float) -> str:
    return f'<svg class="gauge" viewBox="0 0 72 6" aria-hidden="true"><rect width="{72 * min(max(share, 0), 1):.1f}" height="6"/></svg>'


def codes_panel(looks: Sequence[Look], raw: Sample | None, seed: int) -> Panel | None:
    """Runs only; k-means has no code to draw. `raw` (flat rows) is drawn as well, to see what the data shows by itself."""
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
        f"Codes of {_counted(looks, MAP_ROWS)} that were judged, at most {TSNE_ROWS:,} for t-SNE. PCA keeps the distances along the two "
        "widest directions of the code. t-SNE keeps neighbours only: sizes of its clusters and gaps between them mean nothing. Codes of "
        f"more than {WIDE} latents are brought down to {REDUCED} numbers by PCA before."
    ) + (" Colour is the data's own label, unseen in training." if labels else "")
    return Panel("Codes", note(what) + grid(items))


def _counted(looks: Sequence[Look], most: int = 1 << 30) -> str:
    """'360 rows', or '80 examples and 1,920 rows' where models differ in what they take."""
    counts = {f"{look.subject.unit}s": min(len(look.sample.labels), most) for look in looks}
    return " and ".join(f"{count:,} {unit}" for unit, count in counts.items())


def _maps(name: str, codes: np.ndarray | csr_matrix, labels: Sequence[str | None], seed: int) -> list[str]:
    z_NF = np.asarray(codes[:MAP_ROWS].todense() if isinstance(codes, csr_matrix) else codes[:MAP_ROWS])
    z_NF = z_NF[:, z_NF.any(0)]  # latents that no row activates only cost time
    drawn = None if all(label is None for label in labels) else [label or "no label" for label in labels]
    if z_NF.shape[1] < 2 or len(z_NF) < 3:
        return []
    if codes.shape[1] == 2:
        axes = ("first value", "second value")
        return [figure(scatter(z_NF, drawn and drawn[: len(z_NF)], f"{name} as it is", *axes)), "<div></div>"]
    if z_NF.shape[1] > WIDE:
        z_NF = PCA(min(REDUCED, len(z_NF)), svd_solver="randomized", random_state=seed).fit_transform(z_NF)
    items = []
    for method, title, count in (("pca", "PCA", MAP_ROWS), ("tsne", "t-SNE", TSNE_ROWS)):
        with threadpool_limits(1):  # so few points gain nothing by threads, which lose much time where the machine has other work
            points = map_2d(z_NF[:count], method, seed)
        items.append(figure(scatter(points, drawn and drawn[: len(points)], f"{name}: {title}")))
    return items


def errors_panel(looks: Sequence[Look], seed: int) -> Panel:
    items, found = [], {}
    for look in looks:
        anomalous = _shuffled_errors(look, seed)
        entry: dict[str, Any] = {"mean": float(look.errors.mean())}
        if anomalous is not None:
            entry["auroc"] = auroc(look.errors, anomalous)
            if look.subject.role == "run":
                edges, counts = error_histogram(look.errors, anomalous)
                counts = {"as they are": counts["normal"], "shuffled": counts["anomalous"]}
                items.append(figure(histogram(counts, edges, look.subject.name, "squared error", f"{look.subject.unit}s")))
        found[look.subject.name] = entry
    classes, left = _classes(looks[0].sample.labels)
    for look in looks:
        found[look.subject.name]["by_class"] = _class_means(look, classes)
    what = (
        f"Squared errors of {_counted(looks)} that were judged, and of made anomalies: the same with the values of each feature "
        "permuted among them, each feature by a permutation of its own. Every feature keeps its distribution; what is destroyed is "
        "which values go together. AUROC: how often an anomaly has the larger error than a row as it is; 0.5 is chance. It is left out for "
        "models of a target or of examples that differ in length."
    )
    worst = f" By class below; a model's worst class stands out.{f' The {left} rarest classes are left out.' if left else ''}"
    return Panel("Errors", note(what + (worst if classes else "")) + grid(items) + _errors_table(looks, found, classes), {"errors": found})


def _errors_table(looks: Sequence[Look], found: dict[str, dict[str, Any]], classes: list[str]) -> str:
    rows = []
    for look in looks:
        entry = found[look.subject.name]
        means = entry["by_class"]
        form = _form(max([entry["mean"], *means.values()]))
        marks = [cell(number(means.get(c), form), "other" if means.get(c) == max(means.values()) else "") for c in classes]
        figures = [cell(number(entry.get("auroc"), ".3f")), cell(number(entry["mean"], form))]
        rows.append((look.subject.role, [cell(look.subject.name, "left"), *figures, *marks]))
    return table(("", "AUROC", "mean error", *classes), rows)


def _form(largest: float) -> str:
    """Three digits of the largest value: a row of numbers that can be compared by eye."""
    return ".0f" if largest >= 100 else ".1f" if largest >= 10 else ".2f" if largest >= 1 else ".3f" if largest >= 0.01 else ".2e"


def _shuffled_errors(look: Look, seed: int) -> torch.Tensor | None:
    batch = look.sample.batch
    if batch.target is not None or batch.mask is not None or len(batch.x) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    flat = look.sample.x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    x = flat.gather(0, order).reshape(batch.x.shape)
    x_hat, _ = outputs_of(look.subject.model, ActivationBatch(x, batch.doc_id, batch.example_id, batch.position))
    return errors(x, x_hat)


def _classes(labels: Sequence[str | None]) -> tuple[list[str], int]:
    """(labels of the sample, numbers in their order before words, at most MOST_CLASSES; how many rarer ones are left out)."""
    counts = Counter(label for label in labels if label is not None)
    if len(counts) < 2:
        return [], 0
    kept = [name for name, _ in counts.most_common(MOST_CLASSES)]
    return sorted(kept, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)), len(counts) - len(kept)


def _class_means(look: Look, classes: Sequence[str]) -> dict[str, float]:
    of = np.array([label or "" for label in look.sample.labels])
    return {c: float(look.errors[torch.from_numpy(of == c)].mean()) for c in classes if (of == c).any()}


def settings_panel(runs: Sequence[Subject], store: Store) -> Panel:
    """Every setting of every run; where they differ, in bold."""
    columns = {run.name: _settings(run, store) for run in runs}
    names = list(dict.fromkeys(name for settings in columns.values() for name in settings))
    rows = []
    for name in names:
        values = [columns[run.name].get(name, "–") for run in runs]
        kind = "other" if len(set(values) - {"–"}) > 1 else "same"
        rows.append(("", [cell(name, "left"), *(cell(value, kind) for value in values)]))
    what = "Settings that differ between the runs are in bold; – where a model has no such setting."
    written = f"saekit {version('saekit')}, torch {version('torch')} judged them."
    body = note(f"{what} {written} Store: {store.spec.model}, {store.spec.hook}, of {data_name(store.spec.dataset)}.") + table(
        ("", *columns), rows
    )
    return Panel("Settings", body, {"settings": columns, "versions": {name: version(name) for name in ("saekit", "torch")}})


def _settings(run: Subject, store: Store) -> dict[str, str]:
    config = run.config
    own = {name: value for name, value in config["config"].items() if name not in ("d_in", "d_out", "shape")}
    training = {name: value for name, value in config["training"].items() if name not in ("save_seconds", "model", *own)}
    said = {"model": config["model"], **own, **training}
    said["backend"] = config["backend"]["name"]
    said["trained on"] = "this store" if config["content"] == store.manifest.content else f"another: {data_name(config['spec']['dataset'])}"
    said |= {f"{name} version": value for name, value in config["versions"].items()}
    return {name.replace("_", " "): _said(value) for name, value in said.items()}


def _said(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def data_name(dataset: str) -> str:
    """Without the folders of a path: the page is for showing around."""
    return dataset.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]

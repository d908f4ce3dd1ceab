"""Runs next to each other and to the controls that they have to beat: the figures of the verb
`compare`, as data.

saekit.report.comparison writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from saekit.device import CPU, pick_device
from saekit.display import brief, html_table, pandas, plain_table
from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.evaluation.controls import Sized, controls_for
from saekit.evaluation.models import EvaluatedModel, open_anomalies, open_runs
from saekit.evaluation.passes import chosen_batches, codes_of, errors_of, knn_rows
from saekit.measures.anomaly import auroc
from saekit.measures.codes import neighbours
from saekit.models.autoencoder import Autoencoder
from saekit.models.contextual import Contextual
from saekit.models.metrics import METRICS, ROW_METRICS, SAMPLE_METRICS, Figures
from saekit.rows import Rows
from saekit.store.labels import labels_of
from saekit.store.opening import RowsLike, open_rows
from saekit.training.checkpoints import ModelLike
from saekit.training.fit import holdout_figures
from saekit.types import Progress, Split

ANOMALY_ROWS = 20_000  # of rows and of anomalies, unless `rows` says otherwise
# controls of a group in the table: the strongest on most data first
ORDER = ("pca", "kmeans", "sae topk", "ridge")
COMPARED = (
    *(metric.name for metric in ROW_METRICS),
    *("knn", "elbo", "auroc"),
    *(metric.name for metric in SAMPLE_METRICS),
)
IN_TABLES = tuple(name for name in COMPARED if not METRICS[name].foreign)


@dataclass(frozen=True)
class ComparisonRow:
    checkpoint: str | None
    name: str
    model: str
    """Name in the catalog, with the sparsity of an SAE."""
    role: str
    """run | control"""
    control_of: tuple[str, ...]
    """Names of the runs that a control is compared with."""
    unit: str
    """What one code encodes: row | example."""
    target: str | None
    """The store whose rows the model reconstructs; None: the input itself."""
    params: int
    latents: int
    code_size: int
    """Numbers that the code keeps per row or example: the latents of a dense code, the rounded l0
    (at least 1) of a sparse one."""
    rows: int
    """Rows evaluated."""
    metrics: dict[str, float | None]
    """COMPARED, by name (saekit.models.metrics). None where one does not apply."""


@dataclass(frozen=True)
class Comparison:
    store: str
    split: str
    """Which rows were evaluated: holdout | train | all. knn always uses held-out rows."""
    rows: list[ComparisonRow]
    """Runs of equal code size together, followed by their controls; last `raw input`, which has no
    model."""
    k: int
    reference_rows: int
    """Training rows among which neighbors were searched."""
    seed: int
    notes: list[str]
    """What was capped, and which runs saw other data."""
    report: str | None
    """Path of the page; None: none was written."""

    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each row of the table: its name, role and sizes, then the metrics."""
        names = ("name", "model", "role", "params", "latents", "code_size", "rows")
        return [{name: getattr(row, name) for name in names} | row.metrics for row in self.rows]

    def to_pandas(self) -> Any:
        """A DataFrame of `figures`. Raises MissingError without pandas."""
        return pandas().DataFrame(self.figures())

    def __repr__(self) -> str:
        values = {"split": self.split, "report": self.report}
        return "\n".join([brief(self, values, repr(self.store)), plain_table(self.figures())])

    def _repr_html_(self) -> str:
        return html_table(self.figures(), f"{self.store}, {self.split}")


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and on which rows; both are known to fit."""

    runs: list[EvaluatedModel]
    store: Rows
    anomalies: Rows | None
    split: Split
    rows: int | None
    k: int
    seed: int
    device: torch.device = CPU


@dataclass(frozen=True)
class Judged:
    """A comparison, and what its page shows in addition."""

    comparison: Comparison
    models: list[EvaluatedModel]
    """The models of its rows, in their order, without the raw input."""
    inputs: Inputs


def open_inputs(
    runs: Sequence[ModelLike],
    store: RowsLike,
    rows: int | None,
    split: Split | None,
    target_store: str | Path | None,
    anomalies: RowsLike | None,
    k: int,
    seed: int,
    any_store: bool = False,
    device: str = "cpu",
) -> Inputs:
    """Arguments and errors are those of saekit.compare."""
    split = split or "holdout"
    check_choice("split", split, get_args(Split))
    for option, value in (("rows", rows), ("neighbours", k)):
        if value is not None and value < 1:
            raise UsageError(f"{opt(option, value)} must be at least 1")
    where = pick_device(device)
    source = open_rows(store)
    if source.parts:
        raise UsageError("compare takes one store", "saekit.evaluate judges crosscoders")
    models = open_runs(runs, source, target_store, any_store)
    # controls keep as many numbers as one code
    if run := next((run for run in models if isinstance(run.model, Contextual)), None):
        raise UsageError(
            f"{run.name} has a code for each position of a context, and compare takes one code for"
            " each row or example",
            "saekit.evaluate judges it",
        )
    anomalous = None if anomalies is None else open_anomalies(anomalies, source)
    return Inputs(models, source, anomalous, split, rows, k, seed, where)


def judge(inputs: Inputs, progress: Callable[[Progress], None] = lambda _: None) -> Judged:
    """The figures of the runs and of their controls (saekit.evaluation.controls), on the same rows.
    Nothing is written.

    Raises DataError (the store has no such rows), NumericsError.
    """
    judging = _Judge(inputs, progress)
    sized = [Sized(run, judging.code_size(run)) for run in inputs.runs]
    coded = [entry for entry in sized if entry.run.model.encodes]
    controls, notes = controls_for(coded, inputs.store, inputs.seed, progress)
    models = _grouped(sized, controls)
    comparison = Comparison(
        store=str(inputs.store.path),
        split=inputs.split,
        rows=judging.rows_of(models),
        k=inputs.k,
        reference_rows=judging.reference_rows,
        seed=inputs.seed,
        notes=_provenance(inputs.runs, inputs.store) + notes,
        report=None,
    )
    return Judged(comparison, models, inputs)


def _provenance(runs: Sequence[EvaluatedModel], store: Rows) -> list[str]:
    """Which runs may have seen the evaluated rows in training."""
    others = [run.name for run in runs if run.config and run.config["content"] != store.content]
    unknown = [run.name for run in runs if run.config is None]
    notes = {
        "Trained on another store, which may hold the rows evaluated here": others,
        "In memory, without a record of the rows of the training": unknown,
    }
    return [f"{text}: {', '.join(names)}." for text, names in notes.items() if names]


def _grouped(sized: Sequence[Sized], controls: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """Runs that keep equally many numbers together, in the order given; a control after the first
    group that it belongs to."""
    groups: dict[tuple, list[EvaluatedModel]] = {}
    for run, code_size in ((entry.run, entry.code_size) for entry in sized):
        target = None if run.target is None else run.target.path
        groups.setdefault((run.examples, target, code_size), []).append(run)
    controls = sorted(controls, key=lambda control: ORDER.index(control.kind))
    ordered, placed = [], set()
    for group in groups.values():
        names = {run.name for run in group}
        ordered += group
        for control in controls:
            if names & set(control.control_of) and control.name not in placed:
                placed.add(control.name)
                ordered.append(control)
    return ordered


class _Judge:
    """The figures of every model on the same rows."""

    def __init__(self, inputs: Inputs, progress: Callable[[Progress], None]) -> None:
        self.inputs, self.store, self.progress = inputs, inputs.store, progress
        if self.store.count(inputs.split) == 0:
            raise DataError(f"{self.store.path} has no {inputs.split} rows", opt("split", "all"))
        self.reference_rows = 0
        # by name, which open_runs and controls_for keep distinct
        self._figures: dict[str, Figures] = {}
        labeled = any(label is not None for label in labels_of(self.store, examples=True))
        self.labels = labels_of(self.store) if labeled else None

    def figures(self, evaluated: EvaluatedModel) -> Figures:
        if evaluated.name not in self._figures:
            self._figures[evaluated.name] = holdout_figures(
                evaluated.model,
                evaluated.source,
                self.inputs.split,
                self.inputs.rows,
                self.inputs.device,
            )
        return self._figures[evaluated.name]

    def code_size(self, evaluated: EvaluatedModel) -> int:
        l0 = self.figures(evaluated)["l0"]
        return evaluated.model.latents if l0 is None else max(round(l0), 1)

    def rows_of(self, models: Sequence[EvaluatedModel]) -> list[ComparisonRow]:
        if self.labels is not None:
            self.reference_rows = min(knn_rows(models), self.store.count("train"))
        rows = []
        for done, evaluated in enumerate(models):
            self.progress(Progress("compare", done, len(models), "models"))
            rows.append(self._row(evaluated))
        self.progress(Progress("compare", len(models), len(models), "models"))
        return rows if self.labels is None else [*rows, self._raw_input()]

    def _row(self, evaluated: EvaluatedModel) -> ComparisonRow:
        figures = self.figures(evaluated)
        metrics = figures.scalars()
        if evaluated.model.encodes:
            metrics["knn"] = self._knn(evaluated.model, evaluated.examples)
            metrics["auroc"] = self._auroc(evaluated)
        return ComparisonRow(
            checkpoint=evaluated.checkpoint,
            name=evaluated.name,
            model=evaluated.kind,
            role=evaluated.role,
            control_of=evaluated.control_of,
            unit=evaluated.unit,
            target=None if evaluated.target is None else str(evaluated.target.path),
            params=evaluated.parameters,
            latents=evaluated.model.latents,
            code_size=self.code_size(evaluated),
            rows=figures.rows,
            metrics={name: metrics.get(name) for name in COMPARED},
        )

    def _raw_input(self) -> ComparisonRow:
        """The rows themselves as a code: the baseline of every model's knn."""
        width = self.store.spec.d_in
        return ComparisonRow(
            checkpoint=None,
            name="raw input",
            model="none",
            role="control",
            control_of=(),
            unit="row",
            target=None,
            params=0,
            latents=width,
            code_size=width,
            rows=self._knn_queries(False),
            metrics=dict.fromkeys(COMPARED) | {"knn": self._knn(Itself(), examples=False)},
        )

    def _auroc(self, evaluated: EvaluatedModel) -> float | None:
        if self.inputs.anomalies is None or evaluated.target is not None:
            return None
        count = self.inputs.rows or ANOMALY_ROWS

        def errors(source: Rows, split: Split) -> torch.Tensor:
            batches = chosen_batches(source, split, count, self.inputs.seed, evaluated.examples)
            return errors_of(evaluated.model, batches, self.inputs.device)

        return auroc(
            errors(evaluated.source, self.inputs.split), errors(self.inputs.anomalies, "all")
        )

    def _knn(self, model: Autoencoder, examples: bool) -> float | None:
        labels = self.labels
        if labels is None:
            return None

        def codes(split: Split, count: int):
            batches = chosen_batches(self.store, split, count, self.inputs.seed, examples)
            codes, rows = codes_of(model, batches, self.inputs.device)
            return codes, [labels[row] for row in rows.tolist()]

        reference = codes("train", self.reference_rows)
        return neighbours(reference, codes("holdout", self._knn_queries(examples)), self.inputs.k)

    def _knn_queries(self, examples: bool) -> int:
        """How many held-out rows, or examples, vote for their label."""
        available = self.store.count("holdout", examples)
        return min(available, self.inputs.rows or available, max(self.reference_rows, 1))


class Itself(Autoencoder):
    """Rows as their own code."""

    active_above = None

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

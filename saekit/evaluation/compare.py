"""Runs beside each other and beside the controls that they have to beat: the figures of the verb
`compare`, as data.

saekit.report.comparison writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.evaluation.controls import Sized, controls_for
from saekit.evaluation.models import EvaluatedModel, open_anomalies, open_runs
from saekit.evaluation.passes import codes_of, errors_of, knn_rows, labels_of, some
from saekit.measures.anomaly import auroc
from saekit.measures.codes import neighbours
from saekit.models.metrics import ROW_METRICS, Figures
from saekit.rows import Rows
from saekit.store.opening import RowsLike, open_rows
from saekit.training.checkpoints import ModelLike
from saekit.training.fit import holdout_figures
from saekit.types import Progress, Split

ANOMALY_ROWS = 20_000  # of either side, unless `rows` says otherwise
# of the controls of a group: the strongest of most data first
ORDER = ("pca", "kmeans", "sae topk", "ridge")
COMPARED = (*(metric.name for metric in ROW_METRICS), "knn", "elbo", "auroc")


@dataclass(frozen=True)
class Row:
    checkpoint: str | None
    name: str
    model: str
    """Name in the catalog, with the sparsity of an SAE."""
    role: str
    """run | control"""
    control_of: tuple[str, ...]
    """Names of the runs that a control stands beside."""
    unit: str
    """What one code stands for: row | example."""
    target: str | None
    """The store whose rows were to be given; None: the input itself."""
    params: int
    latents: int
    code_size: int
    """Numbers that the code keeps of a row or example: the latents of a dense code, the rounded l0
    (at least 1) of a sparse one."""
    rows: int
    """Rows judged."""
    metrics: dict[str, float | None]
    """COMPARED, by name (saekit.models.metrics). None where one does not apply."""


@dataclass(frozen=True)
class Comparison:
    store: str
    split: str
    """Which rows were judged: holdout | train | all. knn is on held-out rows always."""
    rows: list[Row]
    """Runs of equal code size together, their controls behind them; `raw input`, which has no
    model, last."""
    k: int
    reference_rows: int
    """Training rows among which neighbours were sought."""
    seed: int
    notes: list[str]
    """What was capped, and which runs saw other data."""
    report: str | None
    """Path of the page; None: none was written."""


@dataclass(frozen=True)
class Inputs:
    """What is judged, on what: known to fit each other."""

    runs: list[EvaluatedModel]
    store: Rows
    anomalies: Rows | None
    split: Split
    rows: int | None
    k: int
    seed: int


@dataclass(frozen=True)
class Judged:
    """A comparison, and what its page shows besides."""

    comparison: Comparison
    subjects: list[EvaluatedModel]
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
) -> Inputs:
    """Arguments and errors as saekit.compare has them."""
    split = split or "holdout"
    check_choice("split", split, get_args(Split))
    for option, value in (("rows", rows), ("neighbours", k)):
        if value is not None and value < 1:
            raise UsageError(f"{opt(option, value)} must be at least 1")
    opened = open_rows(store)
    if opened.parts:
        raise UsageError("compare takes one store", "saekit.evaluate judges crosscoders")
    models = open_runs(runs, opened, target_store)
    strange = None if anomalies is None else open_anomalies(anomalies, opened)
    return Inputs(models, opened, strange, split, rows, k, seed)


def judge(inputs: Inputs, progress: Callable[[Progress], None] = lambda _: None) -> Judged:
    """The figures of the runs and of their controls (saekit.evaluation.controls), on the same rows.
    Nothing is written.

    Raises DataError (the store has no such rows), NumericsError.
    """
    judging = _Judge(inputs, progress)
    sized = [Sized(run, judging.code_size(run)) for run in inputs.runs]
    controls, notes = controls_for(sized, inputs.store, inputs.seed, progress)
    subjects = _grouped(sized, controls)
    rows = judging.rows_of(subjects)
    notes = _provenance(inputs.runs, inputs.store) + notes
    path = str(inputs.store.path)
    comparison = Comparison(
        path, inputs.split, rows, inputs.k, judging.reference, inputs.seed, notes, None
    )
    return Judged(comparison, subjects, inputs)


def _provenance(runs: Sequence[EvaluatedModel], store: Rows) -> list[str]:
    """What is known of runs that may have seen the rows judged here in training."""
    others = [run.name for run in runs if run.config and run.config["content"] != store.content]
    unknown = [run.name for run in runs if run.config is None]
    notes = {
        "Trained on another store, which may hold the rows judged here": others,
        "In memory, without a record of the rows of the training": unknown,
    }
    return [f"{text}: {', '.join(names)}." for text, names in notes.items() if names]


def _grouped(sized: Sequence[Sized], controls: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """Runs that keep as many numbers stand together, in the order given; a control behind the first
    group that it belongs to."""
    groups: dict[tuple, list[EvaluatedModel]] = {}
    for each in sized:
        target = each.run.target
        groups.setdefault(
            (each.run.examples, None if target is None else target.path, each.code_size), []
        ).append(each.run)
    ordered, placed = [], set()
    for group in groups.values():
        names = {run.name for run in group}
        ordered += group
        for control in sorted(controls, key=lambda control: ORDER.index(control.kind)):
            if names & set(control.control_of) and control.name not in placed:
                placed.add(control.name)
                ordered.append(control)
    return ordered


class _Judge:
    """The figures of every subject on the same rows."""

    def __init__(self, inputs: Inputs, progress: Callable[[Progress], None]) -> None:
        self.store, self.split, self.limit, self.progress = (
            inputs.store,
            inputs.split,
            inputs.rows,
            progress,
        )
        self.k, self.seed, self.anomalies = inputs.k, inputs.seed, inputs.anomalies
        if self.store.count(self.split) == 0:
            raise DataError(f"{self.store.path} has no {self.split} rows", opt("split", "all"))
        self.reference = 0
        # by name, which open_runs and controls_for keep distinct
        self._figures: dict[str, Figures] = {}
        labeled = any(label is not None for label in labels_of(self.store, examples=True))
        self.labels = labels_of(self.store) if labeled else None

    def figures(self, subject: EvaluatedModel) -> Figures:
        if subject.name not in self._figures:
            self._figures[subject.name] = holdout_figures(
                subject.model, subject.source, self.split, self.limit
            )
        return self._figures[subject.name]

    def code_size(self, subject: EvaluatedModel) -> int:
        l0 = self.figures(subject)["l0"]
        return subject.model.latents if l0 is None else max(round(l0), 1)

    def rows_of(self, subjects: Sequence[EvaluatedModel]) -> list[Row]:
        self.reference = (
            0 if self.labels is None else min(knn_rows(subjects), self.store.count("train"))
        )
        made = []
        for done, subject in enumerate(subjects):
            self.progress(Progress("compare", done, len(subjects), "models"))
            made.append(self._row(subject))
        self.progress(Progress("compare", len(subjects), len(subjects), "models"))
        return made if self.labels is None else [*made, self._raw_input()]

    def _row(self, subject: EvaluatedModel) -> Row:
        scalars = self.figures(subject).scalars()
        scalars["knn"] = self._knn(subject.model, subject.examples)
        scalars["auroc"] = self._auroc(subject)
        metrics = {name: scalars.get(name) for name in COMPARED}
        return Row(
            subject.checkpoint, subject.name, subject.kind, subject.role, subject.control_of,
            subject.unit,
            None if subject.target is None else str(subject.target.path), subject.parameters,
            subject.model.latents,
            self.code_size(subject), self.figures(subject).rows, metrics,
        )  # fmt: skip

    def _raw_input(self) -> Row:
        """The rows themselves as a code: what any model's knn is held against."""
        metrics = dict.fromkeys(COMPARED) | {"knn": self._knn(Itself(), examples=False)}
        width = self.store.spec.d_in
        return Row(
            None,
            "raw input",
            "none",
            "control",
            (),
            "row",
            None,
            0,
            width,
            width,
            self._judged(False),
            metrics,
        )

    def _auroc(self, subject: EvaluatedModel) -> float | None:
        if self.anomalies is None or subject.target is not None:
            return None
        sides = []
        for source, split in ((subject.source, self.split), (self.anomalies, "all")):
            count = self.limit or ANOMALY_ROWS
            sides.append(
                errors_of(subject.model, some(source, split, count, self.seed, subject.examples))
            )
        return auroc(*sides)

    def _knn(self, model, examples: bool) -> float | None:
        if self.labels is None:
            return None
        sides = []
        for split, count in (("train", self.reference), ("holdout", self._judged(examples))):
            codes, rows = codes_of(model, some(self.store, split, count, self.seed, examples))
            sides.append((codes, [self.labels[row] for row in rows.tolist()]))
        return neighbours(*sides, self.k)

    def _judged(self, examples: bool) -> int:
        there = self.store.count("holdout", examples)
        return min(there, self.limit or there, max(self.reference, 1))


class Itself:
    """Rows as their own code."""

    active_above = None

    def encode(self, x):
        return x

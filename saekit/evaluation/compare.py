"""Runs beside each other and beside the controls that they have to beat: the verb `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.evaluation.anomaly import auroc
from saekit.evaluation.controls import Sized, controls_for
from saekit.evaluation.passes import codes_of, errors_of, knn_rows, neighbours, some
from saekit.evaluation.subjects import Subject, open_anomalies, open_runs
from saekit.models.metrics import Figures
from saekit.store.files import write_config, write_json
from saekit.store.folder_kinds import REPORT as REPORT_KIND
from saekit.store.reader import Store
from saekit.store.run_folder import RunFolder, run_folder
from saekit.training.fit import holdout_figures
from saekit.types import Progress, Split

REPORT = "report.html"
ANOMALY_ROWS = 20_000  # of either side, unless `rows` says otherwise
ORDER = ("pca", "kmeans", "sae topk", "ridge")  # of the controls of a group: the strongest of most data first
METRICS = ("fvu", "mse", "cosine", "l0", "dead", "knn", "elbo", "auroc")


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
    """Numbers that the code keeps of a row or example: the latents of a dense code, the rounded l0 (at least 1) of a sparse one."""
    rows: int
    """Rows judged."""
    metrics: dict[str, float | None]
    """fvu, mse, cosine, l0, dead (saekit.models.metrics); knn: accuracy of k nearest codes; elbo in nats; auroc: how often a row of the
    anomalies has the larger error. None where it does not apply."""


@dataclass(frozen=True)
class Comparison:
    store: str
    split: str
    """Which rows were judged: holdout | train | all. knn is on held-out rows always."""
    rows: list[Row]
    """Runs of equal code size together, their controls behind them; `raw input`, which has no model, last."""
    k: int
    reference_rows: int
    """Training rows among which neighbours were sought."""
    seed: int
    notes: list[str]
    """What was capped, and which runs saw other data."""
    report: str | None
    """Path of the page."""


def compare(
    checkpoints: Sequence[str | Path] | str | Path,
    store: str | Path,
    out: str | Path | None = None,
    *,
    rows: int | None = None,
    split: Split | None = None,
    target_store: str | Path | None = None,
    anomalies: str | Path | None = None,
    neighbours: int = 5,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Judge runs and controls (saekit.evaluation.controls) on the same rows of a store; with `out`, write a page that shows them.

    `split` None: the held-out rows, which neither controls nor runs of this store have seen. `rows` caps how many are judged (models of
    whole examples are given whole batches until that many rows are reached). knn: how often the data's own label of a held-out row is that
    of most of the `neighbours` training rows (of at most 20,000) whose codes are nearest (of examples where a code stands for one); None
    without labels.
    Runs that were trained on a target read it from `target_store`, by default from where it lay at training. `anomalies` is a store of rows
    of the same width that the runs should reconstruct badly.
    Raises UsageError, DataError (widths differ, OUT), MissingError, NumericsError.
    """
    checkpoints = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    split = split or "holdout"
    check_choice("split", split, ("holdout", "train", "all"))
    for option, value in (("rows", rows), ("neighbours", neighbours)):
        if value is not None and value < 1:
            raise UsageError(f"{opt(option, value)} must be at least 1")
    opened = Store(Path(store))
    runs = open_runs(checkpoints, opened, target_store)
    settings = {
        "runs": [str(path) for path in checkpoints], "store": str(store), "rows": rows, "split": split,
        "target_store": None if target_store is None else str(target_store),
        "anomalies": None if anomalies is None else str(anomalies), "neighbours": neighbours, "seed": seed,
    }  # fmt: skip
    with _report_folder(out, settings, overwrite) as folder:
        strange = None if anomalies is None else open_anomalies(anomalies, opened)
        judge = _Judge(opened, split, rows, neighbours, seed, progress, strange)
        sized = [Sized(run, judge.code_size(run)) for run in runs]
        controls, notes = controls_for(sized, opened, seed, progress)
        subjects = _grouped(sized, controls)
        made = judge.rows_of(subjects)
        notes = _provenance(runs, opened) + notes
        page = None if out is None else str(Path(out) / REPORT)
        comparison = Comparison(str(store), split, made, neighbours, judge.reference, seed, notes, page)
        if folder is not None:
            from saekit.evaluation.report import write_report

            write_report(folder.path / REPORT, comparison, subjects, opened, strange, progress)
    return comparison


@contextmanager
def _report_folder(out: str | Path | None, settings: dict[str, Any], overwrite: bool) -> Iterator[RunFolder | None]:
    """Where the page is written; None where none is asked for."""
    if out is None:
        yield None
        return
    with run_folder(Path(out), REPORT_KIND, resume=False, overwrite=overwrite) as folder:
        write_json(folder.path / REPORT_KIND.marker, {"schema_version": 1, **settings})
        write_config(folder.path / "config.toml", settings)
        yield folder


def _provenance(runs: Sequence[Subject], store: Store) -> list[str]:
    others = [run.name for run in runs if run.config["content"] != store.manifest.content]
    if not others:
        return []
    return [f"Trained on another store, which may hold the rows judged here: {', '.join(others)}."]


def _grouped(sized: Sequence[Sized], controls: Sequence[Subject]) -> list[Subject]:
    """Runs that keep as many numbers stand together, in the order given; a control behind the first group that it belongs to."""
    groups: dict[tuple, list[Subject]] = {}
    for each in sized:
        target = each.run.target
        groups.setdefault((each.run.examples, None if target is None else target.path, each.code_size), []).append(each.run)
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

    def __init__(
        self,
        store: Store,
        split: Split,
        rows: int | None,
        k: int,
        seed: int,
        progress: Callable[[Progress], None],
        anomalies: Store | None = None,
    ) -> None:
        if len(store.split(split)) == 0:
            raise DataError(f"{store.path} has no {split} rows", opt("split", "all"))
        self.store, self.split, self.limit, self.k, self.seed, self.progress = store, split, rows, k, seed, progress
        self.reference, self.anomalies = 0, anomalies
        self._figures: dict[str, Figures] = {}  # by name, which open_runs and controls_for keep distinct
        labelled = any(label is not None for label in store.labels("all", examples=True))
        self.labels = store.labels("all") if labelled else None

    def figures(self, subject: Subject) -> Figures:
        if subject.name not in self._figures:
            self._figures[subject.name] = holdout_figures(subject.model, subject.source, self.split, self.limit)
        return self._figures[subject.name]

    def code_size(self, subject: Subject) -> int:
        l0 = self.figures(subject).l0
        return subject.model.latents if l0 is None else max(round(l0), 1)

    def rows_of(self, subjects: Sequence[Subject]) -> list[Row]:
        self.reference = 0 if self.labels is None else min(knn_rows(subjects), len(self.store.split("train")))
        made = []
        for done, subject in enumerate(subjects):
            self.progress(Progress("compare", done, len(subjects), "models"))
            made.append(self._row(subject))
        self.progress(Progress("compare", len(subjects), len(subjects), "models"))
        return made if self.labels is None else [*made, self._raw_input()]

    def _row(self, subject: Subject) -> Row:
        scalars = self.figures(subject).scalars()
        scalars["knn"] = self._knn(subject.model, subject.examples)
        scalars["auroc"] = self._auroc(subject)
        metrics = {name: scalars.get(name) for name in METRICS}
        return Row(
            subject.checkpoint, subject.name, subject.kind, subject.role, subject.control_of, subject.unit,
            None if subject.target is None else str(subject.target.path), subject.parameters, subject.model.latents,
            self.code_size(subject), self.figures(subject).rows, metrics,
        )  # fmt: skip

    def _raw_input(self) -> Row:
        """The rows themselves as a code: what any model's knn is held against."""
        metrics = dict.fromkeys(METRICS) | {"knn": self._knn(Itself(), examples=False)}
        width = self.store.spec.d_in
        return Row(None, "raw input", "none", "control", (), "row", None, 0, width, width, self._judged(False), metrics)

    def _auroc(self, subject: Subject) -> float | None:
        if self.anomalies is None or subject.target is not None:
            return None
        sides = []
        for source, split in ((subject.source, self.split), (self.anomalies, "all")):
            count = self.limit or ANOMALY_ROWS
            sides.append(errors_of(subject.model, some(source, split, count, self.seed, subject.examples)))
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
        there = self.store.examples("holdout") if examples else len(self.store.split("holdout"))
        return min(there, self.limit or there, max(self.reference, 1))


class Itself:
    """Rows as their own code."""

    active_above = None

    def encode(self, x):
        return x

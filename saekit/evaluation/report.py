"""The page that `compare` writes: figures, pictures and settings of runs and controls, in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from saekit.evaluation import panels, pictures
from saekit.evaluation.compare import Comparison
from saekit.evaluation.error_panel import errors_panel
from saekit.evaluation.page import Panel, document
from saekit.evaluation.passes import Look, Sample, look, sample
from saekit.evaluation.plane import plane_panel
from saekit.evaluation.subjects import Subject
from saekit.store.files import write_bytes
from saekit.store.reader import Store
from saekit.types import Progress

LEAD = "Trained autoencoders beside the simple models that they have to beat, judged on the same rows."


def write_report(
    path: Path,
    comparison: Comparison,
    subjects: Sequence[Subject],
    store: Store,
    anomalies: Store | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Write the page of `comparison`, whose models are `subjects`; errors are also shown on `anomalies`. Equal inputs give equal bytes.

    Pictures and errors are of a sample of the judged rows (saekit.evaluation.passes.sample), the same for every model of one source.
    """
    progress(Progress("report", 0, 1, "pages"))
    numbers = {"comparison": dataclasses.asdict(comparison) | {"report": path.name}}
    title, facts = _title(store), _facts(comparison, store)
    page = document(title, LEAD, facts, _panels(comparison, subjects, store, anomalies), numbers)
    write_bytes(path, page.encode())
    progress(Progress("report", 1, 1, "pages"))


def _panels(comparison: Comparison, subjects: Sequence[Subject], store: Store, anomalies: Store | None) -> list[Panel]:
    looks, flat = _looks(comparison, subjects, store)
    spec, seed = store.spec, comparison.seed
    found = [
        panels.figures_panel(comparison),
        pictures.reconstructions_panel(looks, spec),
        pictures.masks_panel(looks, spec),
        pictures.denoising_panel(looks, spec, seed),
        panels.codes_panel(looks, flat, seed),
        plane_panel(looks, spec),
        pictures.filters_panel(looks, spec),
        pictures.variational_panel(looks, spec, seed),
        pictures.levels_panel(looks, spec),
        errors_panel(looks, anomalies, seed),
        panels.settings_panel([s for s in subjects if s.role == "run"], store),
    ]
    return [panel for panel in found if panel is not None]


def _looks(comparison: Comparison, subjects: Sequence[Subject], store: Store) -> tuple[list[Look], Sample | None]:
    """(every model on its sample, the sample of plain rows where one was drawn)."""
    labels = store.labels("all")
    samples: dict[tuple, Sample] = {}
    looks = []
    for subject in subjects:
        key = (subject.examples, None if subject.target is None else subject.target.path)
        if key not in samples:
            samples[key] = sample(subject.source, comparison.split, comparison.seed, subject.examples, labels)
        looks.append(look(subject, samples[key]))
    return looks, next((s for (examples, _), s in samples.items() if not examples), None)


def _title(store: Store) -> str:
    return f"{panels.data_name(store.spec.dataset)} · {store.spec.model} · {store.spec.hook}"


def _facts(comparison: Comparison, store: Store) -> list[tuple[str, str]]:
    runs = sum(row.role == "run" for row in comparison.rows)
    shape = "×".join("T" if n is None else str(n) for n in store.spec.shape)
    side = {"holdout": "held-out rows", "train": "training rows", "all": "rows"}[comparison.split]
    labels = {label for label in store.labels("all", examples=True) if label is not None}
    facts = [
        ("runs", str(runs)),
        (f"{side} judged", f"{comparison.rows[0].rows:,}"),
        ("rows in the store", f"{len(store):,}"),
        ("shape", shape),
    ]
    return [*facts, ("classes", str(len(labels)))] if labels else facts

"""The verb `compare` and the page that it writes: figures, pictures and settings of runs and
controls, in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from saekit.evaluation.compare import Comparison, Inputs, Judged, judge, open_inputs
from saekit.evaluation.passes import Sample, SampleOutput, output_on, sample
from saekit.options import AnyStore, Device, Doc
from saekit.report import panels, pictures
from saekit.report.error_panel import errors_panel
from saekit.report.page import Panel, document
from saekit.report.plane import plane_panel
from saekit.report.samples import samples_panel
from saekit.store.files import write_bytes
from saekit.store.folder_kinds import REPORT
from saekit.store.labels import labels_of
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import ModelLike, as_list, name_of, path_or_model
from saekit.types import Progress, Split

PAGE = "report.html"
LEAD = (
    "Trained autoencoders and the simple models that they have to beat, evaluated on the same rows."
)


def compare(
    runs: Annotated[
        Sequence[ModelLike] | ModelLike,
        Doc(
            "Checkpoints to compare: folders, or published dictionaries by their paths or names.",
            metavar="RUN...",
            positional=True,
        ),
    ],
    store: Annotated[RowsLike, Doc("Store folder.", metavar="STORE")],
    out: Annotated[
        str | Path | None,
        Doc("Folder for report.html, one file that opens from disk.", metavar="DIR"),
    ] = None,
    *,
    rows: Annotated[int | None, Doc("Evaluate at most this many rows (default: all).")] = None,
    split: Annotated[Split | None, Doc("Rows to evaluate on (default: holdout).")] = None,
    target_store: Annotated[
        str | Path | None,
        Doc("Folder of the target store (default: where it was during training).", metavar="STORE"),
    ] = None,
    any_store: AnyStore = False,
    anomalies: Annotated[
        RowsLike | None,
        Doc("Store of rows that the runs should reconstruct badly.", metavar="STORE"),
    ] = None,
    neighbours: Annotated[int, Doc("Nearest codes that vote for a row's label.")] = 5,
    device: Device = "auto",
    seed: Annotated[int, Doc("Seed of controls, sampled rows and generated samples.")] = 0,
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Evaluate runs and controls (saekit.evaluation.controls) on the same rows; with `out`, write a
    page that shows them.

    >>> saekit.compare([result.model, "runs/a"], x_ND).rows[0].metrics["fvu"]

    Parameters
        runs: what `saekit.load` takes, or a list of these.
        store: the path of a store, an open Store, a tensor or array (N,D), (N,T,D) or (N,H,W,D), or
            an iterable of such blocks.
        out: the folder of the page; None: nothing is written.
        rows: evaluate at most so many; models of whole examples are given whole batches until that
            many rows are reached.
        split: None: the held-out rows, which neither controls nor runs of this store have seen.
        target_store: where runs that were trained on a target read it; None: where it was during
            training.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        anomalies: rows of the same width that the runs should reconstruct badly, as `store`.
        neighbours: knn is the share of held-out rows whose label (the data's own) is that of most
            of so many training rows, of at most 20,000, whose codes are nearest; examples where a
            code stands for one. None without labels, which only stores have.
        device: where figures and codes are computed; controls are fitted, and pictures made, on the
            CPU.

    Raises UsageError, DataError (widths differ, OUT), MissingError, NumericsError.
    """
    checkpoints = as_list(runs)
    inputs = open_inputs(
        checkpoints,
        store,
        rows,
        split,
        target_store,
        anomalies,
        neighbours,
        seed,
        any_store,
        device,
    )
    if out is None:
        return judge(inputs, progress).comparison
    settings = {
        "runs": [name_of(path_or_model(checkpoint)) for checkpoint in checkpoints],
        "store": str(inputs.store.path),
        "rows": rows,
        "split": inputs.split,
        "target_store": None if target_store is None else str(target_store),
        "anomalies": None if inputs.anomalies is None else str(inputs.anomalies.path),
        "neighbours": neighbours,
        "seed": seed,
    }
    with run_folder(Path(out), REPORT, resume=False, overwrite=overwrite) as folder:
        folder.begin(settings, _without_objects(settings, inputs))
        judged = judge(inputs, progress)
        progress(Progress("report", 0, 1, "pages"))
        write_bytes(folder.path / PAGE, report_page(judged).encode())
        progress(Progress("report", 1, 1, "pages"))
    return dataclasses.replace(judged.comparison, report=str(Path(out) / PAGE))


def _without_objects(settings: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Without what was in memory: a config file cannot name it."""
    objects = {
        "runs": any(run.checkpoint is None for run in inputs.runs),
        "store": not isinstance(inputs.store, Store),
        "anomalies": not isinstance(inputs.anomalies, Store),
    }
    return {name: value for name, value in settings.items() if not objects.get(name)}


def report_page(judged: Judged) -> str:
    """The page, one HTML file. Equal inputs give equal bytes.

    Pictures and errors are of a sample of the evaluated rows (saekit.evaluation.passes.sample), the
    same for every model of one source.
    """
    spec = judged.inputs.store.spec
    numbers = {"comparison": dataclasses.asdict(judged.comparison) | {"report": PAGE}}
    title = f"{panels.data_name(spec.dataset)} · {spec.model} · {spec.hook}"
    return document(title, LEAD, _facts(judged), _panels(judged), numbers)


def _panels(judged: Judged) -> list[Panel]:
    outputs, flat = _sample_outputs(judged)
    spec, seed = judged.inputs.store.spec, judged.inputs.seed
    sections = [
        panels.figures_panel(judged.comparison),
        pictures.reconstructions_panel(outputs, spec),
        pictures.masks_panel(outputs, spec),
        pictures.denoising_panel(outputs, spec, seed),
        panels.codes_panel(outputs, flat, seed),
        plane_panel(outputs, spec),
        pictures.filters_panel(outputs, spec),
        pictures.variational_panel(outputs, spec, seed),
        samples_panel(judged.models, spec, seed),
        pictures.levels_panel(outputs, spec),
        errors_panel(outputs, judged.inputs.anomalies, seed) if outputs else None,
        panels.settings_panel(judged.inputs),
    ]
    return [section for section in sections if section is not None]


def _sample_outputs(judged: Judged) -> tuple[list[SampleOutput], Sample | None]:
    """(every model on its sample, the sample of plain rows where one was drawn)."""
    inputs, labels = judged.inputs, labels_of(judged.inputs.store)
    samples: dict[tuple, Sample] = {}
    outputs = []
    for evaluated in (evaluated for evaluated in judged.models if evaluated.model.encodes):
        target = None if evaluated.target is None else evaluated.target.path
        key = (evaluated.examples, target)
        if key not in samples:
            samples[key] = sample(
                evaluated.source, inputs.split, inputs.seed, evaluated.examples, labels
            )
        outputs.append(output_on(evaluated, samples[key]))
    return outputs, next((s for (examples, _), s in samples.items() if not examples), None)


def _facts(judged: Judged) -> list[tuple[str, str]]:
    comparison, store = judged.comparison, judged.inputs.store
    runs = sum(row.role == "run" for row in comparison.rows)
    shape = "×".join("T" if n is None else str(n) for n in store.spec.shape)
    side = {"holdout": "held-out rows", "train": "training rows", "all": "rows"}[comparison.split]
    labels = {label for label in labels_of(store, examples=True) if label is not None}
    facts = [
        ("runs", str(runs)),
        (f"{side} evaluated", f"{comparison.rows[0].rows:,}"),
        ("rows in the store", f"{store.count():,}"),
        ("shape", shape),
    ]
    return [*facts, ("classes", str(len(labels)))] if labels else facts

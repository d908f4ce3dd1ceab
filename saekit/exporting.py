"""checkpoint -> the files of another program: the verb `export`. Weights are written by
saekit.interop.writers, feature files by saekit.inspection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from saekit import __version__
from saekit.errors import UsageError, check_choice, opt
from saekit.inspection.dashboards import source_of, write_saedashboard
from saekit.inspection.gather import gather
from saekit.inspection.neuronpedia import write_neuronpedia
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.records import check_features
from saekit.interop.exporting import WRITERS, dictionaries_for
from saekit.options import AnyStore, Doc, Overwrite
from saekit.store.folder_kinds import EXPORT
from saekit.store.opening import RowsLike
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import short_name
from saekit.types import Progress

ExportFormat = Literal[
    "saelens",
    "sparsify",
    "dictionary_learning",
    "gemma_scope_2",
    "circuit_tracer",
    "saedashboard",
    "neuronpedia",
]
FEATURE_FORMATS = ("saedashboard", "neuronpedia")
FEATURES, TOP = "top:500", 20


@dataclass(frozen=True)
class ExportResult:
    path: str
    format: str
    features: int | None
    """In feature files; None for weights."""
    notes: list[str]
    """What changed on the way."""


def export_dictionary(
    checkpoints: Annotated[
        Sequence[str | Path] | str | Path,
        Doc(
            "Checkpoint folder; for circuit_tracer one for each layer.",
            metavar="CKPT...",
            positional=True,
        ),
    ],
    out: Annotated[str | Path, Doc("Folder to write.", metavar="OUT", positional=True)],
    *,
    format: Annotated[ExportFormat, Doc("Whose files to write.")],
    store: Annotated[
        RowsLike | None,
        Doc(
            "Store folder, for saedashboard and neuronpedia, and for the figures of a model card.",
            metavar="STORE",
        ),
    ] = None,
    features: Annotated[
        str | None,
        Doc(
            "For saedashboard and neuronpedia: 0-255,1024 (by number), top:500 (the densest) or"
            " all (default top:500).",
            metavar="SPEC",
        ),
    ] = None,
    any_store: AnyStore = False,
    overwrite: Overwrite = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ExportResult:
    """Write a dictionary, or what its features respond to, as another program's files.

    >>> saekit.export_dictionary("runs/topk", "out", format="sparsify")

    Parameters
        checkpoints: a checkpoint folder or a published dictionary; for circuit_tracer a list with
            one for each layer from 0.
        out: docs/published.md says which files come into the folder. export.json is ours: what was
            exported, by which saekit.
        format: weights are exact, or refused where the format cannot say what the dictionary
            computes. Only b_dec may move between the input and b_enc; `notes` then says so.
        store, features, any_store: of feature files only, as in `inspect`.

    Raises UsageError, MissingError, and DataError for what the format cannot say and where `out`
    has other files.
    """
    # what can be wrong, before anything is written
    check_choice("format", format, (*WRITERS, *FEATURE_FORMATS))
    if isinstance(checkpoints, (str, Path)):
        checkpoints = [checkpoints]
    if not checkpoints:
        raise UsageError(f"{opt('checkpoints')} is empty", "give a checkpoint folder")
    if format in FEATURE_FORMATS:
        if store is None:
            raise UsageError(
                f"{opt('format', format)} shows what features respond to",
                f"give {opt('store')}",
            )
        if len(checkpoints) > 1:
            raise UsageError(
                f"{opt('format', format)} takes one checkpoint", "export each by itself"
            )
        inspected = open_pair(checkpoints[0], store, any_store)
        return _features(inspected, out, format, features or FEATURES, overwrite, progress)

    # weights
    for name, value in (("store", store), ("features", features), ("any_store", any_store)):
        if value:
            raise UsageError(
                f"{opt(name)} does not apply to {opt('format', format)}",
                f"{opt('format', *FEATURE_FORMATS)}, or drop {opt(name)}",
            )
    dictionaries = dictionaries_for(format, checkpoints)
    exported = [asdict(dictionary.origin) for dictionary in dictionaries]
    with run_folder(Path(out), EXPORT, resume=False, overwrite=overwrite) as folder:
        folder.begin(_marker(format, checkpoints, {"dictionaries": exported}))
        notes = WRITERS[format].write(folder.path, dictionaries)
    return ExportResult(str(out), format, None, notes)


def _features(
    inspected: InspectedModel,
    out: str | Path,
    format: str,
    features: str,
    overwrite: bool,
    progress: Callable[[Progress], None],
) -> ExportResult:
    source = source_of(inspected)
    check_features(features, source.latents)
    with run_folder(Path(out), EXPORT, resume=False, overwrite=overwrite) as folder:
        settings = {"store": short_name(str(inspected.store.path)), "features": features}
        folder.begin(_marker(format, [inspected.name], settings))
        shown = gather(inspected, features, TOP, None, None, progress)
        # records are computed while the files are written
        if format == "saedashboard":
            write_saedashboard(folder.path, source, shown.records)
        else:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            write_neuronpedia(folder.path, source, shown.records, now)
    return ExportResult(str(out), format, len(shown.latents), shown.notes)


def _marker(format: str, checkpoints: Sequence[str | Path], more: dict[str, Any]) -> dict[str, Any]:
    """export.json, by which the folder is known. It may be uploaded: it has the names of folders,
    not where they are on this machine."""
    return {
        "exported": [short_name(str(path)) for path in checkpoints],
        "format": format,
        "saekit": __version__,
        **more,
    }

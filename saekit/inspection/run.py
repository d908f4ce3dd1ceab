"""checkpoint + store -> page: the verb `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from saekit.device import pick_device
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.sources import Data
from saekit.inspection.gather import Gathered, gather
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.page import PageMeta, PageResult, write_page
from saekit.inspection.records import check_features
from saekit.inspection.scan import KEPT_TOP, Scan
from saekit.options import AnyStore, Device, Doc
from saekit.store.folder_kinds import PAGE
from saekit.store.opening import RowsLike
from saekit.store.run_folder import run_folder
from saekit.store.stack import stores_of, with_stores
from saekit.training.checkpoints import ModelLike, catalog_name, short_name
from saekit.types import FeatureRecord, Progress


@dataclass(frozen=True)
class InspectResult:
    index_html: str
    features: int
    bytes: int


def inspect(
    checkpoint: Annotated[
        ModelLike,
        Doc(
            "Checkpoint: a folder, or a published dictionary by its path or name.",
            metavar="CKPT",
            positional=True,
        ),
    ],
    store: Annotated[
        RowsLike,
        Doc(
            "Store folder. For a crosscoder, give the stores of its training, in the same order.",
            metavar="STORE...",
        ),
    ],
    out: Annotated[str | Path, Doc("Folder for the page.", metavar="DIR")],
    *,
    features: Annotated[
        str,
        Doc(
            "Latents to show: 0-255,1024 (by number), top:500 (the densest) or all.", metavar="SPEC"
        ),
    ] = "top:500",
    top: Annotated[int, Doc("Top examples per feature.")] = 20,
    single_file: Annotated[
        bool, Doc("Put examples and images into index.html instead of files beside it.")
    ] = False,
    any_store: AnyStore = False,
    device: Device = "auto",
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    live: nn.Module | None = None,
    data: Data | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> InspectResult:
    """Scan a store once and write a page of the chosen features that opens from disk.

    Parameters
        checkpoint: what `saekit.load` takes. Only a folder of saekit's own keeps the scan for the
            next time.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list, and examples are shown with the first one's tokens or images, which
            are those of all. Rows in memory do not say which token or patch they come from.
        out: the folder of the page.
        features: `0-255,1024`, `top:500` (the densest), `all`.
        top: examples per feature, at most 40.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        device: where the store's rows are encoded.
        live, data: the model and the texts or images themselves, for a store that was harvested
            from objects in memory. The logit lens needs the language model; when it cannot be
            loaded the page is made without, and a message says so.

    Raises UsageError, DataError (checkpoint and store do not fit, OUT, data other than the
    store's), MissingError.
    """
    # what can be wrong, before anything is written
    if not 1 <= top <= KEPT_TOP:
        raise UsageError(f"{opt('top', top)} must be between 1 and {KEPT_TOP}")
    where = pick_device(device)
    inspected = open_pair(checkpoint, store, any_store)
    _check_shown(inspected)
    check_features(features, inspected.model.latents)

    # the page, and the settings that made it
    settings = _settings(inspected, features, top, single_file)
    with run_folder(Path(out), PAGE, resume=False, overwrite=overwrite) as folder:
        # a config file cannot name a model in memory
        unnamed = ("checkpoint",) if inspected.checkpoint is None else ()
        folder.begin(settings, {key: settings[key] for key in settings if key not in unnamed})
        shown = gather(inspected, features, top, live, data, progress, where)
        page = _write_page(inspected, shown, folder.path, single_file, progress)
    return InspectResult(str(Path(out) / page.index_html.name), page.features, page.bytes)


def _check_shown(inspected: InspectedModel) -> None:
    """Raise DataError for rows that a page cannot show."""
    store = inspected.store
    if store.spec.is_raw and store.spec.modality != "image":
        paths = [str(part.path) for part in stores_of(store)]
        verb = "compare" if len(paths) == 1 else "evaluate"
        raise DataError(
            f"{store.path} holds {store.spec.hook} rows, which a page cannot show",
            with_stores(f"saekit {verb} {inspected.name}", paths),
        )


def _settings(
    inspected: InspectedModel, features: str, top: int, single_file: bool
) -> dict[str, Any]:
    paths = [str(store.path) for store in stores_of(inspected.store)]
    return {
        "checkpoint": inspected.name,
        "store": paths[0] if len(paths) == 1 else paths,
        "features": features,
        "top": top,
        "single_file": single_file,
    }


def _write_page(
    inspected: InspectedModel,
    shown: Gathered,
    out: Path,
    single_file: bool,
    progress: Callable[[Progress], None],
) -> PageResult:
    meta = page_meta(inspected, shown.scan, shown.notes)
    images = {} if shown.thumbnails is None else shown.thumbnails.images
    # records are computed while the page is written
    records = _reported(shown.records, len(shown.latents), progress)
    return write_page(records, meta, images, out, single_file=single_file)


def _reported(
    records: Iterable[FeatureRecord], total: int, progress: Callable[[Progress], None]
) -> Iterator[FeatureRecord]:
    for done, record in enumerate(records, 1):
        yield record
        progress(Progress("page", done, total, "features"))


def page_meta(inspected: InspectedModel, scan: Scan, notes: list[str]) -> PageMeta:
    """What the page says about the run as a whole."""
    model, spec = inspected.model, inspected.store.spec
    sparsity = getattr(model.config, "sparsity", None)
    if sparsity == "topk":
        sparsity = f"topk k={model.config.k}"
    short_model = spec.model.rsplit("/", 1)[-1].removeprefix("embedded:")
    return PageMeta(
        title=f"{short_model} · {spec.hook} · {sparsity or catalog_name(model)}",
        modality=spec.modality,
        model=" + ".join(dict.fromkeys(part.spec.model for part in stores_of(inspected.store))),
        hook=spec.hook,
        dataset=spec.dataset,
        checkpoint=short_name(inspected.name),
        d_in=spec.d_in,
        latents=len(scan.active),
        rows=scan.rows,
        density=[None] * len(scan.active) if scan.dense else scan.density.tolist(),
        max=scan.max.tolist(),
        sparsity=sparsity,
        metrics=inspected.recorded("result", "metrics") or {},
        notes=notes,
    )

"""checkpoint + store -> page: the verb `inspect`."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from saekit.device import pick_device
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.sources import Data
from saekit.indexing.shown import KEPT_TOP
from saekit.inspection.beside import beside_of, kind_of, open_beside
from saekit.inspection.beside_page import Beside
from saekit.inspection.beyond_top import starts_of
from saekit.inspection.existing import ExistingPage, can_extend, page_identity
from saekit.inspection.gallery import gallery
from saekit.inspection.gather import Gathered, gather
from saekit.inspection.lookup import Lookup, lookup_of
from saekit.inspection.map import DirectionMap, MapKind, check_map, direction_map
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.page import PageMeta, PageResult, megabytes, write_page
from saekit.inspection.page_command import page_command
from saekit.inspection.records import check_features, expected_bytes
from saekit.options import AnyStore, Device, Doc
from saekit.store.folder_kinds import PAGE
from saekit.store.opening import RowsLike
from saekit.store.run_folder import run_folder
from saekit.store.stack import stores_of, with_stores
from saekit.training.checkpoints import ModelLike, short_name
from saekit.types import FeatureRecord, Progress

SILENT = 8  # features that are named where they never fire


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
            "Latents to show: all that fire, 0-255,1024 (by number), interesting:1000 (the best"
            " scored, each word's first before its second), top:500 (the densest), or several of"
            " these with commas.",
            metavar="SPEC",
        ),
    ] = "all",
    top: Annotated[int, Doc("Top examples per feature.")] = 20,
    single_file: Annotated[
        bool, Doc("Put examples and images into index.html instead of files beside it.")
    ] = False,
    map: Annotated[
        MapKind | None,
        Doc(
            "Map of decoder directions on the page. Default: pca, or that of the page in OUT; umap"
            " needs umap-learn."
        ),
    ] = None,
    beside: Annotated[
        ModelLike | None,
        Doc(
            "Another checkpoint of the same hook: pages show its most similar latents beside those"
            " of CKPT.",
            metavar="CKPT",
        ),
    ] = None,
    jsonl: Annotated[
        bool, Doc("Also write features.jsonl: every record at full precision, 25 kB each.")
    ] = False,
    any_store: AnyStore = False,
    device: Device = "auto",
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    live: nn.Module | None = None,
    data: Data | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> InspectResult:
    """Write a page of the chosen features that opens from disk. Rows are encoded once, for the
    index (`saekit.index`); where there is one already they are not.

    A page of the same weights and rows that is in OUT already gets the features that it lacks;
    those that it has stay as they are. Another page stays, with an error, unless `overwrite`
    replaces it.

    Parameters
        checkpoint: what `saekit.load` takes. Only a folder of saekit's own keeps the index for the
            next time.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list, and examples are shown with the first one's tokens or images, which
            are those of all. Rows in memory do not say which token or patch they come from.
        out: the folder of the page.
        features: `all` that fire, `0-255,1024`, `interesting:1000` (the best by
            saekit.inspection.score, each word's first before its second), `top:500` (the
            densest), or several of these with commas.
        top: examples per feature, at most 40.
        map: `pca` or `umap` of the decoder rows, or `none`.
        beside: a checkpoint whose latents are matched with these, by decoder rows and, where both
            have an index, by activations. Its rows are encoded once, too.
        jsonl: also write features.jsonl, one record a line. A page without it that gets it is made
            anew, with the features that it has.
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
    identity = page_identity(inspected)
    extends = can_extend(Path(out), identity, overwrite)
    # a page that is extended keeps its map and the other dictionary
    kept = (PAGE.read_marker(Path(out)) or {}) if extends else {}
    drawn_by, other = map or kept.get("map") or "pca", beside or kept.get("beside")
    check_map(drawn_by)
    compared = None if other is None else open_beside(other, store, inspected, any_store)

    # the page, and the settings that made it; one that is extended stays until the new one is whole
    with run_folder(Path(out), PAGE, resume=False, overwrite=overwrite or extends) as folder:
        before = ExistingPage(Path(out)) if extends else None
        settings = _settings(inspected, features, top, single_file, jsonl, Path(out), before)
        settings["map"] = drawn_by
        if compared is not None and compared.checkpoint is not None:
            settings["beside"] = compared.name
        # a config file cannot name a model in memory
        unnamed = ("checkpoint",) if inspected.checkpoint is None else ()
        config = {key: settings[key] for key in settings if key not in unnamed}
        folder.begin(settings | {"identity": identity}, config)
        if before is not None and settings["jsonl"] and not before.is_exact:
            before, features = None, settings["features"]  # its figures are rounded
        known = set(before.indices) if before else set()
        shown = gather(inspected, features, top, live, data, progress, where, known)
        if before is not None:
            _report_added(len(known), len(shown.latents), progress)
        _report_silent(shown, progress)
        latents = [*known, *shown.latents.tolist()]
        lookup = lookup_of(shown.index, shown.scores.words, shown.directions_FD, latents)
        _report_size(inspected, shown, top, lookup, progress)
        meta = page_meta(inspected, shown, identity, latents)
        meta = replace(meta, **_command(inspected, Path(out), top, any_store))
        drawn, matched = None, None
        if shown.directions_FD is not None:
            alive_F = torch.from_numpy(shown.index.active > 0)
            drawn = direction_map(shown.directions_FD.detach(), alive_F, settings["map"])
        if compared is not None:
            matched = beside_of(inspected, compared, shown, latents, top, data, where, progress)
        page = _write_page(
            shown, meta, before, folder.path, settings, progress, drawn, matched, lookup
        )
    return InspectResult(str(Path(out) / page.index_html.name), page.features, page.bytes)


def _report_added(known: int, new: int, progress: Callable[[Progress], None]) -> None:
    message = f"the page that is there has {known:,} features; {new:,} are added"
    progress(Progress("inspect", 0, new, "features", message=message))


def _report_silent(shown: Gathered, progress: Callable[[Progress], None]) -> None:
    """Which of the features that were asked for by number have nothing to show."""
    silent = [j for j in shown.latents.tolist() if shown.index.active[j] == 0]
    if silent:
        some = ", ".join(map(str, silent[:SILENT])) + (", ..." if len(silent) > SILENT else "")
        which = (
            f"feature {some} never fires"
            if len(silent) == 1
            else (f"{len(silent):,} features never fire ({some})")
        )
        message = f"{which} in {shown.index.rows:,} rows; a page without examples says so"
        progress(Progress("inspect", 0, len(shown.latents), "features", message=message))


def _report_size(
    inspected: InspectedModel,
    shown: Gathered,
    top: int,
    lookup: Lookup | None,
    progress: Callable[[Progress], None],
) -> None:
    count = len(shown.latents)
    if not count:
        return
    known = 0 if lookup is None else lookup.bytes
    size = expected_bytes(inspected.store, shown.index, shown.latents, top) + known
    parts = []
    if known:
        parts.append(f"{megabytes(known)} of it for the search of all {len(shown.index):,} latents")
    if shown.thumbnails is not None:
        pictures = "and the pictures that they show"
        if shown.patches is not None:
            most = megabytes(shown.patches.most_bytes)
            pictures += f" with the latents of their patches (at most {most})"
        parts.append(pictures)
    message = ", ".join([f"{count:,} features take about {megabytes(size)}", *parts])
    progress(Progress("page", 0, count, "features", message=message))


def _command(inspected: InspectedModel, out: Path, top: int, any_store: bool) -> dict[str, str]:
    """What the page says of the command that made it; '' for a model in memory."""
    if inspected.checkpoint is None:
        return {"command": "", "command_folder": ""}
    stores = [str(store.path) for store in stores_of(inspected.store)]
    command, folder = page_command(inspected.name, stores, out, top, any_store)
    return {"command": command, "command_folder": folder}


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
    inspected: InspectedModel,
    features: str,
    top: int,
    single_file: bool,
    jsonl: bool,
    out: Path,
    before: ExistingPage | None,
) -> dict[str, Any]:
    """Those that make this page in an empty folder."""
    if before is not None:
        added = (PAGE.read_marker(out) or {}).get("features", "")
        known = dict.fromkeys([*str(added).split(","), *features.split(",")])
        features = ",".join(part.strip() for part in known if part.strip())
        single_file, jsonl = single_file or before.single_file, jsonl or before.is_exact
    paths = [str(store.path) for store in stores_of(inspected.store)]
    return {
        "checkpoint": inspected.name,
        "store": paths[0] if len(paths) == 1 else paths,
        "features": features,
        "top": top,
        "single_file": single_file,
        "jsonl": jsonl,
    }


def _write_page(
    shown: Gathered,
    meta: PageMeta,
    before: ExistingPage | None,
    out: Path,
    settings: Mapping[str, Any],
    progress: Callable[[Progress], None],
    drawn: DirectionMap | None,
    matched: Beside | None,
    lookup: Lookup | None,
) -> PageResult:
    images: Mapping[str, bytes] = {} if shown.thumbnails is None else shown.thumbnails.images
    # records are computed while the page is written
    records: Iterator[FeatureRecord] = _reported(shown.records, len(shown.latents), progress)
    if before is not None:
        images = ChainMap(images, before.images)  # pyright: ignore[reportArgumentType]
        records = chain(_again(before, shown.contexts), records)
    single_file, jsonl = settings["single_file"], settings["jsonl"]
    contexts = shown.contexts
    return write_page(
        records,
        meta,
        images,
        out,
        single_file=single_file,
        contexts=contexts,
        jsonl=jsonl,
        direction_map=drawn,
        beside=matched,
        patches=shown.patches,
        lookup=lookup,
    )


def _again(before: ExistingPage, contexts: dict[int, list[str]]) -> Iterator[FeatureRecord]:
    """The records of the page that is extended, with their contexts."""
    for record in before.records():
        for example in (*record.examples, *record.samples):
            tokens = before.context(example.example_id)
            if tokens is not None:
                contexts[example.example_id] = tokens
        yield record


def _reported(
    records: Iterable[FeatureRecord], total: int, progress: Callable[[Progress], None]
) -> Iterator[FeatureRecord]:
    for done, record in enumerate(records, 1):
        yield record
        progress(Progress("page", done, total, "features"))


def page_meta(
    inspected: InspectedModel, shown: Gathered, identity: dict[str, Any], latents: list[int]
) -> PageMeta:
    """What the page says about the run as a whole. `latents` are all that it has."""
    model, spec, index, scores = inspected.model, inspected.store.spec, shown.index, shown.scores
    sparsity = kind_of(model) if getattr(model.config, "sparsity", None) else None
    short_model = spec.model.rsplit("/", 1)[-1].removeprefix("embedded:")
    return PageMeta(
        title=f"{short_model} · {spec.hook} · {kind_of(model)}",
        modality=spec.modality,
        model=" + ".join(dict.fromkeys(part.spec.model for part in stores_of(inspected.store))),
        hook=spec.hook,
        dataset=spec.dataset,
        checkpoint=short_name(inspected.name),
        d_in=spec.d_in,
        latents=len(index),
        rows=index.rows,
        density=[None] * len(index) if index.dense else index.density.tolist(),
        max=index.max.tolist(),
        sparsity=sparsity,
        metrics=inspected.recorded("result", "metrics") or {},
        notes=shown.notes,
        score=[scores.of(j) for j in range(len(index))],
        meanings=[None if m is None else asdict(m) for m in scores.meanings],
        gallery=[asdict(s) for s in gallery(latents, index, scores, shown.directions_FD)],
        starts=[] if index.dense else starts_of(index),
        identity="-".join([identity["checkpoint"], *identity["stores"]]),
    )

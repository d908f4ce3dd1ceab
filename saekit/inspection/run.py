"""checkpoint + store -> page: the verb `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from saekit.errors import DataError, SaekitError, UsageError, opt
from saekit.harvesting.sources import Data
from saekit.inspection.page import PageMeta, PageResult, write_page
from saekit.inspection.records import check_features, feature_records, select_latents
from saekit.inspection.relate import hook_shares, off_the_residual_stream, output_tokens
from saekit.inspection.scan import KEPT_TOP, Scan, cached_scan
from saekit.inspection.show import Thumbnails, token_texts
from saekit.models.autoencoder import Autoencoder
from saekit.options import Doc
from saekit.store.checkpoint import Checkpoint, read_checkpoint
from saekit.store.files import write_config, write_json
from saekit.store.folder_kinds import PAGE
from saekit.store.opening import RowsLike, open_stores
from saekit.store.reader import Store
from saekit.store.run_folder import run_folder
from saekit.store.stack import StackedStore, check_stores, stores_of, with_stores
from saekit.training.checkpoints import load
from saekit.types import ActivationSpec, FeatureRecord, Progress

LOGITS_AT_ONCE = 256
CROSSCODER_NOTE = (
    "A crosscoder. Shares of the decoder norm and neighbors are taken with every hook scaled to the"
    " same size, as in training; a decoder that writes to several hooks has no output tokens. The"
    " text or image of an example is the same for all hooks."
)


@dataclass(frozen=True)
class InspectResult:
    index_html: str
    features: int
    bytes: int


def inspect(
    checkpoint: Annotated[str | Path, Doc("Checkpoint folder.", metavar="CKPT", positional=True)],
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
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    live: nn.Module | None = None,
    data: Data | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> InspectResult:
    """Scan a store once and write a page of the chosen features (`0-255,1024`, `top:500`, `all`)
    that opens from disk.

    `store`: a path or an open Store. A crosscoder takes the stores of its training, in its order,
    as a list; examples are shown with the first one's tokens or images, which are those of all. For
    a language model the logit lens needs the model itself; when it cannot be had the page is made
    without, and a message says so. `live` and `data` are the model and the texts or images
    themselves, for a store that was harvested from objects in memory. Raises UsageError, DataError
    (checkpoint and store do not fit, OUT, other data than the store's), MissingError.
    """
    if not 1 <= top <= KEPT_TOP:
        raise UsageError(f"{opt('top', top)} must be between 1 and {KEPT_TOP}")
    model, description, opened = open_pair(checkpoint, store)
    paths = [str(each.path) for each in stores_of(opened)]
    if opened.spec.is_raw and opened.spec.modality != "image":
        verb = "compare" if len(paths) == 1 else "evaluate"
        hint = with_stores(f"saekit {verb} {checkpoint}", paths)
        raise DataError(
            f"{opened.path} holds {opened.spec.hook} rows, which a page cannot show", hint
        )
    check_features(features, model.latents)
    where = paths[0] if len(paths) == 1 else paths
    settings = {
        "checkpoint": str(checkpoint),
        "store": where,
        "features": features,
        "top": top,
        "single_file": single_file,
    }
    with run_folder(Path(out), PAGE, resume=False, overwrite=overwrite) as folder:
        write_json(folder.path / PAGE.marker, {"schema_version": 1, **settings})
        write_config(folder.path / "config.toml", settings)
        page = _write_page(
            model,
            description,
            Path(checkpoint),
            opened,
            folder.path,
            features,
            top,
            single_file,
            live,
            data,
            progress,
        )
    return InspectResult(str(Path(out) / page.index_html.name), page.features, page.bytes)


def _write_page(
    model: Autoencoder,
    description: Checkpoint,
    checkpoint: Path,
    opened: Store | StackedStore,
    out: Path,
    features: str,
    top: int,
    single_file: bool,
    live: nn.Module | None,
    data: Data | None,
    progress: Callable[[Progress], None],
) -> PageResult:
    scan = cached_scan(model, checkpoint, opened, progress)
    chosen = select_latents(features, scan)
    thumbnails = Thumbnails(opened, data) if opened.spec.modality == "image" else None
    if thumbnails is not None and thumbnails.note:
        progress(Progress("inspect", 0, len(chosen), "features", message=thumbnails.note))
    directions_FD = (
        _even_directions(model, description, opened)
        if isinstance(opened, StackedStore)
        else model.W_dec
    )
    records: Iterable[FeatureRecord] = feature_records(
        model, opened, scan, chosen, top, thumbnails, directions_FD, progress, data
    )
    note = "the logit lens applies to the residual stream of language models"
    if isinstance(opened, StackedStore):
        records, note = _with_hook_shares(records, directions_FD, opened), CROSSCODER_NOTE
    elif model.W_dec is None:
        note = (
            "the decoder is deep: latents have no directions, so there are no neighbors and no"
            " output tokens"
        )
    elif opened.spec.modality == "text":
        head, note = _output_head(description, opened, live)
        if head is not None:
            records = _with_logits(records, model, head, opened)
        else:
            progress(
                Progress("inspect", 0, len(chosen), "features", message=f"no output tokens: {note}")
            )
    records = _reported(records, len(chosen), progress)
    images = {} if thumbnails is None else thumbnails.images
    notes = [note, "" if thumbnails is None else thumbnails.note]
    meta = page_meta(description, opened, scan, [each for each in notes if each])
    return write_page(records, meta, images, out, single_file=single_file)


def open_pair(
    checkpoint: str | Path, store: RowsLike
) -> tuple[Autoencoder, Checkpoint, Store | StackedStore]:
    """Model, checkpoint and store, known to fit: the same width, hidden states of the same
    modality."""
    description, opened = read_checkpoint(checkpoint), open_stores(store)
    check_stores(checkpoint, description.config, opened)
    trained_on = description.config["spec"]
    if trained_on["d_in"] != opened.spec.d_in:
        raise DataError(
            f"{checkpoint} takes {trained_on['d_in']} values per row ({trained_on['model']},"
            f" {trained_on['hook']}), {opened.path} holds {opened.spec.d_in} ({opened.spec.model},"
            f" {opened.spec.hook})",
            f"{opt('store')} with the store that it was trained on, or one of the same hook",
        )
    if trained_on["modality"] != opened.spec.modality:
        raise DataError(
            f"{checkpoint} was trained on {trained_on['modality']}, {opened.path} holds"
            f" {opened.spec.modality}"
        )
    model = load(checkpoint)
    if model.takes != "rows":
        cause = (
            f"{checkpoint} is a {description.config['model']} model: its code is of whole examples,"
            " and features are shown on rows"
        )
        raise DataError(cause, f"saekit compare {checkpoint} --store {opened.path}")
    return model, description, opened


@dataclass(frozen=True)
class Head:
    """The output tokens of a language model: W_U (N,D), and the token id of each of its rows."""

    W_U_ND: torch.Tensor
    ids: list[int]


def _output_head(
    checkpoint: Checkpoint, store: Store, live: nn.Module | None
) -> tuple[Head | None, str]:
    """As `unembedding`. A transcoder's directions are of its target, not of what it reads."""
    target = checkpoint.config["training"].get("target_store")
    try:
        return unembedding(store, store.spec if target is None else Store(Path(target)).spec, live)
    except SaekitError as error:
        return None, f"the target store cannot be read: {error}"


def unembedding(
    store: Store, written: ActivationSpec | None = None, given: nn.Module | None = None
) -> tuple[Head | None, str]:
    """(the head of the language model that the store came from, '') or (None, why directions at
    `written` have no output tokens). `given`: the model itself, where it was in memory."""
    from saekit.harvesting.memory_models import load_model_of

    spec = written or store.spec
    if spec.is_raw or spec.model != store.spec.model:
        return (
            None,
            f"the decoder writes to {spec.hook} of {spec.model}, not to the model of {store.path}",
        )
    try:
        live = load_model_of(spec, given=given)
    except SaekitError as error:
        return None, str(error)
    head = live.output_head
    if head is None:
        return None, f"{spec.model} has no output tokens"
    if head.weight.shape[1] != spec.d_in:
        return None, f"{spec.hook} is {spec.d_in} wide, the residual stream {head.weight.shape[1]}"
    if why := off_the_residual_stream(live, spec.hook):
        return None, why
    # Heads are padded to round numbers: rows that are no token of the vocabulary were never
    # trained.
    ids = [i for i in token_texts(store).ids() if 0 <= i < len(head.weight)]
    return Head(head.weight.detach().float().cpu()[ids], ids), ""


def _with_logits(
    records: Iterable[FeatureRecord], model: Autoencoder, head: Head, store: Store
) -> Iterator[FeatureRecord]:
    texts = token_texts(store)
    records = iter(records)
    while some := list(islice(records, LOGITS_AT_ONCE)):
        latents = torch.tensor([record.index for record in some])
        for record, logits in zip(
            some,
            output_tokens(model.W_dec, latents, head.W_U_ND, lambda i: texts.alone(head.ids[i])),
        ):
            record.logits = logits
            yield record


def _even_directions(
    model: Autoencoder, checkpoint: Checkpoint, stack: StackedStore
) -> torch.Tensor:
    """The decoder (F,D) in the units of training, in which the rows of all hooks are of one size:
    in raw units a late block, whose rows are ten times as long as an early one's, would have ten
    times the decoder norm by that alone."""
    scales = checkpoint.config["input_scale"]
    scales = list(scales) if isinstance(scales, (list, tuple)) else [scales]
    if len(set(scales)) == 1:  # written once where all agree
        scales = scales[:1] * len(stack.parts)
    if len(scales) != len(stack.parts):
        raise DataError(
            f"{checkpoint.path}: input_scale holds {len(scales)} values for {len(stack.parts)}"
            " hooks"
        )
    return model.W_dec * torch.tensor(scales).repeat_interleave(torch.tensor(stack.parts))


def _with_hook_shares(
    records: Iterable[FeatureRecord], directions_FD: torch.Tensor, stack: StackedStore
) -> Iterator[FeatureRecord]:
    shares_FP = hook_shares(directions_FD, stack.parts)
    for record in records:
        record.hook_shares = dict(zip(stack.names, shares_FP[record.index].tolist()))
        yield record


def _reported(
    records: Iterable[FeatureRecord], total: int, progress: Callable[[Progress], None]
) -> Iterator[FeatureRecord]:
    for done, record in enumerate(records, 1):
        yield record
        progress(Progress("page", done, total, "features"))


def page_meta(
    checkpoint: Checkpoint, store: Store | StackedStore, scan: Scan, notes: list[str]
) -> PageMeta:
    config, spec = checkpoint.config, store.spec
    own = config["config"]
    sparsity = own.get("sparsity")
    if sparsity == "topk":
        sparsity = f"topk k={own['k']}"
    short_model = spec.model.rsplit("/", 1)[-1].removeprefix("embedded:")
    return PageMeta(
        title=f"{short_model} · {spec.hook} · {sparsity or config['model']}",
        modality=spec.modality,
        model=" + ".join(dict.fromkeys(each.spec.model for each in stores_of(store))),
        hook=spec.hook,
        dataset=spec.dataset,
        checkpoint=checkpoint.path.name,
        d_in=spec.d_in,
        latents=len(scan.active),
        rows=scan.rows,
        density=[None] * len(scan.active) if scan.dense else scan.density.tolist(),
        max=scan.max.tolist(),
        sparsity=sparsity,
        metrics=config["result"]["metrics"],
        notes=notes,
    )

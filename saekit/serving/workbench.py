"""All that the server has in memory: a dictionary, the model that its rows come from, what is known
about its latents, and where each of these came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError, SaekitError, UsageError, opt
from saekit.harvesting.classifiers import load_classifier_of
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.models import LiveModel
from saekit.indexing.maxima import indexed_maxima
from saekit.inspection.existing import ExistingPage, page_identity
from saekit.inspection.indexed import index_of
from saekit.inspection.inputs import CONTEXT
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.interop.base_models import hub_id
from saekit.interop.opening import open_checkpoint
from saekit.interop.provenance import provenance
from saekit.intervention.attach import hooks_of
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import restore
from saekit.serving.latents import KnownLatents
from saekit.serving.reading import Reader
from saekit.serving.searching import Searcher
from saekit.serving.steering import Steering
from saekit.serving.wording import fault
from saekit.store.checkpoint import Checkpoint
from saekit.store.folder_kinds import PAGE
from saekit.store.stack import stores_of
from saekit.training.checkpoints import catalog_name, short_name
from saekit.training.fit import on_device
from saekit.types import ActivationSpec, Progress

MOST_LABELS = 500  # of the data, that the page proposes


@dataclass(frozen=True)
class Workbench:
    reader: Reader
    known: KnownLatents
    searcher: Searcher
    steering: Steering | None
    about: dict[str, Any]
    """What the page says: title, model, hook, modality ..."""
    page: Path | None
    """The folder that `saekit inspect` wrote."""


def open_workbench(
    checkpoint: str | Path,
    stores: Sequence[str | Path] = (),
    *,
    model: str | None = None,
    page: str | Path | None = None,
    any_store: bool = False,
    device: torch.device,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Workbench:
    """Parameters as those of `serve`. Raises UsageError, DataError, MissingError."""
    source = str(checkpoint)
    # the dictionary, and which rows it takes
    if stores:
        inspected = open_pair(source, list(stores), any_store)
        described, dictionary = inspected.checkpoint, inspected.model
        specs = [store.spec for store in stores_of(inspected.store)]
    else:
        inspected, described = None, open_checkpoint(source)
        config = described.config
        dictionary = restore(config["model"], config["config"], described.tensors)
        specs = [spec_of(source, config, model)]
    assert described is not None, "a path"
    if dictionary.takes != "rows":
        raise DataError(
            f"{source} takes whole examples ({dictionary.takes}), not rows: its code has no tokens"
        )
    if raw := [spec for spec in specs if spec.is_raw]:
        raise DataError(f"{source} was trained on {raw[0].model}: there is no model to run")
    if model is not None:
        specs = [dataclasses.replace(spec, model=model, revision=None) for spec in specs]

    # what is known of its latents
    known = _known(inspected, described, dictionary, page, progress, device)
    # the models that rows come from, the first with its head
    models = {}
    for spec in specs:
        if spec.model not in models:
            progress(Progress("serve", len(models), 0, "models", message=f"loading {spec.model}"))
            models[spec.model] = _loaded(spec, device)
    first = models[specs[0].model]
    dictionary = on_device(dictionary, device)
    steering, fault = _steering(first, dictionary, described, source, known.maxima)

    spec, sparsity = specs[0], getattr(dictionary.config, "sparsity", None)
    sparsity = f"topk k={dictionary.config.k}" if sparsity == "topk" else sparsity
    hook = "+".join(spec.hook for spec in specs)
    short_model = spec.model.rstrip("/").rsplit("/", 1)[-1].removeprefix("embedded:")
    about = {
        "title": f"{short_model} · {hook} · {sparsity or catalog_name(dictionary)}",
        "modality": first.modality,
        "model": " + ".join(models),
        "hook": hook,
        "checkpoint": short_name(source),
        "latents": dictionary.latents,
        "rows": known.rows,
        "has_maxima": known.maxima is not None,
        "orders": known.orders.names,
        "page": page is not None,
        "index": known.scanned is not None and not known.scanned.known.index.dense,
        "labels": known.labels[:MOST_LABELS],
        "steering": steering is not None,
        "steering_fault": fault,
        "chat": bool(getattr(first.processor, "chat_template", None)),
        "grid": first.image_tokens.grid if first.image_tokens is not None else None,
    }
    reader = Reader(dictionary, specs, models, known)
    searcher, folder = Searcher(reader, known), None if page is None else Path(page)
    return Workbench(reader, known, searcher, steering, about, folder)


def spec_of(name: str, config: dict[str, Any], model: str | None) -> ActivationSpec:
    """What a checkpoint says about the rows that it takes, without a store. Raises UsageError
    where it does not say which model and hook, DataError for a crosscoder."""
    if config["config"].get("parts"):
        raise UsageError(
            f"{name} is a crosscoder, whose rows are those of several stores",
            f"{opt('store')} with the stores of its training, in the same order",
        )
    said, spec = provenance(config), config["spec"]
    if str(spec.get("model") or "").startswith("raw:"):
        raise DataError(f"{name} was trained on {spec['model']}: there is no model to run")
    source = model or (said.model and hub_id(said.model))
    if not source:
        raise UsageError(f"{name} does not say which model it was trained on", opt("model"))
    if len(said.hooks) != 1:
        raise UsageError(
            f"{name} does not say which hook it reads", f"{opt('store')} with a store of its rows"
        )
    return ActivationSpec(
        model=source, revision=said.revision if model is None else None, hook=said.hooks[0],
        modality=spec.get("modality") or "text", d_in=spec["d_in"], dtype="float32", layout="flat",
        scope=said.scope or "content", grid=None, dataset="", context=said.context or CONTEXT,
        seed=0,
    )  # fmt: skip


def _loaded(spec: ActivationSpec, device: torch.device) -> LiveModel:
    """A model, of images with the head of a classifier where it has one."""
    if spec.modality == "image":
        try:
            return load_classifier_of(spec, device)
        except DataError:  # without a head
            return load_model_of(spec, device)
    live_model = load_model_of(spec, device)
    if live_model.modality == "image":  # what a published dictionary did not say
        return _loaded(dataclasses.replace(spec, modality="image"), device)
    return live_model


def _known(
    inspected: InspectedModel | None,
    described: Checkpoint,
    dictionary: Autoencoder,
    page: str | Path | None,
    progress: Callable[[Progress], None],
    device: torch.device,
) -> KnownLatents:
    if inspected is None:
        if page is not None:
            raise UsageError(f"{opt('page')} needs the store of the page", opt("store"))
        maxima = indexed_maxima(described.path, described.config, dictionary.latents)
        return KnownLatents(dictionary.latents, maxima)
    paged = frozenset() if page is None else _paged(inspected, Path(page))
    index_of(inspected, progress, device)
    known = Known(inspected, progress)
    maxima = torch.from_numpy(known.max.copy())
    return KnownLatents(dictionary.latents, maxima, inspected, known, paged)


def _paged(inspected: InspectedModel, folder: Path) -> frozenset[int]:
    """The latents that the page in `folder` has. Raises DataError unless it is a page of the same
    weights and rows."""
    marker = PAGE.read_marker(folder)
    if marker is None:
        raise DataError(f"{folder} is not a page that saekit wrote", "saekit inspect writes one")
    if marker.get("identity") != page_identity(inspected):
        raise DataError(
            f"{folder} is a page of another checkpoint or store",
            f"saekit inspect {inspected.name} --out DIR writes the one of this",
        )
    return frozenset(ExistingPage(folder).indices)


def _steering(
    live_model: LiveModel,
    dictionary: Autoencoder,
    described: Checkpoint,
    source: str,
    maxima: torch.Tensor | None,
) -> tuple[Steering | None, str | None]:
    """(what steers, None) or (None, why nothing does)."""
    try:
        hooks = hooks_of(described, dictionary, source, None)
        return Steering(live_model, dictionary, hooks, maxima), None
    except SaekitError as error:
        return None, fault(error)

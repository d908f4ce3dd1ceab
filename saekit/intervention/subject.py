"""Which checkpoints can be fine-tuned, their store, and the model that its rows came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saekit.config import recorded
from saekit.device import pick_device
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.anatomy import untouched
from saekit.harvesting.classifiers import load_classifier_of
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.models import FromFolder, LiveModel
from saekit.models.sparsity import VARIANTS
from saekit.store.checkpoint import Checkpoint
from saekit.store.reader import Store

KINDS = "fine-tune an SAE of one hook of a language model"


def unknown_store(name: str) -> UsageError:
    """For a published dictionary, or an import of one."""
    return UsageError(
        f"{name} is a published dictionary: the store of its training, whose held-out documents are"
        " needed, is not known",
        KINDS,
    )


def check_kind(checkpoint: Checkpoint) -> None:
    """Raise UsageError for what cannot be fine-tuned."""
    path, config, spec = checkpoint.path, checkpoint.config["config"], checkpoint.config["spec"]
    hint = KINDS
    if checkpoint.config["model"] != "sae":
        raise UsageError(f"{path} holds a {checkpoint.config['model']} model, not an SAE", hint)
    if "published" in checkpoint.config:
        raise unknown_store(str(path))
    if spec["modality"] != "text" or spec["model"].startswith("raw:"):
        raise UsageError(
            f"{path} was trained on {spec['model']}: there are no logits to train against", hint
        )
    if config.get("d_out") or config.get("skip"):
        raise UsageError(f"{path} is a transcoder: its output cannot replace its input", hint)
    if config.get("parts"):
        raise UsageError(f"{path} is a crosscoder: its rows are those of several hooks", hint)
    if VARIANTS[config["sparsity"]].constrained_decoder:
        raise UsageError(
            f"{opt('sparsity', config['sparsity'])}: its decoder would leave its constraint", hint
        )


def open_store_of(checkpoint: Checkpoint, path: str | Path | None) -> Store:
    """The store of the run: `path`, or as the run's config.toml records it. Its content must be the
    same, since it decides which documents are held out."""
    where = path or recorded(checkpoint.path, "store")
    if where is None:
        raise UsageError(
            f"{checkpoint.path} does not say which store it was trained on",
            f"give it as {opt('store')}",
        )
    store = Store(Path(where))
    if store.manifest.content != checkpoint.config["content"]:
        raise DataError(
            f"{where} is not the store that {checkpoint.path} was trained on",
            f"{opt('store')} with that one",
        )
    return store


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Within the body a caller's model is in eval mode and its weights need no gradient; afterwards
    it is as it was."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with untouched(module, hooks=False), torch.enable_grad():
        module.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def model_of(
    store: Store, device: str, live: nn.Module | None = None, processor: Any = None
) -> LiveModel:
    """The model of a store with its output head, or the caller's, which stays on its device. Texts
    are read with the store's own tokenizer, images with `processor` or that of the model's place.

    Raises UsageError for another device than that of the caller's model, and the errors of
    `load_model_of` and `load_classifier`.
    """
    if live is None:
        load = load_classifier_of if store.spec.modality == "image" else load_model_of
        return load(store.spec, pick_device(device))
    where = next(live.parameters()).device
    if device != "auto" and torch.device(device) != where:
        raise UsageError(
            f"{opt('device', device)}: the model is on {where}", "model.to(device) moves it"
        )
    if store.spec.modality == "text":
        processor = FromFolder(str(store.path / "tokenizer"))
    return load_model_of(store.spec, given=live, processor=processor)


def other_revision(live: LiveModel, store: Store) -> str | None:
    """A message where the store was harvested at another revision of the model."""
    then, now = store.spec.revision, live.revision
    if then and now and then != now and _kind(then) == _kind(now):
        return f"{live.name} is at {now}, the store was harvested at {then}"
    return None


def _kind(revision: str) -> str:
    """A commit, a digest of files and a digest of weights do not compare."""
    return revision.rpartition(":")[0]

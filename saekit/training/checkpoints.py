"""Checkpoint folder -> model: as it was trained, with a smaller k, or only the first groups of its
latents.

The last two come from the same tensors without training: a code of the k largest values of a row is
cut shorter, a dictionary trained in nested groups ends after one of them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.interop.opening import is_name, open_checkpoint
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import CATALOG, LOADED, check_takes_rows, restore
from saekit.models.sae import SAE
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.nested import Nesting
from saekit.rows import Rows
from saekit.store.checkpoint import Checkpoint


class Trained(Protocol):
    """What `saekit.train` returns."""

    @property
    def path(self) -> str | None:
        """The checkpoint folder; None where nothing was written."""

    @property
    def model(self) -> Autoencoder: ...


ModelLike = str | Path | Autoencoder | Trained


def load(checkpoint: ModelLike, *, k: int | None = None, latents: int | None = None) -> Autoencoder:
    """The trained model of a checkpoint folder, or a dictionary that another program published: a
    torch module in eval mode, on the CPU, that takes raw activations.

    `model.encode(x_BD)`, `model.decode(code)`, `model(x_BD) -> Output`; SAEs have W_enc (F,D),
    b_enc (F,), W_dec (F,D), b_dec (D,).

    Parameters
        checkpoint: a folder; a published dictionary in one of the formats of docs/published.md, by
            its local path or its name, `hf:OWNER/REPO[@REV]/PATH` or `saelens:RELEASE/SAE_ID`,
            whose files are fetched into the cache of huggingface_hub; or a model in memory or what
            `saekit.train` returned, to cut with k or latents. Without these a model in memory is
            returned as it is.
        k: at most that of the training: the code keeps the k largest values of a row (topk and the
            variants that share its code, abs-topk). hierarchical (Balagansky et al. 2025, arXiv
            2505.24473) is trained to be good at each k.
        latents: the end of one of a matryoshka's groups: only the first so many latents (Bussmann
            et al. 2025, arXiv 2503.17547). k then counts these latents: a matryoshka-topk has more
            of them active per row than in training, where all latents competed.

    Raises MissingError when there is nothing at the path or the hub does not give it, DataError
    when it is not a finished checkpoint, UsageError for a k or latents that the model does not
    have.
    """
    source = path_or_model(checkpoint)
    if isinstance(source, Autoencoder) and latents is None:
        model = source
    else:
        described = open_checkpoint(source) if isinstance(source, str) else _described(source)
        if latents is not None:
            described = first_latents(described, latents)
        model = restore(described.config["model"], described.config["config"], described.tensors)
        if isinstance(source, str) and latents is None and k is None:
            model.origin = source
    return model if k is None else with_k(model, k, name_of(source))


def path_or_model(checkpoint: ModelLike) -> str | Autoencoder:
    """The path of a checkpoint, which says more than its model, or a model in memory."""
    if isinstance(checkpoint, Autoencoder):
        return checkpoint
    if isinstance(checkpoint, (str, Path)):
        return str(checkpoint)
    if not hasattr(checkpoint, "path"):
        raise UsageError(
            f"{type(checkpoint).__name__} is not a checkpoint",
            "give a checkpoint folder, a model or what saekit.train returned",
        )
    return checkpoint.model if checkpoint.path is None else checkpoint.path


def unchanged_origin(model: Autoencoder) -> str | None:
    """The checkpoint that a model was loaded from, where it still holds the same weights: its
    folder knows more, such as an index. None for any other model."""
    if model.origin is None or not Path(model.origin).is_dir():
        return None
    read = load(model.origin)
    now, then = model.state_dict(), read.state_dict()
    same = now.keys() == then.keys() and all(
        torch.equal(now[name].cpu(), value) for name, value in then.items()
    )
    return model.origin if same and model.config == read.config else None


def as_list(checkpoints: Iterable[ModelLike] | ModelLike) -> list[ModelLike]:
    """One checkpoint or model, or several, as a list."""
    if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, str):
        return list(checkpoints)
    return [checkpoints]


def name_of(source: str | Autoencoder) -> str:
    """What messages call it: the path or name, or the model's class."""
    return source if isinstance(source, str) else type(source).__name__


def short_name(source: str) -> str:
    """What tables and pages call it: the folder's name, or the whole name on the hub, whose last
    part (`average_l0_82`) says little."""
    return source if is_name(source) else Path(source).name


def for_inference(model: Autoencoder) -> Autoencoder:
    """The model in eval mode, on the CPU: itself, or a copy where the caller's is not."""
    weight = next(iter(model.state_dict().values()))
    if model.training or weight.device.type != "cpu":
        return copy.deepcopy(model).cpu().eval()
    return model


def catalog_name(model: Autoencoder) -> str:
    """The name that the catalog has for a model; for another one its class."""
    entries = CATALOG | LOADED
    names = (name for name, entry in entries.items() if type(model) is entry.model)
    return "sae" if isinstance(model, SAE) else next(names, type(model).__name__)


def kind_of(model: Autoencoder) -> str:
    """The catalog's name, with the sparsity of an SAE: `sae topk`."""
    name = catalog_name(model)
    return f"{name} {model.config.sparsity}" if isinstance(model, SAE) else name


def check_rows(model: Autoencoder, rows: Rows) -> None:
    """Raise DataError where a model in memory cannot take these rows: their width, the stores of a
    crosscoder or the shape of an example differ. A checkpoint folder says more
    (saekit.store.stack.check_stores)."""
    name, config = type(model).__name__, getattr(model, "config", None)
    check_takes_rows(catalog_name(model), name)
    if model.d_in != rows.spec.d_in:
        raise DataError(
            f"{name} takes {model.d_in} values per row, {rows.path} holds {rows.spec.d_in}"
        )
    parts = tuple(getattr(config, "parts", ()))
    if rows.parts and rows.parts != parts:
        raise DataError(
            f"{name} takes rows of {parts or (model.d_in,)} values, the stores hold {rows.parts}",
            "give the stores of the training, in the same order",
        )
    shape = getattr(config, "shape", None)
    if model.takes != "rows" and shape is not None and tuple(shape) != rows.spec.shape:
        raise DataError(
            f"{name} takes examples of shape {tuple(shape)}, those of {rows.path} have"
            f" {rows.spec.shape}"
        )


def with_k(model: Autoencoder, k: int, name: str) -> Autoencoder:
    """The same weights, not copied, with a code of the k largest values of a row; `name` says in
    errors which model it is."""
    if not (isinstance(model, SAE) and model.largest_of_rows):
        kinds = [kind for kind, variant in VARIANTS.items() if variant.largest_of_rows]
        raise UsageError(
            f"{opt('k', k)}: the code of {name} is not the k largest values of a row",
            f"SAEs that have one: {', '.join(kinds)}",
        )
    if not 1 <= k <= model.config.k:
        raise UsageError(f"{opt('k', k)} must be between 1 and the k of {name}, {model.config.k}")
    cut = copy.copy(model)
    cut.config = dataclasses.replace(model.config, k=k)
    return cut


def first_latents(checkpoint: Checkpoint, latents: int) -> Checkpoint:
    """A checkpoint of only the first `latents` of a matryoshka. Raises UsageError where no group
    ends there."""
    config = checkpoint.config["config"]
    ends = _group_ends(checkpoint)
    if latents not in ends:
        raise UsageError(
            f"latents={latents}: no group of {checkpoint.path} ends there",
            f"latents={' or '.join(map(str, ends))}",
        )
    # rounded up: 1 / 49 * 49 is below 1, and a first group of one latent would seem to hold none
    groups = [math.nextafter(end / latents, 1.0) for end in ends if end <= latents]
    bounds = {"k": latents, "k_start": latents, "target_l0": latents - 1}
    # target_l0 may be None
    capped = {
        name: min(config[name], bound)
        for name, bound in bounds.items()
        if config.get(name) is not None
    }
    tensors = {
        name: tensor[:latents] if name in SAE.by_latent else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    smaller = config | capped | {"latents": latents, "groups": groups}
    return dataclasses.replace(
        checkpoint, config=checkpoint.config | {"config": smaller}, tensors=tensors
    )


def _described(model: Autoencoder) -> Checkpoint:
    """As much of a model in memory as a checkpoint folder says of its model."""
    config = {"model": catalog_name(model), "config": dataclasses.asdict(model.config)}
    return Checkpoint(Path(type(model).__name__), config, model.state_dict())


def _group_ends(checkpoint: Checkpoint) -> list[int]:
    """Latents up to the end of each group of a matryoshka."""
    config: dict[str, Any] = checkpoint.config["config"]
    sparsity = config.get("sparsity") if checkpoint.config["model"] == "sae" else None
    variant = None if sparsity is None else VARIANTS.get(sparsity)
    if variant is None or not issubclass(variant.config_class, Nesting):
        kinds = [
            kind for kind, variant in VARIANTS.items() if issubclass(variant.config_class, Nesting)
        ]
        raise UsageError(
            f"latents: {checkpoint.path} was not trained in nested groups of latents",
            f"SAEs that are: {', '.join(kinds)}",
        )
    return [round(share * config["latents"]) for share in config["groups"]]

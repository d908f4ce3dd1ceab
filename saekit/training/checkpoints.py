"""Checkpoint folder -> model: as it was trained, with a smaller k, or the first groups of its
latents alone.

Both come from the same tensors without training: a code of the k largest values of a row is cut
shorter, a dictionary trained in nested groups ends at one of them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from saekit.errors import UsageError, opt
from saekit.models.catalog import restore
from saekit.models.sae import SAE
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.nested import Nesting
from saekit.store.checkpoint import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from saekit.models.autoencoder import Autoencoder


def load(path: str | Path, *, k: int | None = None, latents: int | None = None) -> Autoencoder:
    """The trained model of a checkpoint folder: a torch module in eval mode, on the CPU, that takes
    raw activations.

    `model.encode(x_BD)`, `model.decode(code)`, `model(x_BD) -> Output`; SAEs have W_enc (F,D),
    b_enc (F,), W_dec (F,D), b_dec (D,). `k`, at most that of the training: the code is the k
    largest values of a row (topk and what shares its code, abs-topk); hierarchical (Balagansky et
    al. 2025, arXiv 2505.24473) is trained to be good at such. `latents`, the end of one of a
    matryoshka's groups: the first so many latents alone (Bussmann et al. 2025, arXiv 2503.17547). A
    k is then that of these latents: matryoshka-topk has more of them active in a row than in
    training, where all latents competed. Raises MissingError when there is nothing at `path`,
    DataError when it is no finished checkpoint, UsageError for a k or latents that the model does
    not have.
    """
    checkpoint = read_checkpoint(path)
    if latents is not None:
        checkpoint = first_latents(checkpoint, latents)
    model = restore(checkpoint.config["model"], checkpoint.config["config"], checkpoint.tensors)
    return model if k is None else with_k(model, k, str(path))


def with_k(model: nn.Module, k: int, name: str) -> nn.Module:
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
    """The same of the first `latents` of a matryoshka alone. Raises UsageError where no group ends
    there."""
    config = checkpoint.config["config"]
    ends = _ends(checkpoint)
    if latents not in ends:
        raise UsageError(
            f"latents={latents}: no group of {checkpoint.path} ends there",
            f"latents={' or '.join(map(str, ends))}",
        )
    # rounded up: 1 / 49 * 49 is below 1, and a first group of one latent would seem to hold none
    groups = [math.nextafter(end / latents, 1.0) for end in ends if end <= latents]
    most = {"k": latents, "k_start": latents, "target_l0": latents - 1}
    capped = {name: min(config[name], bound) for name, bound in most.items() if name in config}
    tensors = {
        name: tensor[:latents] if name in SAE.by_latent else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    inner = config | capped | {"latents": latents, "groups": groups}
    return dataclasses.replace(
        checkpoint, config=checkpoint.config | {"config": inner}, tensors=tensors
    )


def _ends(checkpoint: Checkpoint) -> list[int]:
    """Of the groups of a matryoshka, in latents."""
    config: dict[str, Any] = checkpoint.config["config"]
    variant = VARIANTS.get(config.get("sparsity")) if checkpoint.config["model"] == "sae" else None
    if variant is None or not issubclass(variant.config_class, Nesting):
        kinds = [
            kind for kind, variant in VARIANTS.items() if issubclass(variant.config_class, Nesting)
        ]
        raise UsageError(
            f"latents: {checkpoint.path} was not trained in nested groups of latents",
            f"SAEs that are: {', '.join(kinds)}",
        )
    return [round(share * config["latents"]) for share in config["groups"]]

"""The one registry of models: name -> (config class, model class, one line)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torch import nn

from saekit.errors import DataError, UsageError, check_choice
from saekit.models.conv import Conv, ConvConfig
from saekit.models.dense import Dense, DenseConfig, Linear, LinearConfig
from saekit.models.kmeans import KMeans, KMeansConfig
from saekit.models.linear import PCA, PCAConfig
from saekit.models.recurrent import Recurrent, RecurrentConfig
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sparsity import VARIANTS
from saekit.models.unet import UNet, UNetConfig
from saekit.models.vae import VAE, VAEConfig


class Entry(NamedTuple):
    config: type
    model: type[nn.Module]
    line: str


CATALOG: dict[str, Entry] = {
    "sae": Entry(SAEConfig, SAE, "sparse autoencoder, overcomplete, --sparsity topk | batchtopk | l1 | kl"),
    "pca": Entry(PCAConfig, PCA, "principal components in closed form: the linear floor"),
    "kmeans": Entry(KMeansConfig, KMeans, "nearest centroid: one latent a row"),
    "linear": Entry(LinearConfig, Linear, "linear autoencoder by gradient: PCA's subspace"),
    "dense": Entry(DenseConfig, Dense, "mirrored layers, shallow or deep: --hidden, --tied, --noise, --contractive, --pretrain"),
    "conv": Entry(ConvConfig, Conv, "convolutions for images and grids of patches: --channels"),
    "unet": Entry(UNetConfig, UNet, "convolutions down and up with skips between, for a target store: colours, masks"),
    "recurrent": Entry(RecurrentConfig, Recurrent, "reads a sequence into one code and writes it out again: --cell gru | lstm"),
    "vae": Entry(VAEConfig, VAE, "variational autoencoder with --beta: samples, interpolation, ELBO"),
}
FROM_DATA = ("d_in", "d_out", "shape")  # fields of a config that no option sets


def options_of(name: str) -> dict[str, Any]:
    """The options that a model takes, with their defaults (widths and shapes come from the data)."""
    check_choice("--model", name, CATALOG)
    config = CATALOG[name].config
    left_out = (*FROM_DATA, *getattr(config, "without", ()))  # what a model inherits and refuses is none of its options
    return {f.name: f.default for f in dataclasses.fields(config) if f.name not in left_out}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise UsageError when an option is not one of the model's, or is wrong whatever the data."""
    known = options_of(name)
    for key in options:
        if key not in known:
            flags = ", ".join(map(flag, known))
            raise UsageError(f"{flag(key)} does not apply to --model {name}, which takes {flags}")
    if name == "sae":
        _check_sparsity(options)


def _check_sparsity(options: dict[str, Any]) -> None:
    """An option of one sparsity is not silently ignored by another."""
    chosen = options.get("sparsity", SAEConfig.sparsity)
    check_choice("--sparsity", chosen, VARIANTS)
    others = frozenset().union(*(variant.options for variant in VARIANTS.values())) - VARIANTS[chosen].options
    for key in options:
        if key in others:
            takes = ", ".join(sorted(name for name, variant in VARIANTS.items() if key in variant.options))
            raise UsageError(
                f"{flag(key)} does not apply to --sparsity {chosen}", f"--sparsity {takes.replace(', ', ' or ')}, or leave it away"
            )


def flags_of(name: str, sparsity: str | None) -> tuple[str, ...]:
    """The options that a model has on the command line, those of another sparsity left out."""
    if name != "sae":
        return tuple(key for key in options_of(name) if key != "seed")
    own = VARIANTS[sparsity].options
    return ("latents", "sparsity", "noise", "decoder_norm", *(o for o in ("k", "coef", "target_rate") if o in own))


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def build(name: str, d_in: int, options: dict[str, Any], shape: tuple[int | None, ...] | None = None, d_out: int = 0) -> nn.Module:
    """A new model with unset weights. `shape` is that of one example (ActivationSpec.shape), `d_out` the width of the target's rows where
    that is another store. Raises UsageError on wrong options, DataError when the model does not take such examples."""
    check_options(name, options)
    entry = CATALOG[name]
    fields = {f.name for f in dataclasses.fields(entry.config)}
    data: dict[str, Any] = {"d_in": d_in}
    if "shape" in fields:
        data["shape"] = shape or (d_in,)
    if d_out:
        if "d_out" not in fields:
            raise UsageError(f"--target-store does not apply to --model {name}")
        data["d_out"] = d_out
    return entry.model(entry.config(**data, **options))


def restore(name: str, config: dict[str, Any], tensors: dict) -> nn.Module:
    """The model of a checkpoint. Raises DataError when config and tensors do not fit it."""
    if name not in CATALOG:
        raise DataError(f"the checkpoint holds a {name!r} model, which this saekit does not know")
    try:
        entry = CATALOG[name]
        model = entry.model(entry.config(**config))
        model.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise DataError(f"the checkpoint does not fit a {name} model: {error}") from None
    return model.eval().requires_grad_(False)

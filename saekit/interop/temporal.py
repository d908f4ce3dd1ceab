"""Temporal SAEs (saekit.models.contextual): conf.yaml and latest_ckpt.safetensors of
canrager/temporalSAEs, and `contextual`, which SAELens' own folders need too.

The settings are those of SAELens' TemporalSAEConfig, with its defaults; conf.yaml has them under
`sae`, and its `scaling_factor` multiplies the input.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError, UsageError
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    as_float32,
    digests,
    factor,
    need,
    need_matrices,
    number,
    read_safetensors,
    read_yaml,
    refused,
    tensor_names,
)
from saekit.models.contextual import ContextualConfig

SETTINGS, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"
FILES = Files(folder=(WEIGHTS,), beside=(SETTINGS,))
DEFAULTS = {
    "n_attn_layers": 1,
    "n_heads": 8,
    "bottleneck_factor": 64,
    "activation_normalization_factor": 1.0,
}
PARTS = {"q_target": "query", "k_ctx": "key", "v_ctx": "value", "c_proj": "out"}  # of a layer
NORMS = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_scalar_rescale": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}


def recognizes(path: Path) -> bool:
    return (path / SETTINGS).is_file() and {"D", "b"} <= tensor_names(path / WEIGHTS)


def read(path: Path) -> Published:
    sections = read_yaml(path / SETTINGS)
    settings = sections.get("sae")
    if not isinstance(settings, dict):
        raise DataError(f"{path / SETTINGS} does not hold the settings of a temporal SAE")
    # under the names of SAELens
    settings = settings | {
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": settings.get("scaling_factor"),
    }
    names = {"D": "W_dec", "E": "W_enc", "b": "b_dec"}
    tensors = {
        names.get(name, name): tensor
        for name, tensor in read_safetensors(path / WEIGHTS).items()
        if name in names or name.startswith("attn_layers.")
    }
    # of the folder nearest to the files
    layers = re.findall(r"layer_(\d+)", str(path.resolve()))
    origin = Origin(
        format="temporal",
        hook=f"blocks.{layers[-1]}.hook_resid_post" if layers else None,
        layer=int(layers[-1]) if layers else None,
        normalization="constant_scalar_rescale",
        files=digests(path / SETTINGS, path / WEIGHTS),
    )
    return contextual(path / SETTINGS, settings, tensors, origin)


def contextual(
    where: Path, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], origin: Origin
) -> Published:
    """`settings` and `tensors` under SAELens' names. Raises DataError for what the model does not
    compute."""
    settings = DEFAULTS | dict(settings)
    layers = number(where, settings, "n_attn_layers")
    if layers > len(tensors):
        raise refused(where, "n_attn_layers", layers)
    tied = _flag(where, settings, "tied_weights")
    # the tensors
    attention = {
        f"attn_layers.{layer}.{theirs}.{kind}": f"attention.{layer}.{ours}.{kind}"
        for layer in range(layers)
        for theirs, ours in PARTS.items()
        for kind in ("weight", "bias")
    }
    need(where, tensors, ("W_dec", "b_dec", *attention, *(() if tied else ("W_enc",))))
    ours = {attention.get(n, n): as_float32(where, n, tensor) for n, tensor in tensors.items()}
    need_matrices(where, ours, "W_dec", *(() if tied else ("W_enc",)))
    if not tied:
        ours["W_enc"] = ours["W_enc"].T.contiguous()
    latents, d_in = ours["W_dec"].shape
    try:
        config = ContextualConfig(
            d_in=d_in,
            latents=latents,
            key_width=latents // number(where, settings, "bottleneck_factor"),
            heads=number(where, settings, "n_heads"),
            layers=layers,
            k=_k(where, settings),
            tied=tied,
            subtract_b_dec=_flag(where, settings, "apply_b_dec_to_input"),
            **_normalization(where, settings),
        )
    except UsageError as error:
        raise DataError(f"{where}: {error.cause}") from None
    return Published(dataclasses.asdict(config), ours, origin, model="contextual")


def _flag(where: Path, settings: Mapping[str, Any], name: str) -> bool:
    """True where it is absent."""
    value = settings.get(name, True)
    if not isinstance(value, bool):
        raise refused(where, name, value)
    return value


def _k(where: Path, settings: Mapping[str, Any]) -> int:
    kind = settings.get("sae_diff_type", "topk")
    if kind not in ("relu", "topk"):
        raise refused(where, "sae_diff_type", kind)
    # without a number, the topk keeps all
    return (
        0
        if kind == "relu" or not settings.get("kval_topk")
        else number(where, settings, "kval_topk")
    )


def _normalization(where: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    name = settings.get("normalize_activations", "none")
    if not isinstance(name, str) or name not in NORMS:
        raise refused(where, "normalize_activations", name)
    if name != "constant_scalar_rescale":
        return {"input_norm": NORMS[name]}
    return {"input_factor": factor(where, settings, "activation_normalization_factor")}

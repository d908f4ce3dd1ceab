"""SAELens folders: cfg.json and sae_weights.safetensors, of version 6 and before.

Version 6 writes `architecture` and `metadata`; older ones have all fields at the top level, with
`activation_fn_str` and `hook_point`. Fields that are absent have the defaults of SAELens' own
loader. A BatchTopK dictionary is saved as jumprelu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Origin,
    Published,
    above,
    digests,
    gated,
    integer,
    json_object,
    need,
    number,
    published,
    read_safetensors,
    refused,
    tensor_names,
    text,
)

SETTINGS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
# folded into the weights at the end of SAELens' training
FOLDED = ("none", "expected_average_only_in")


def recognizes(path: Path) -> bool:
    settings = json_object(path / SETTINGS) or {}
    return {"d_in", "d_sae"} <= settings.keys() and {"W_enc", "W_dec"} <= tensor_names(
        path / WEIGHTS
    )


def read(path: Path) -> Published:
    where = path / SETTINGS
    settings = _settings(where)
    architecture, normalization = _check(where, settings)
    tensors = _weights(path / WEIGHTS, settings)
    shared, options = ("W_enc", "W_dec", "b_dec"), {}
    # the encoder of each architecture
    if architecture == "gated":
        need(path / WEIGHTS, tensors, (*shared, "b_gate", "b_mag", "r_mag"))
        biases = (tensors[name] for name in ("r_mag", "b_gate", "b_mag"))
        encoder = gated(path, tensors["W_enc"].T, *biases)
        sparsity = "jumprelu"
    else:
        jumps = architecture == "jumprelu"
        need(path / WEIGHTS, tensors, (*shared, "b_enc", *(("threshold",) if jumps else ())))
        encoder = {"W_enc": tensors["W_enc"].T, "b_enc": tensors["b_enc"]}
        encoder |= {"threshold": above(tensors["threshold"])} if jumps else {}
        options = {"k": number(where, settings, "k")} if architecture == "topk" else {}
        sparsity = "l1" if architecture == "standard" else architecture
    return published(
        path,
        sparsity,
        encoder | {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]},
        _origin(path, settings, normalization),
        subtract_b_dec=settings.get("apply_b_dec_to_input", True),
        **options,
    )


def _settings(where: Path) -> dict[str, Any]:
    """cfg.json under the names of version 6, with `metadata` at the top level."""
    raw = json_object(where)
    if raw is None:
        raise DataError(f"{where} does not hold the settings of a dictionary")
    metadata = raw.get("metadata")
    raw = raw | (metadata if isinstance(metadata, dict) else {})
    settings = {OLD_NAMES.get(name, name): value for name, value in raw.items()}
    arguments = settings.get("activation_fn_kwargs")
    if settings.get("activation_fn") == "topk" and isinstance(arguments, dict):
        settings |= {"architecture": "topk", "k": arguments.get("k")}
    return settings


def _check(where: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """(architecture, normalization). Raises DataError for what saekit's SAE does not compute."""
    architecture = settings.get("architecture", "standard")
    if architecture not in ("standard", "topk", "jumprelu", "gated"):
        raise refused(where, "architecture", architecture)
    activation = settings.get("activation_fn", "relu")
    if activation != ("topk" if architecture == "topk" else "relu") and not (
        architecture == "topk" and "activation_fn" not in settings
    ):
        raise refused(where, "activation_fn", activation)
    normalization = settings.get("normalize_activations")
    if normalization is None or isinstance(normalization, bool):  # before version 3
        normalization = FOLDED[bool(normalization)]
    if normalization not in FOLDED:
        raise refused(where, "normalize_activations", normalization)
    # rows of several heads side by side; before version 6 the hook's name implied it
    by_head = "hook_z" if "hook_z" in str(settings.get("hook_name")) else "none"
    reshape = settings.get("reshape_activations", by_head)
    if reshape != "none":
        raise refused(where, "reshape_activations", reshape)
    if not isinstance(settings.get("apply_b_dec_to_input", True), bool):
        raise refused(where, "apply_b_dec_to_input", settings["apply_b_dec_to_input"])
    for name in ("rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if settings.get(name):
            raise refused(where, name, settings[name])
    return architecture, normalization


def _weights(where: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = read_safetensors(where)
    if "log_threshold" in tensors:  # of 2026
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    # written for a while by versions that did not use it
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in tensors and not bool((tensors.pop(name) == 1).all()):
            raise refused(where, name, "a factor for each latent")
    shape = (settings["d_in"], settings["d_sae"])
    if tuple(tensors["W_enc"].shape) != shape:
        raise DataError(
            f"{where}: W_enc has the shape {tuple(tensors['W_enc'].shape)}, and by {SETTINGS}"
            f" {shape}"
        )
    return tensors


def _origin(path: Path, settings: dict[str, Any], normalization: str) -> Origin:
    rules = ("prepend_bos", "exclude_special_tokens", "seqpos_slice")
    return Origin(
        format="saelens",
        base_model=text(settings.get("model_name")),
        hook=text(settings.get("hook_name")),
        layer=integer(settings.get("hook_layer")),
        context=integer(settings.get("context_size")),
        dataset=text(settings.get("dataset_path")),
        special_tokens={name: settings[name] for name in rules if name in settings},
        normalization=normalization,
        files=digests(path / SETTINGS, path / WEIGHTS),
    )

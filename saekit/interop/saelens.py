"""SAELens folders: cfg.json and sae_weights.safetensors, of version 6 and before.

Version 6 writes `architecture` and `metadata`; older ones have all fields at the top level, with
`activation_fn_str` and `hook_point`. Fields that are absent have the defaults of SAELens' own
loader. A BatchTopK dictionary is saved as jumprelu; `batchtopk` is a checkpoint of its training.
`sparsity.safetensors` beside the weights holds statistics only, and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.interop.dictionary import (
    HEADS,
    Files,
    Origin,
    Published,
    above,
    digests,
    factor,
    gated,
    integer,
    json_object,
    need,
    need_matrices,
    number,
    published,
    read_safetensors,
    refused,
    tensor_names,
    text,
)
from saekit.interop.temporal import contextual

SETTINGS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = Files(folder=(WEIGHTS,), beside=(SETTINGS,))
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
# architecture -> (our sparsity, its tensors besides W_enc, W_dec and b_dec)
ARCHITECTURES = {
    "standard": ("l1", ("b_enc",)),
    "gated": ("jumprelu", ("b_gate", "b_mag", "r_mag")),
    "jumprelu": ("jumprelu", ("b_enc", "threshold")),
    "topk": ("topk", ("b_enc",)),
    "abstopk": ("abs-topk", ("b_enc",)),
    "batchtopk": ("jumprelu", ("b_enc", "topk_threshold")),
    "matryoshka_batchtopk": ("jumprelu", ("b_enc", "topk_threshold")),
    "transcoder": ("l1", ("b_enc",)),
    "skip_transcoder": ("l1", ("b_enc", "W_skip")),
    "jumprelu_transcoder": ("jumprelu", ("b_enc", "threshold")),
    "jumprelu_skip_transcoder": ("jumprelu", ("b_enc", "threshold", "W_skip")),
}
REASONS = {
    "matching_pursuit": "SAELens ends a row's pursuit by the length of the residual, saekit by the"
    " largest product",
}
SCALED = "expected_average_only_in"  # its factor is in the weights when SAELens' training ends
# normalize_activations -> our input_norm
NORMS = {
    "none": "none",
    SCALED: "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
SHARED = ("W_enc", "W_dec", "b_dec")


def recognizes(path: Path) -> bool:
    settings = json_object(path / SETTINGS) or {}
    return {"d_in", "d_sae"} <= settings.keys() and {"W_dec", "b_dec"} <= tensor_names(
        path / WEIGHTS
    )


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Published:
    """`overrides`: what SAELens' registry says in place of cfg.json, and `norm_scaling_factor`,
    which SAELens moves into the weights as it loads."""
    where = path / SETTINGS
    settings = _settings(where, overrides or {})
    if settings.get("architecture") == "temporal":
        origin = _origin(path, settings, "temporal")
        return contextual(where, settings, _weights(path / WEIGHTS, settings), origin)
    architecture = _architecture(where, settings)
    sparsity, own_tensors = ARCHITECTURES[architecture]
    options = _options(where, settings, architecture)
    tensors = _weights(path / WEIGHTS, settings)
    need(path / WEIGHTS, tensors, (*SHARED, *own_tensors))
    need_matrices(path / WEIGHTS, tensors, "W_enc", "W_dec")
    # the encoder and thresholds of each architecture
    tensors["W_enc"] = tensors["W_enc"].T
    if architecture == "gated":
        biases = (tensors.pop(name) for name in ("r_mag", "b_gate", "b_mag"))
        tensors |= gated(path, tensors["W_enc"], *biases)
    if "topk_threshold" in tensors:
        tensors["threshold"] = _one_threshold(where, tensors)
    if "threshold" in tensors:
        tensors["threshold"] = above(tensors["threshold"])
    return published(path, sparsity, tensors, _origin(path, settings, architecture), **options)


def _settings(where: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """cfg.json under the names of version 6, with `metadata` at the top level."""
    raw = json_object(where)
    if raw is None:
        raise DataError(f"{where} does not hold the settings of a dictionary")
    metadata = raw.get("metadata")
    raw = raw | (metadata if isinstance(metadata, dict) else {}) | dict(overrides)
    settings = {OLD_NAMES.get(name, name): value for name, value in raw.items()}
    # a topk of before version 6
    arguments = settings.get("activation_fn_kwargs")
    if settings.get("activation_fn") == "topk" and isinstance(arguments, dict):
        settings |= {"architecture": "topk", "k": arguments.get("k")}
    # before version 3, and where it is absent
    normalization = settings.get("normalize_activations")
    if normalization is None or isinstance(normalization, bool):
        settings["normalize_activations"] = SCALED if normalization else "none"
    # rows of several heads side by side; before version 6 the hook's name implied it
    by_head = "hook_z" if "hook_z" in str(settings.get("hook_name")) else "none"
    settings.setdefault("reshape_activations", by_head)
    return settings


def _architecture(where: Path, settings: dict[str, Any]) -> str:
    """Raises DataError for one that saekit's SAE does not compute."""
    architecture = settings.get("architecture", "standard")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise refused(where, "architecture", architecture, REASONS.get(str(architecture), ""))
    activation = settings.get("activation_fn", "relu")
    if activation != ("topk" if architecture == "topk" else "relu") and not (
        architecture == "topk" and "activation_fn" not in settings
    ):
        raise refused(where, "activation_fn", activation)
    return architecture


def _options(where: Path, settings: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The fields of our config. Raises DataError for values that SAELens does not take either."""
    normalization = settings["normalize_activations"]
    if not isinstance(normalization, str) or normalization not in NORMS:
        raise refused(where, "normalize_activations", normalization)
    if settings["reshape_activations"] not in ("none", "hook_z"):
        raise refused(where, "reshape_activations", settings["reshape_activations"])
    subtract, transcodes = settings.get("apply_b_dec_to_input", True), "transcoder" in architecture
    if not isinstance(subtract, bool) or (subtract and transcodes):
        raise refused(where, "apply_b_dec_to_input", subtract)
    options = {"subtract_b_dec": subtract, "input_norm": NORMS[normalization]}
    if transcodes:
        options |= {"d_out": number(where, settings, "d_out"), "skip": "skip" in architecture}
    if architecture in ("topk", "abstopk"):
        options["k"] = number(where, settings, "k")
    # SAELens reads it for these only: it folds the norms into the weights of a finished batchtopk
    if architecture.endswith("topk"):
        options["rescale_by_decoder_norm"] = bool(settings.get("rescale_acts_by_decoder_norm"))
    if normalization == SCALED and "batchtopk" in architecture:
        reason = "a checkpoint of training does not have the factor in its weights"
        raise refused(where, "normalize_activations", normalization, reason)
    if normalization == SCALED and settings.get("norm_scaling_factor") is not None:
        scale = factor(where, settings, "norm_scaling_factor")
        if options.get("rescale_by_decoder_norm"):
            raise refused(where, "norm_scaling_factor", scale, "it would change the decoder norms")
        options |= {"input_factor": scale, "output_factor": scale}
    return options


def _weights(where: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the file, with the names of today."""
    tensors = read_safetensors(where)
    if "log_threshold" in tensors:  # of 2026
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    shape = (settings.get("d_in"), settings.get("d_sae"))
    if (W_enc := tensors.get("W_enc")) is not None and tuple(W_enc.shape) != shape:
        raise DataError(
            f"{where}: W_enc has the shape {tuple(W_enc.shape)}, and by {SETTINGS} {shape}"
        )
    # A factor on each latent's value in the decoder; versions that did not use it wrote ones.
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor_F = tensors.pop(name, None)
        if factor_F is None or bool((factor_F == 1).all()):
            continue
        if not settings.get("finetuning_scaling_factor") or factor_F.shape != shape[1:]:
            raise refused(where, name, "a factor for each latent")
        W_dec = tensors["W_dec"].double() * factor_F.double()[:, None]
        tensors["W_dec"] = W_dec.float()
    return tensors


def _one_threshold(where: Path, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(F,): the one float64 threshold of a batchtopk, rounded as SAELens does when it saves."""
    threshold = tensors.pop("topk_threshold")
    if threshold.numel() != 1 or not bool(threshold.isfinite()):
        raise refused(where, "topk_threshold", threshold.tolist())
    return threshold.float().reshape(1).expand(len(tensors["W_enc"]))


def _origin(path: Path, settings: dict[str, Any], architecture: str) -> Origin:
    rules = ("prepend_bos", "exclude_special_tokens", "seqpos_slice")
    return Origin(
        format="saelens",
        base_model=text(settings.get("model_name")),
        hook=text(settings.get("hook_name")),
        target_hook=text(settings.get("hook_name_out")) if "transcoder" in architecture else None,
        layer=integer(settings.get("hook_layer")),
        context=integer(settings.get("context_size")),
        dataset=text(settings.get("dataset_path")),
        special_tokens={name: settings[name] for name in rules if name in settings},
        normalization=settings["normalize_activations"],
        notes=tuple(_notes(settings, architecture)),
        files=digests(path / SETTINGS, path / WEIGHTS),
    )


def _notes(settings: dict[str, Any], architecture: str) -> Iterator[str]:
    if settings["reshape_activations"] == "hook_z":
        yield HEADS
    if (head := settings.get("hook_head_index")) is not None:
        yield f"Its rows are those of head {head} of the hook only."
    if kwargs := settings.get("model_from_pretrained_kwargs"):
        yield (
            f"SAELens loads its base model with {kwargs}, so hidden states of the model as its"
            " authors published it may differ."
        )
    if "batchtopk" in architecture:
        yield "A checkpoint of training: its threshold is the average up to then."

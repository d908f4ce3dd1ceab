"""Llamascopium, the second library of Language-Model-SAEs: config.json and sae_weights.safetensors
(or .pt). W_E (D,F), b_E, W_D (F,D), b_D; Llama-Scope-R1-Distill, of an earlier version, has
encoder.weight (F,D), encoder.bias, decoder.weight (D,F), decoder.bias.

Thresholds are logarithms, in the units of the codes. Their from_pretrained leaves the factors of
the normalization to its caller (`normalize_activations`); here they are part of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.interop.dictionary import Files, Published, json_object, need, need_matrices, refused
from saekit.interop.lm_saes import WEIGHTS, Hooks, dictionary, settings_of, weights_of
from saekit.interop.pickles import Tensors

SETTINGS = "config.json"
FILES = Files(folder=tuple(WEIGHTS), beside=(SETTINGS, "lm_config.json"))
NORM = "dataset_average_activation_norm."
LOG_THRESHOLD = "log_jumprelu_threshold"
SPARSITIES = {"relu": "l1", "jumprelu": "jumprelu", "topk": "topk"}


def recognizes(path: Path) -> bool:
    settings = json_object(path / SETTINGS) or {}
    return {"sae_type", "d_model", "act_fn"} <= settings.keys()


def read(path: Path) -> Published:
    where = path / SETTINGS
    settings = settings_of(where)
    # what saekit's SAE does not compute
    if (kind := settings.get("sae_type")) != "sae":
        raise refused(where, "sae_type", kind)
    name = settings.get("act_fn")
    if not isinstance(name, str) or name not in SPARSITIES:
        batch = "which latents are active depends on the rest of the batch"
        raise refused(where, "act_fn", name, batch if name == "batchtopk" else "")
    # the weights under our names
    file, tensors = weights_of(path)
    norms = {n: tensors.pop(n) for n in list(tensors) if n.startswith(NORM)}
    prefix = "" if LOG_THRESHOLD in tensors else "activation_function."
    jumps = prefix + LOG_THRESHOLD if name == "jumprelu" else None
    weights = _weights(file, tensors, bool(settings.get("use_decoder_bias", True)), jumps)
    hooks = Hooks.of(settings)
    return dictionary(
        where,
        settings,
        file,
        weights,
        format="llamascopium",
        sparsity=SPARSITIES[name],
        threshold=tensors[jumps].double().exp() if jumps else None,
        norms=(_mean_norm(norms, hooks.source), _mean_norm(norms, hooks.target or hooks.source)),
        subtracts=False,
    )


def _weights(file: Path, tensors: Tensors, bias: bool, threshold: str | None) -> Tensors:
    linear = "encoder.weight" in tensors
    names = ["W_E", "b_E", "W_D", "b_D"]
    if linear:
        names = ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    names = names if bias else names[:3]
    need(file, tensors, [*names, threshold] if threshold else names)
    need_matrices(file, tensors, names[0], names[2])
    ours = {our: tensors[name] for our, name in zip(("W_enc", "b_enc", "W_dec", "b_dec"), names)}
    side = "W_dec" if linear else "W_enc"
    return ours | {side: ours[side].T}


def _mean_norm(norms: Tensors, hook: Any) -> float | None:
    norm = norms.get(f"{NORM}{hook}")
    return None if norm is None or norm.numel() != 1 else float(norm)

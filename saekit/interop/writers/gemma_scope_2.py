"""Gemma Scope 2 folders: config.json and params.safetensors, jumprelu SAEs and transcoders.

A ReLU is a jumprelu with thresholds of 0. Tensors: w_enc (D,F), w_dec (F,D_out), b_enc, b_dec,
threshold (F,), affine_skip_connection (D,D_out).
"""

from __future__ import annotations

from pathlib import Path

from saekit.interop.gemma_scope_2 import SETTINGS, WEIGHTS
from saekit.interop.gemma_scope_2 import SKIP as AFFINE
from saekit.interop.outgoing import OTHER_WIDTH, SKIP, Outgoing, encoder_bias
from saekit.store.files import write_json, write_tensors

CODES, KINDS = ("relu", "jumprelu"), ("autoencoders", "transcoders")
SAYS = frozenset({SKIP, OTHER_WIDTH, *(f"{code} {kind}" for code in CODES for kind in KINDS)})


def write(path: Path, dictionaries: list[Outgoing]) -> list[str]:
    (dictionary,) = dictionaries
    config, tensors, origin = dictionary.config, dictionary.tensors, dictionary.origin
    bias, notes = encoder_bias(dictionary, subtracts=False)
    named = {
        "w_enc": tensors["W_enc"].T.contiguous(),
        "w_dec": tensors["W_dec"],
        "b_enc": bias,
        "b_dec": tensors["b_dec"],
        "threshold": tensors.get("threshold", bias.new_zeros(len(bias))),
    }
    if config["skip"]:
        named[AFFINE] = tensors["W_skip"].T.contiguous()
    write_tensors(path / WEIGHTS, named)
    settings = {
        "architecture": "jump_relu",
        "type": "transcoder" if dictionary.transcodes else "sae",
        "model_name": origin.base_model,
        "model_revision": origin.revision,
        "hf_hook_point_in": _hook_point(origin.hook),
        "hf_hook_point_out": _hook_point(origin.target_hook or origin.hook),
        "width": config["latents"],
        "l0": dictionary.l0,
        "affine_connection": config["skip"],
        "context_size": origin.context,
        "dataset": origin.dataset,
        "special_tokens": origin.special_tokens,
        "saekit_version": origin.saekit,
    }
    write_json(path / SETTINGS, settings)
    return notes


def _hook_point(hook: str | None) -> str | None:
    """`model.layers.9.output` for the output of a module, as these files write it. Any other state,
    such as `model.layers.9:mid` or TransformerLens' hook_resid_pre, keeps its name."""
    if hook is None or hook.endswith((".output", ".input")):
        return hook
    if hook.endswith(":in"):
        return f"{hook.removesuffix(':in')}.input"
    is_module = ":" not in hook and not hook.rpartition(".")[2].startswith("hook_")
    return f"{hook}.output" if is_module else hook

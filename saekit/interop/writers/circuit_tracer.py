"""A transcoder folder of circuit-tracer (0.5.0): config.yaml and layer_N.safetensors for every
layer from 0.

Its loader knows ReLU and JumpReLU codes, needs the same number of latents in all layers, and reads
rows as wide as the model. Tensors: W_enc (F,D), b_enc, W_dec (F,D), b_dec,
activation_function.threshold (F,), W_skip (D,D).
"""

from __future__ import annotations

import json
from pathlib import Path

from saekit.errors import DataError
from saekit.interop.circuit_tracer import SETTINGS, THRESHOLDS
from saekit.interop.outgoing import NEGATIVE, SKIP, Outgoing
from saekit.store.files import write_bytes, write_tensors

SAYS = frozenset({"relu transcoders", "jumprelu transcoders", SKIP, NEGATIVE})


def write(path: Path, dictionaries: list[Outgoing]) -> list[str]:
    by_layer = _ordered(dictionaries)
    first = by_layer[0]
    # config.yaml: JSON is YAML
    reads, writes = (_inside_block(hook, first) for hook in ("hook", "target_hook"))
    settings = {
        "model_name": first.origin.base_model,
        "model_kind": "transcoder_set",
        "feature_input_hook": reads,
        "feature_output_hook": writes,
        "saekit_version": first.origin.saekit,
        "model_revision": first.origin.revision,
        "context_size": first.origin.context,
        "dataset": first.origin.dataset,
        "special_tokens": first.origin.special_tokens,
    }
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in settings.items()]
    write_bytes(path / SETTINGS, "".join(lines).encode())
    # the layers
    for layer, dictionary in enumerate(by_layer):
        tensors = dict(dictionary.tensors)
        if "threshold" in tensors:
            tensors[THRESHOLDS[0]] = tensors.pop("threshold")
        write_tensors(path / f"layer_{layer}.safetensors", tensors)
    return []


def _ordered(dictionaries: list[Outgoing]) -> list[Outgoing]:
    """By layer. Raises DataError unless there is one for every layer from 0, all alike."""
    by_layer: dict[int, Outgoing] = {}
    for dictionary in dictionaries:
        layer = dictionary.origin.layer
        if layer is None:
            raise DataError(
                f"{dictionary.where} does not say which layer its hook belongs to:"
                f" {dictionary.origin.hook}"
            )
        if layer in by_layer:
            raise DataError(
                f"{by_layer[layer].where} and {dictionary.where} both belong to layer {layer}"
            )
        by_layer[layer] = dictionary
    if sorted(by_layer) != list(range(len(by_layer))):
        raise DataError(
            f"circuit-tracer needs a transcoder for every layer from 0: these are of"
            f" {', '.join(map(str, sorted(by_layer)))}",
            "give a checkpoint for each of them",
        )
    ordered = [by_layer[layer] for layer in range(len(by_layer))]
    for dictionary in ordered:
        _check_alike(ordered[0], dictionary)
    return ordered


def _check_alike(first: Outgoing, dictionary: Outgoing) -> None:
    for name, of in {
        "base model": lambda d: d.origin.base_model,
        "hook": lambda d: _inside_block("hook", d),
        "target hook": lambda d: _inside_block("target_hook", d),
        "width": lambda d: d.config["d_in"],
        "number of latents": lambda d: d.config["latents"],
        "skip": lambda d: d.config["skip"],
    }.items():
        if of(first) != of(dictionary):
            raise DataError(
                f"{first.where} and {dictionary.where} differ in their {name}: {of(first)},"
                f" {of(dictionary)}",
                "circuit-tracer has one value for all layers",
            )


def _inside_block(which: str, dictionary: Outgoing) -> str | None:
    """The hook without its layer: `hook_mlp_out` of `blocks.9.hook_mlp_out`."""
    origin = dictionary.origin
    hook = getattr(origin, f"lens_{which}") or getattr(origin, which)
    return None if hook is None else hook.split(f".{origin.layer}.", 1)[-1]

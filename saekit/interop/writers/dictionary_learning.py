"""dictionary_learning folders (0.1.0): config.json and ae.pt, a state dict of plain tensors.

The class is the one whose map needs no change, where there is one: AutoEncoderNew does not subtract
b_dec, AutoEncoder does; a JumpReluAutoEncoder has one threshold for each latent and does not
subtract, so that it also holds a batchtopk. AutoEncoderTopK always subtracts.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from saekit.interop.dictionary_learning import SETTINGS, WEIGHTS
from saekit.interop.outgoing import Outgoing, encoder_bias
from saekit.store.files import write_bytes, write_json

SAYS = frozenset({"relu autoencoders", "topk autoencoders", "jumprelu autoencoders"})


def write(path: Path, dictionaries: list[Outgoing]) -> list[str]:
    (dictionary,) = dictionaries
    kind, tensors, notes = _state(dictionary)
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, buffer)
    write_bytes(path / WEIGHTS, buffer.getvalue())
    write_json(path / SETTINGS, _settings(dictionary, kind))
    return notes


def _state(dictionary: Outgoing) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """(dict_class, its tensors, notes)."""
    tensors, subtracts = dictionary.tensors, bool(dictionary.config["subtract_b_dec"])
    linear = {
        "encoder.weight": tensors["W_enc"],
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T,
    }
    if dictionary.code == "relu":
        kind, name = ("AutoEncoder", "bias") if subtracts else ("AutoEncoderNew", "decoder.bias")
        return kind, linear | {name: tensors["b_dec"]}, []
    if dictionary.code == "topk":
        bias, notes = encoder_bias(dictionary, subtracts=True)
        buffers = {
            "k": torch.tensor(dictionary.config["k"], dtype=torch.int32),
            "threshold": torch.tensor(-1.0),  # not estimated; its code does not use it
        }
        return (
            "AutoEncoderTopK",
            linear | {"encoder.bias": bias, "b_dec": tensors["b_dec"]} | buffers,
            notes,
        )
    bias, notes = encoder_bias(dictionary, subtracts=False)
    return "JumpReluAutoEncoder", tensors | {"W_enc": tensors["W_enc"].T, "b_enc": bias}, notes


def _settings(dictionary: Outgoing, kind: str) -> dict[str, Any]:
    config, origin = dictionary.config, dictionary.origin
    trainer = {
        "dict_class": kind,
        "trainer_class": None,
        "activation_dim": config["d_in"],
        "dict_size": config["latents"],
        "layer": origin.layer,
        "lm_name": origin.base_model,
        "submodule_name": origin.hook,
    }
    if dictionary.code == "topk":
        trainer["k"] = config["k"]
    buffer = {
        "d_submodule": config["d_in"],
        "io": "in" if (origin.hook or "").endswith(":in") else "out",
        "ctx_len": origin.context,
    }
    if origin.without_special_tokens is not None:
        buffer["remove_bos"] = origin.without_special_tokens
    rules = ("remove_bos", "add_special_tokens")
    buffer |= {name: origin.special_tokens[name] for name in rules if name in origin.special_tokens}
    about = {"version": origin.saekit, "revision": origin.revision, "dataset": origin.dataset}
    return {"trainer": trainer, "buffer": buffer, "saekit": about}

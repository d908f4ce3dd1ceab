"""sparsify folders (1.3.3): cfg.json and sae.safetensors, a topk SAE or transcoder.

Base model, hook and data, which sparsify itself keeps in the names of folders and in a run's
config.json, are further fields of cfg.json.
"""

from __future__ import annotations

from pathlib import Path

from saekit.interop.outgoing import SKIP, Outgoing, encoder_bias
from saekit.interop.sparsify import ABOUT, SETTINGS, WEIGHTS
from saekit.store.files import write_json, write_tensors

SAYS = frozenset({"topk autoencoders", "topk transcoders", SKIP})


def write(path: Path, dictionaries: list[Outgoing]) -> list[str]:
    (dictionary,) = dictionaries
    config, origin = dictionary.config, dictionary.origin
    tensors = dict(dictionary.tensors)
    bias, notes = encoder_bias(dictionary, subtracts=True)
    del tensors["b_enc"]
    named = {"encoder.weight": tensors.pop("W_enc"), "encoder.bias": bias}
    write_tensors(path / WEIGHTS, named | tensors)
    settings = {
        "activation": "topk",
        "expansion_factor": max(round(config["latents"] / config["d_in"]), 1),
        "normalize_decoder": config["decoder_norm"] == "unit",
        "num_latents": config["latents"],
        "k": config["k"],
        "multi_topk": False,
        "skip_connection": config["skip"],
        "transcode": dictionary.transcodes,
        "d_in": config["d_in"],
    }
    values = (
        *(origin.base_model, origin.revision, origin.hook, origin.target_hook),
        *(origin.context, origin.dataset),
    )
    about = dict(zip(ABOUT, values, strict=True))
    more = {"special_tokens": origin.special_tokens, "saekit_version": origin.saekit}
    write_json(path / SETTINGS, settings | about | more)
    return notes

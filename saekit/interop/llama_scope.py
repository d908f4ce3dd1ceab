"""Llama Scope 1 (He et al. 2024, arXiv 2410.20526): hyperparams.json and
checkpoints/final.safetensors, with one jump threshold for all latents.

The threshold is meant for codes of rows that are not normalized: in the units of the file's weights
it is f times as large. Codes are in these units, as SAELens gives them too; their own program
folds the factors and the norms of the decoder vectors into the weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from saekit.interop.dictionary import (
    Files,
    Published,
    json_object,
    need,
    need_matrices,
    number,
    refused,
)
from saekit.interop.lm_saes import WEIGHTS, dictionary, norm_factor, settings_of, weights_of

SETTINGS = "hyperparams.json"
FILES = Files(folder=tuple(WEIGHTS), beside=(SETTINGS, "lm_config.json"))


def recognizes(path: Path) -> bool:
    settings = json_object(path / SETTINGS) or {}
    return {"d_model", "hook_point_in", "act_fn"} <= settings.keys()


def read(path: Path) -> Published:
    where = path / SETTINGS
    settings = settings_of(where)
    file, tensors = weights_of(path)
    # the weights under our names
    bias = settings.get("use_decoder_bias", True)
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    need(file, tensors, names if bias else names[:3])
    need_matrices(file, tensors, "encoder.weight", "decoder.weight")
    weights = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
    }
    weights |= {"b_dec": tensors["decoder.bias"]} if bias else {}
    # the threshold
    norms = settings.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    sparsity, jump = _activation(where, settings)
    if settings.get("norm_activation") == "dataset-wise":
        side = "out" if settings.get("sparsity_include_decoder_norm", True) else "in"
        jump *= norm_factor(where, number(where, settings, "d_model"), norms.get(side))
    return dictionary(
        where,
        settings,
        file,
        weights,
        format="llama_scope",
        sparsity=sparsity,
        threshold=torch.tensor(jump, dtype=torch.float64) if sparsity == "jumprelu" else None,
        norms=(norms.get("in"), norms.get("out")),
        subtracts=True,
    )


def _activation(where: Path, settings: dict[str, Any]) -> tuple[str, float]:
    """(sparsity, threshold). A topk with a threshold is a jumprelu at inference."""
    name, jump = settings.get("act_fn"), settings.get("jump_relu_threshold", 0.0)
    if isinstance(jump, bool) or not isinstance(jump, (int, float)) or not 0 <= jump < math.inf:
        raise refused(where, "jump_relu_threshold", jump)
    if name == "jumprelu" or (name == "topk" and jump > 0):
        return "jumprelu", jump
    if name not in ("topk", "relu"):
        raise refused(where, "act_fn", name)
    return ("topk" if name == "topk" else "l1"), jump

"""What the two formats of OpenMOSS's Language-Model-SAEs have in common: Llama Scope 1
(llama_scope.py) and its successor (llamascopium.py).

With `dataset-wise` normalization the encoder reads f_in x and the decoder gives f_out x_hat, each f
= sqrt(D) / the mean norm of the rows at that hook; codes are in normalized units. With
`sparsity_include_decoder_norm` a latent is active where pre_j ||w_j|| exceeds the threshold, or is
among the k largest.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Origin,
    Published,
    digests,
    json_object,
    need_matrices,
    number,
    published,
    read_safetensors,
    refused,
    text,
)
from saekit.interop.pickles import Tensors, need_tensors, read_plain

# where their loader looks, in this order
WEIGHTS = [
    f"{name}{suffix}"
    for name in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in (".safetensors", ".pt", ".dcp")
]
SCALED_CODES = (
    "Codes are those of their library times the norms of the decoder vectors, as in its export to"
    " SAELens."
)


class Hooks(NamedTuple):
    """Where the rows come from and, of a transcoder, where the target's do."""

    source: str | None
    target: str | None

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Hooks:
        source, target = (text(settings.get(f"hook_point_{side}")) for side in ("in", "out"))
        return cls(source, None if target == source else target)


def settings_of(where: Path) -> dict[str, Any]:
    settings = json_object(where)
    if settings is None:
        raise DataError(f"{where} does not hold the settings of a dictionary")
    if settings.get("use_glu_encoder"):
        raise refused(where, "use_glu_encoder", settings["use_glu_encoder"])
    return settings


def weights_of(folder: Path) -> tuple[Path, Tensors]:
    """The file of weights in a dictionary's folder and its tensors. Raises DataError where there is
    none, and for a distributed checkpoint, whose index is a pickle."""
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None:
        raise DataError(f"{folder} has no file of weights, such as {WEIGHTS[0]}")
    if file.suffix == ".safetensors":
        return file, read_safetensors(file)
    if file.suffix == ".pt":
        state = read_plain(file)
        return file, need_tensors(file, state.get("sae") if isinstance(state, dict) else state)
    raise DataError(
        f"{file} is a distributed checkpoint, whose index is a pickle of torch's own classes",
        "save it as sae_weights.safetensors with the library that wrote it",
    )


def dictionary(
    where: Path,
    settings: dict[str, Any],
    file: Path,
    weights: Tensors,
    *,
    format: str,
    sparsity: str,
    threshold: torch.Tensor | None,
    norms: tuple[Any, Any],
    subtracts: bool,
) -> Published:
    """The dictionary in our terms.

    Parameters
        where: the file of `settings`; `file`: that of the weights.
        weights: W_enc (F,D), b_enc (F,), W_dec (F,D) and, unless the settings say that there is
            none, b_dec (D,).
        threshold: of a jumprelu: () or (F,), for pre_j or pre_j ||w_j||.
        norms: mean norms of the rows that go in, and of those that come out.
        subtracts: whether b_dec is subtracted from the normalized input where nothing says so.
    """
    need_matrices(file, weights, "W_enc", "W_dec")
    hooks, d_model = Hooks.of(settings), number(where, settings, "d_model")
    width, transcodes = weights["W_enc"].shape[-1], hooks.target is not None
    if width != d_model:
        raise refused(where, "d_model", d_model, f"the encoder reads {width} values")
    weights = {"b_dec": torch.zeros(d_model)} | weights
    # the map
    by_norm = bool(settings.get("sparsity_include_decoder_norm", True))
    options = _normalization(where, settings, norms, transcodes)
    options["subtract_b_dec"] = _subtracts(where, settings, subtracts, transcodes)
    if sparsity == "topk":
        options["k"] = number(where, settings, "top_k")
        options["rescale_by_decoder_norm"] = by_norm
    if threshold is not None:
        if threshold.numel() not in (1, len(weights["W_dec"])):
            raise refused(file, "shape of the thresholds", tuple(threshold.shape))
        weights["threshold"] = _by_latent(threshold, weights["W_dec"], by_norm)
    layer = re.search(r"blocks\.(\d+)\.", hooks.source or "")
    origin = Origin(
        format=format,
        base_model=text((json_object(where.with_name("lm_config.json")) or {}).get("model_name")),
        hook=hooks.source,
        target_hook=hooks.target,
        layer=int(layer[1]) if layer else None,
        normalization=text(settings.get("norm_activation")),
        notes=(SCALED_CODES,) if options.get("rescale_by_decoder_norm") else (),
        files=digests(where, file),
    )
    d_out = d_model if transcodes else 0
    return published(file, sparsity, weights, origin, d_out=d_out, **options)


def norm_factor(where: Path, d_model: int, norm: Any) -> float:
    """sqrt(D) / the mean norm of the rows. Raises DataError without a norm above 0."""
    if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not 0 < norm < math.inf:
        raise refused(where, "dataset_average_activation_norm", norm)
    return math.sqrt(d_model) / norm


def _normalization(
    where: Path, settings: dict[str, Any], norms: tuple[Any, Any], transcodes: bool
) -> dict[str, Any]:
    """Options of the config for `norm_activation`."""
    name = settings.get("norm_activation")
    if name == "dataset-wise":
        d_model = number(where, settings, "d_model")
        f_in, f_out = (norm_factor(where, d_model, norm) for norm in norms)
        return {"input_factor": f_in, "output_factor": f_out}
    if name == "token-wise" and not transcodes:
        return {"input_norm": "constant_norm"}
    if name in ("inference", "none"):
        return {}
    raise refused(where, "norm_activation", name)


def _subtracts(where: Path, settings: dict[str, Any], default: bool, transcodes: bool) -> bool:
    name = "apply_decoder_bias_to_pre_encoder"
    subtracts = settings.get(name, default) and settings.get("use_decoder_bias", True)
    if subtracts and transcodes:
        raise refused(where, name, True, "the b_dec of a transcoder belongs to its target")
    return bool(subtracts)


def _by_latent(threshold: torch.Tensor, W_dec_FD: torch.Tensor, by_norm: bool) -> torch.Tensor:
    """(F,): the threshold for pre_j. Computed in float64 and rounded once."""
    threshold = threshold.double().flatten().expand(len(W_dec_FD))
    if by_norm:  # a latent without a decoder vector is never active
        threshold = (threshold / W_dec_FD.double().norm(dim=1)).nan_to_num(torch.inf, torch.inf)
    return threshold.float()

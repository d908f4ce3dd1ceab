"""saev: `sae.pt`, a line of JSON and then a pickled state dict, W_enc (D,F), W_dec (F,D), b_enc,
b_dec; `config.json` of its training may be beside it.

The line of version 0.1.0 has the settings themselves, and its SAE is a ReLU that subtracts b_dec.
Later ones have a `schema` and the activation by name, and do not subtract b_dec; saev changed that
within schema 1, so that a file of schema 1 opens only where b_dec is 0. top-k has no ReLU: negative
values among the k largest stay. batch-top-k acts by the threshold that its training estimated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    above,
    digests,
    integer,
    json_object,
    need,
    need_matrices,
    number,
    published,
    refused,
)
from saekit.interop.pickles import need_tensors, read_plain
from saekit.store.files import need_regular
from saekit.store.oserrors import reading

WEIGHTS, SETTINGS = "sae.pt", "config.json"
FILES = Files(folder=(WEIGHTS,), file=(WEIGHTS,), beside=(SETTINGS,))
LONGEST_LINE = 1 << 16  # bytes
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
THRESHOLD = "activation.threshold"  # of a batch-top-k since November 2025
SCHEMAS = (1, 2, 3, 4, 5)
ACTIVATIONS = {"Relu": "l1", "TopK": "topk", "BatchTopK": "jumprelu"}
# published repositories of version 0.1.0, all of patches after block 10: model and images
REPOSITORIES = {
    "SAE_CLIP_24K_ViT-B-16_IN1K": ("openai/clip-vit-base-patch16", "ILSVRC/imagenet-1k"),
    "SAE_BioCLIP_24K_ViT-B-16_iNat21": ("hf-hub:imageomics/bioclip", "iNat2021"),
    "SAE_DINOv2_24K_ViT-B-14_IN1K": ("facebook/dinov2-with-registers-base", "ILSVRC/imagenet-1k"),
}
LAYER = 10
SCALED = (
    "saev trains on rows from which it subtracted their mean, divided so that their mean norm is"
    " sqrt(D), and the file has neither number: give it rows that are normalized in the same way."
)
UNKNOWN = (
    "The file does not say whether its training subtracted the mean of the rows and scaled them to"
    " a mean norm of sqrt(D), as saev does by default; config.json of the training says so."
)


def recognizes(path: Path) -> bool:
    try:
        header, _ = _header(_file(path))
    except OSError:
        return False
    return {"d_vit", "exp_factor"} <= header.keys() or {"schema", "cfg"} <= header.keys()


def read(path: Path) -> Published:
    where = _file(path)
    with reading(where):
        need_regular(where)
        header, length = _header(where)
    if not header:
        raise DataError(f"{where} does not begin with a line of settings")
    tensors = need_tensors(where, read_plain(where, skip=length))
    kind, arguments = _activation(where, header)
    need(where, tensors, (*NAMES, THRESHOLD) if kind == "BatchTopK" else NAMES)
    need_matrices(where, tensors, "W_enc", "W_dec")
    if header.get("schema") == 1 and bool(tensors["b_dec"].any()):
        raise refused(where, "schema", 1, "it does not say whether b_dec is subtracted from x")
    ours = {name: tensors[name] for name in NAMES} | {"W_enc": tensors["W_enc"].T}
    if kind == "BatchTopK":
        threshold = tensors[THRESHOLD]
        if threshold.numel() != 1 or not bool(threshold.isfinite()):
            raise refused(where, THRESHOLD, threshold.tolist())
        ours["threshold"] = above(threshold.reshape(1).expand(len(ours["W_enc"])))
    options: dict[str, Any] = {"subtract_b_dec": "schema" not in header}
    if kind == "TopK":
        k = min(number(where, arguments, "top_k"), len(ours["W_enc"]))
        options |= {"k": k, "keep_negative": True}
    return published(where, ACTIVATIONS[kind], ours, _origin(where), **options)


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _header(where: Path) -> tuple[dict[str, Any], int]:
    """The settings in the first line and its length in bytes; {} where there are none."""
    if not where.is_file():
        return {}, 0
    with open(where, "rb") as file:
        line = file.readline(LONGEST_LINE)
    if not line.startswith(b"{"):
        return {}, 0
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return {}, 0
    return (header, len(line)) if isinstance(header, dict) else ({}, 0)


def _activation(where: Path, header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(class of the activation, its settings). Raises DataError for one not in ACTIVATIONS."""
    if "schema" not in header:
        return "Relu", {}
    schema, settings = header["schema"], header.get("cfg")
    if schema not in SCHEMAS or not isinstance(settings, dict):
        raise refused(where, "schema", schema)
    # in the first files of schema 1 its settings are among those of the SAE
    activation = settings.get("activation", {"cls": header.get("cls"), "params": settings})
    kind, arguments = activation, {}
    if isinstance(activation, dict):
        kind, arguments = activation.get("cls"), activation.get("params")
    if not isinstance(kind, str) or kind not in ACTIVATIONS:
        raise refused(where, "activation", kind)
    return kind, arguments if isinstance(arguments, dict) else {}


def _origin(where: Path) -> Origin:
    """From the training's config.json and the repository's name."""
    settings = json_object(where.with_name(SETTINGS)) or {}
    data = next((d for n in ("data", "train_data") if isinstance(d := settings.get(n), dict)), {})
    names = [part.split("--")[-1] for part in where.absolute().parts]  # of a hub's cache too
    repository = next((name for name in reversed(names) if name in REPOSITORIES), None)
    model, images = REPOSITORIES[repository] if repository else (None, None)
    layer = integer(data.get("layer", LAYER if repository else None))
    # what its training did to the rows
    scales = [data[name] for name in ("scale_mean", "scale_norm") if name in data]
    if not scales:
        normalization, notes = None, (UNKNOWN,)
    elif any(scales):
        normalization, notes = "scale_mean, scale_norm", (SCALED,)
    else:
        normalization, notes = "none", ()
    return Origin(
        format="saev",
        base_model=model,
        hook=None if layer is None or layer < 0 else f"blocks.{layer}",
        layer=layer,
        dataset=images,
        # cls, patches or meanpool; in later versions special, content or all
        special_tokens={name: data[name] for name in ("patches", "tokens") if name in data}
        or ({"patches": "patches"} if repository else {}),
        normalization=normalization,
        notes=notes,
        files=digests(where),
    )

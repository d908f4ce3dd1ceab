"""ViT-Prisma: `weights.pt` or `n_images_N.pt`, a pickled state dict with the names of SAELens, and
`config.json` of its training beside it.

Settings that config.json lacks have the defaults of ViT-Prisma's own loader, such as a layer norm
of the input. Older files are a pickled object with the config inside, which does not load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    digests,
    gated,
    integer,
    json_object,
    need,
    need_matrices,
    number,
    published,
    refused,
    text,
)
from saekit.interop.pickles import SUFFIXES, read_tensors

SETTINGS, WEIGHTS = "config.json", "weights.pt"
FILES = Files(
    folder=(WEIGHTS, "n_images_*.pt"), file=(WEIGHTS, "n_images_*.pt"), beside=(SETTINGS,)
)
SHARED = ("W_enc", "b_enc", "W_dec", "b_dec")
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}


def recognizes(path: Path) -> bool:
    settings = json_object((path if path.is_dir() else path.parent) / SETTINGS) or {}
    ours = {"hook_point_layer", "d_in", "activation_fn_str"} <= settings.keys()
    return ours and bool(_files(path))


def read(path: Path) -> Published:
    # the file and its settings
    files = _files(path)
    if len(files) != 1:
        raise DataError(f"{path} has {len(files)} files of weights", "give the path of one of them")
    file = files[0]
    where = file.with_name(SETTINGS)
    settings = json_object(where)
    if settings is None:
        raise DataError(f"{where} does not hold the settings of a dictionary")
    # the map that they name
    architecture, options = _check(where, settings)
    tensors = read_tensors(file)
    names = (*SHARED, "b_gate", "r_mag", "b_mag") if architecture == "gated" else SHARED
    need(file, tensors, names)
    need_matrices(file, tensors, "W_enc", "W_dec")
    if architecture == "gated":  # its b_enc is not used
        sparsity, biases = "jumprelu", (tensors[n] for n in ("r_mag", "b_gate", "b_mag"))
        encoder = gated(file, tensors["W_enc"].T, *biases)
    else:
        sparsity = "topk" if "k" in options else "l1"
        encoder = {"W_enc": tensors["W_enc"].T, "b_enc": tensors["b_enc"]}
    if encoder["W_enc"].shape[-1] != settings.get("d_in"):
        shape = tuple(tensors["W_enc"].shape)
        raise refused(where, "d_in", settings.get("d_in"), f"W_enc has the shape {shape}")
    decoder = {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    origin = _origin(settings, digests(where, file))
    return published(file, sparsity, encoder | decoder, origin, subtract_b_dec=True, **options)


def _files(path: Path) -> list[Path]:
    """The weights that a path names: a file, or those of a folder."""
    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return [path / WEIGHTS]
        return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    return [path] if path.suffix in SUFFIXES and path.is_file() else []


def _check(where: Path, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(architecture, options of the config). Raises DataError for what saekit does not compute."""
    architecture = settings.get("architecture", "standard")
    if architecture not in ("standard", "gated"):
        raise refused(where, "architecture", architecture)
    if settings.get("is_transcoder"):
        hint = "its encoder subtracts a bias of its own, which saekit's transcoder does not have"
        raise refused(where, "is_transcoder", settings["is_transcoder"], hint)
    norm = settings.get("normalize_activations", "layer_norm")
    if not isinstance(norm, str) or norm not in NORMS:
        raise refused(where, "normalize_activations", norm)
    options: dict[str, Any] = {"input_norm": NORMS[norm]}
    # the activation
    activation = settings.get("activation_fn_str", "topk")
    arguments = settings.get("activation_fn_kwargs")
    if activation == "topk" and architecture == "standard":
        arguments = arguments if isinstance(arguments, dict) else {}
        if "postact_fn" in arguments:
            raise refused(where, "postact_fn", arguments["postact_fn"])
        options["k"] = number(where, arguments, "k")
    elif activation != "relu":
        raise refused(where, "activation_fn_str", activation)
    return architecture, options


def _origin(settings: dict[str, Any], files: dict[str, str]) -> Origin:
    layer, place = settings.get("hook_point_layer"), text(settings.get("layer_subtype"))
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    layer = integer(layer)
    head = integer(settings.get("hook_point_head_index"))
    scopes = ("cls_token_only", "use_patches_only")
    return Origin(
        format="vit_prisma",
        base_model=text(settings.get("model_name")),
        hook=None if layer is None or place is None else f"blocks.{layer}.{place}",
        layer=layer,
        dataset=text(settings.get("dataset_name")),
        special_tokens={name: settings[name] for name in scopes if name in settings},
        normalization=text(settings.get("normalize_activations", "layer_norm")),
        notes=() if head is None else (f"It reads the values of head {head} only.",),
        files=files,
    )

"""Gemma Scope 2: config.json beside params.safetensors (an SAE or a transcoder), or beside
params_layer_0.safetensors, params_layer_1.safetensors, ... (a crosscoder or a CLT), all jumprelu.

    w_enc (D,F), b_enc (F,), threshold (F,), w_dec (F,D), b_dec (D,), affine_skip_connection (D,D)

In a file of one of L layers, w_dec is (F,L,D): the latents read this layer and write to all. A
crosscoder opens as one SAE whose rows hold the L hooks side by side; its encoder is 0 where a
latent does not read a layer. A CLT's latents write to their own and later layers: its w_dec is 0
for earlier ones. Nothing subtracts b_dec.

What config.json lacks, the folders say: `transcoder/layer_12_width_16k_l0_small_affine`,
`crosscoder/layer_7_13_17_22_width_65k_l0_medium`, `clt/width_262k_l0_medium`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.interop.cross_layer import Layer, all_layers, one_layer, side_by_side
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    above,
    digests,
    json_object,
    need,
    need_ndim,
    published,
    read_safetensors,
    refused,
    tensor_names,
    text,
)
from saekit.store.oserrors import reading

SETTINGS, WEIGHTS = "config.json", "params.safetensors"
FILES = Files(
    folder=(WEIGHTS, "params_layer_*.safetensors"),
    file=("params*.safetensors",),
    beside=(SETTINGS,),
)
OF_LAYER = re.compile(r"params_layer_(\d+)\.safetensors")
NAMES = frozenset({"w_enc", "w_dec", "b_enc", "b_dec", "threshold"})
SKIP = "affine_skip_connection"
CONTEXT, SPECIAL_TOKENS = 1024, {"prepend_bos": True}  # of the release, as SAELens gives them
# folder -> (kind, the hook that is read, the hook that is written)
MLP = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
SITES: dict[str, tuple[str, str, str | None]] = {
    "resid_post": ("sae", "output", None),
    "attn_out": ("sae", "self_attn.o_proj.input", None),
    "mlp_out": ("sae", "post_feedforward_layernorm.output", None),
    "transcoder": ("transcoder", *MLP),
    "crosscoder": ("crosscoder", "output", None),
    "clt": ("clt", *MLP),
}


def recognizes(path: Path) -> bool:
    files = (path / WEIGHTS, path / "params_layer_0.safetensors") if path.is_dir() else (path,)
    return any(tensor_names(file) >= NAMES for file in files)


def read(path: Path) -> Published:
    folder = path if path.is_dir() else path.parent
    settings = json_object(folder / SETTINGS) or {}
    architecture = settings.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise refused(folder / SETTINGS, "architecture", architecture)
    kind = _kind(folder, settings)
    file = path / WEIGHTS if path.is_dir() else path
    if kind in ("sae", "transcoder"):
        return _of_one_hook(file, settings, kind)
    if path.is_dir():
        return _of_all_layers(path, settings, kind)
    if kind == "crosscoder":
        raise DataError(
            f"{path} is a part of a crosscoder, whose latents compete in no single layer",
            f"give the folder {folder}",
        )
    return _of_one_layer(path, settings)


def _of_one_hook(file: Path, settings: Mapping[str, Any], kind: str) -> Published:
    """An SAE or a transcoder."""
    tensors, transcodes = _tensors(file, settings), kind == "transcoder"
    if "W_skip" in tensors and not transcodes:
        raise refused(file, SKIP, "in an SAE", "it would pass the input itself on")
    return published(
        file,
        "jumprelu",
        tensors,
        _origin(file.parent, settings, kind, (file,), _layers_of(file.parent)[:1]),
        d_out=tensors["W_dec"].shape[-1] if transcodes else 0,
        skip="W_skip" in tensors,
    )


def _of_all_layers(folder: Path, settings: Mapping[str, Any], kind: str) -> Published:
    """A crosscoder or a CLT."""
    files = _files(folder)
    layers = [_tensors(file, settings) for file in files]
    for file, tensors in zip(files, layers):
        _need_targets(file, tensors, len(files))
    if kind == "clt":
        # one that writes to earlier layers is not cut to later ones
        causal = all(not t["W_dec"][:, :number].any() for number, t in enumerate(layers))
        origin = _origin(folder, settings, kind, files, range(len(files)))
        parts = [_part(file, n, t, causal) for n, (file, t) in enumerate(zip(files, layers))]
        return all_layers(folder, parts, origin)
    # A crosscoder: the latents of all layers.
    if any("W_skip" in tensors for tensors in layers):
        raise refused(folder, SKIP, "in a crosscoder", "it would pass the input itself on")
    numbers = _layers_of(folder)
    joined = {
        name: torch.cat([tensors[name] for tensors in layers])
        for name in ("b_enc", "threshold", "b_dec")
    }
    joined["W_enc"] = torch.block_diag(*(tensors["W_enc"] for tensors in layers))
    joined["W_dec"] = torch.cat([tensors["W_dec"].flatten(1) for tensors in layers])
    origin = _origin(folder, settings, kind, files, numbers if len(numbers) == len(files) else ())
    widths = tuple(tensors["W_enc"].shape[-1] for tensors in layers)
    return published(folder, "jumprelu", joined, origin, parts=widths)


def _of_one_layer(file: Path, settings: Mapping[str, Any]) -> Published:
    """A layer of a CLT."""
    if (match := OF_LAYER.fullmatch(file.name)) is None:
        raise refused(file, "file", file.name, "its name says which layer: params_layer_3")
    number, tensors = int(match[1]), _tensors(file, settings)
    W_dec = tensors["W_dec"]
    if W_dec.ndim != 3 or number >= W_dec.shape[1]:
        raise DataError(f"{file}: w_dec of layer {number} has the shape {tuple(W_dec.shape)}")
    part = _part(file, number, tensors, causal=not W_dec[:, :number].any())
    targets = range(part.first_target, W_dec.shape[1])
    origin = _origin(file.parent, settings, "clt", (file,), (number,), targets)
    return one_layer(part, origin)


def _part(file: Path, number: int, tensors: dict[str, torch.Tensor], causal: bool) -> Layer:
    first = number if causal else 0
    return Layer(file, number, tensors | {"W_dec": tensors["W_dec"][:, first:]}, first)


def _kind(folder: Path, settings: Mapping[str, Any]) -> str:
    """sae, transcoder, crosscoder or clt: the files of an SAE and a transcoder look the same."""
    kind = settings.get("type")
    if kind is None and (site := _site(folder)) is not None:
        kind = SITES[site][0]
    if kind not in ("sae", "transcoder", "crosscoder", "clt"):
        raise refused(
            folder / SETTINGS,
            "type",
            kind,
            "it is sae, transcoder, crosscoder or clt; without it, the folders say which:"
            f" {', '.join(SITES)}",
        )
    return kind


def _folders(folder: Path) -> list[str]:
    """Its own name first."""
    return list(reversed(Path(os.path.abspath(folder)).parts))


def _site(folder: Path) -> str | None:
    """The release's own folder: `resid_post`, or `resid_post_all` for all layers."""
    names = (name.removesuffix("_all") for name in _folders(folder))
    return next((name for name in names if name in SITES), None)


def _layers_of(folder: Path) -> tuple[int, ...]:
    """7, 13 of `layer_7_13_width_65k_l0_medium`."""
    match = re.match(r"layer_(\d+(?:_\d+)*)_width", _folders(folder)[0])
    return tuple(int(number) for number in match[1].split("_")) if match else ()


def _files(folder: Path) -> list[Path]:
    """Those of the layers, in order. Raises DataError where one is missing."""
    with reading(folder):
        names = [file.name for file in folder.iterdir()]
    numbers = sorted(int(match[1]) for name in names if (match := OF_LAYER.fullmatch(name)))
    if not numbers or numbers != list(range(len(numbers))):
        raise DataError(f"{folder} has the layers {numbers}", "it needs all of them, from 0")
    return [folder / f"params_layer_{number}.safetensors" for number in numbers]


def _tensors(file: Path, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Under our names, W_enc and W_skip transposed to our layout."""
    theirs = read_safetensors(file)
    skips = settings.get("affine_connection", SKIP in theirs)
    if not isinstance(skips, bool):
        raise refused(file.parent / SETTINGS, "affine_connection", skips)
    need(file, theirs, NAMES | ({SKIP} if skips else set()))
    numbers = {"w_enc": (2,), SKIP: (2,), "w_dec": (2, 3)}
    need_ndim(file, theirs, {name: numbers.get(name, (1,)) for name in theirs})
    ours = {
        "W_enc": theirs["w_enc"].T,
        "b_enc": theirs["b_enc"],
        "threshold": above(theirs["threshold"]),
        "W_dec": theirs["w_dec"],
        "b_dec": theirs["b_dec"],
    }
    return ours | ({"W_skip": theirs[SKIP].T} if skips else {})


def _need_targets(file: Path, tensors: Mapping[str, torch.Tensor], layers: int) -> None:
    width = tensors["W_enc"].shape[-1]
    shape = tuple(tensors["W_dec"].shape)
    if shape[1:] != (layers, width):
        raise DataError(
            f"{file}: w_dec has the shape {shape}; with {layers} layers of width {width} it must be"
            f" (F, {layers}, {width})"
        )


def _origin(
    folder: Path,
    settings: Mapping[str, Any],
    kind: str,
    files: tuple[Path, ...] | list[Path],
    layers: range | tuple[int, ...],
    targets: range | None = None,
) -> Origin:
    """`layers` are those that are read, and written unless `targets` says which; empty where the
    folder does not say."""
    site = _site(folder) or ("clt" if kind == "clt" else None)
    _, reads, writes = SITES[site] if site else (kind, None, None)
    # what config.json says of one hook; its words for several are not known
    hook = text(settings.get("hf_hook_point_in")) if len(layers) <= 1 and kind != "clt" else None
    target = text(settings.get("hf_hook_point_out")) if kind == "transcoder" else None
    if layers and reads:
        hook = hook or side_by_side([f"model.layers.{layer}.{reads}" for layer in layers])
    if layers and writes:
        written = layers if targets is None else targets
        names = [f"model.layers.{layer}.{writes}" for layer in written]
        target = target or side_by_side(names)
    present = [file for file in (folder / SETTINGS, *files) if file.is_file()]
    return Origin(
        format="gemma_scope_2",
        base_model=_base_model(folder, settings),
        hook=hook,
        target_hook=target,
        layer=layers[0] if len(layers) == 1 else _number_in(hook),
        context=CONTEXT,
        special_tokens=SPECIAL_TOKENS,
        normalization="none",
        files=digests(*present),
    )


def _number_in(hook: str | None) -> int | None:
    """The layer of `model.layers.12.output`."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.[^+]+", hook or "")
    return int(match[1]) if match else None


def _base_model(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Its id on the hub: config.json writes some as gemma-v3-1b-pt, and the hub has no -pt for
    270m."""
    name = text(settings.get("model_name"))
    if name is None:
        matches = (
            re.search(r"gemma-scope-2-(\w+)-(pt|it)$", folder) for folder in _folders(folder)
        )
        if (match := next((match for match in matches if match), None)) is None:
            return None
        name = f"gemma-3-{match[1]}-{match[2]}"
    name = name if "/" in name else f"google/{name}"
    name = name.replace("gemma-v3", "gemma-3")
    return name.removesuffix("-pt") if "270m" in name else name

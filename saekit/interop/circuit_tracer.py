"""circuit-tracer's files, in which the mwhanna and mntss transcoder sets are published.

A transcoder set has one file per layer, `layer_3.safetensors`:

    W_enc (F,D), b_enc (F,), W_dec (F,D), b_dec (D,), W_skip (D,D),
    activation_function.threshold (F,)

A CLT has two, `W_enc_3.safetensors` with W_enc_3 (F,D), b_enc_3, b_dec_3, threshold_3, and
`W_dec_3.safetensors` with W_dec_3 (F,T,D) for the T layers from 3 on. A threshold makes it a
jumprelu, otherwise codes are ReLU(pre); W_skip is optional too. config.yaml names the base model
and the hooks, which are those of every block: hook_resid_mid is blocks.3.hook_resid_mid in layer 3.
wandb-config.yaml of some sets names the activation function.
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
    digests,
    need,
    published,
    read_safetensors,
    read_yaml,
    refused,
    tensor_names,
    text,
)
from saekit.store.oserrors import reading

SETTINGS = "config.yaml"
WANDB = ("wandb-config.yaml", "wanb-config.yaml")  # some sets have the second spelling
FILES = Files(
    folder=("W_[ed][ne]c_*.safetensors",),
    file=("layer_*.safetensors", "W_enc_*.safetensors"),
    beside=("W_dec_{}.safetensors", SETTINGS, *WANDB),
)
OF_SET = re.compile(r"layer_(\d+)\.safetensors")
OF_CLT = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")
NAMES = frozenset({"W_enc", "W_dec", "b_enc", "b_dec"})
THRESHOLDS = ("activation_function.threshold", "threshold")
ACTIVATIONS = ("relu", "jumprelu", "jump_relu")
# sets of this name for Qwen3 that have no config.yaml; SAELens gives the same model and hooks
QWEN = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders")
OF_QWEN = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def recognizes(path: Path) -> bool:
    if not path.is_dir():
        return _is_part(path)
    first = (path / "layer_0.safetensors", path / "W_enc_0.safetensors")
    others = [file for file in path.glob("layer_*.safetensors")][:1]
    try:
        described = "model_kind" in _settings(path)
    except DataError:  # another program's config.yaml
        described = False
    return described or any(map(_is_part, (*first, *others)))


def _is_part(file: Path) -> bool:
    """Whether it is a file of a layer."""
    if OF_SET.fullmatch(file.name):
        return tensor_names(file) >= NAMES
    return bool(OF_CLT.fullmatch(file.name)) and file.stem in tensor_names(file)


def read(path: Path) -> Published:
    if not path.is_dir():
        folder = path.parent
        if match := OF_CLT.fullmatch(path.name):
            return _layer_of_clt(folder, int(match[1]))
        match = OF_SET.fullmatch(path.name)
        return _transcoder(path, int(match[1]) if match else None)
    if numbers := _numbered(path, OF_CLT):
        return _clt(path, numbers)
    numbers = _numbered(path, OF_SET)
    if len(numbers) == 1:
        return _transcoder(path / f"layer_{numbers[0]}.safetensors", numbers[0])
    if numbers:
        raise DataError(
            f"{path} holds the transcoders of {len(numbers)} layers",
            f"give the file of one, such as {path / f'layer_{numbers[0]}.safetensors'}",
        )
    listed = _settings(path).get("transcoders")
    example = text(listed[0]) if isinstance(listed, list) and listed else None
    raise DataError(
        f"{path / SETTINGS} describes transcoders that are in other files",
        "give the file of one" + (f", such as {example}" if example else ""),
    )


def _transcoder(file: Path, number: int | None) -> Published:
    tensors = read_safetensors(file)
    tensors = _with_threshold(file, tensors, [name for name in THRESHOLDS if name in tensors])
    optional = {"threshold", "W_skip"} & tensors.keys()
    need(file, tensors, NAMES | optional)
    if tensors["W_dec"].ndim != 2:
        raise DataError(f"{file}: W_dec has the shape {tuple(tensors['W_dec'].shape)}")
    return published(
        file,
        "jumprelu" if "threshold" in tensors else "l1",
        tensors,
        _origin(file.parent, () if number is None else (number,), (file,)),
        d_out=tensors["W_dec"].shape[1],
        skip="W_skip" in tensors,
    )


def _layer_of_clt(folder: Path, number: int) -> Published:
    layer = _part(folder, number)
    W_dec = layer.tensors["W_dec"]
    targets = range(number, number + (W_dec.shape[1] if W_dec.ndim == 3 else 1))
    return one_layer(layer, _origin(folder, (number,), _files(folder, number), targets))


def _clt(folder: Path, numbers: list[int]) -> Published:
    if numbers != list(range(len(numbers))):
        raise DataError(f"{folder} has the layers {numbers}", "it needs all of them, from 0")
    layers = [_part(folder, number) for number in numbers]
    files = [file for number in numbers for file in _files(folder, number)]
    return all_layers(folder, layers, _origin(folder, numbers, files))


def _part(folder: Path, number: int) -> Layer:
    """One layer of a CLT."""
    encoder_file, decoder_file = _files(folder, number)
    encoder, decoder = read_safetensors(encoder_file), read_safetensors(decoder_file)
    threshold = f"threshold_{number}"
    names = {f"{name}_{number}" for name in ("W_enc", "b_enc", "b_dec")}
    need(encoder_file, encoder, names | ({threshold} & encoder.keys()))
    need(decoder_file, decoder, {f"W_dec_{number}"})
    tensors = {name.removesuffix(f"_{number}"): t for name, t in (encoder | decoder).items()}
    tensors = _with_threshold(encoder_file, tensors, ["threshold"] if threshold in encoder else [])
    return Layer(decoder_file, number, tensors, number)


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"W_enc_{number}.safetensors", folder / f"W_dec_{number}.safetensors"


def _with_threshold(
    file: Path, tensors: dict[str, torch.Tensor], names: list[str]
) -> dict[str, torch.Tensor]:
    """The tensors with the threshold under our name; a single one is that of all latents. It is not
    raised to 0: circuit-tracer's jumprelu keeps negative values above a negative threshold."""
    if len(names) > 1:
        raise DataError(f"{file} has two thresholds, {' and '.join(names)}")
    others = {name: tensor for name, tensor in tensors.items() if name not in names}
    if not names or "b_enc" not in others:
        return others
    threshold, latents = tensors[names[0]], others["b_enc"].numel()
    if threshold.numel() == 1:
        threshold = threshold.flatten().expand(latents)
    return others | {"threshold": threshold}


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The layers that have a file of this name, in order."""
    with reading(folder):
        files = list(folder.iterdir())
    return sorted({int(m[1]) for file in files if (m := pattern.fullmatch(file.name))})


def _origin(
    folder: Path,
    layers: tuple[int, ...] | list[int],
    files: tuple[Path, ...] | list[Path],
    targets: range | None = None,
) -> Origin:
    """`layers` are those that are read, and written unless `targets` says which; empty where the
    file's name does not say. Raises DataError for another activation function than a threshold or
    ReLU."""
    settings = _settings(folder)
    wandb = next((folder / name for name in WANDB if (folder / name).is_file()), None)
    recorded = {} if wandb is None else read_yaml(wandb)
    for where, value in ((SETTINGS, settings.get("activation")), (wandb, recorded.get("act_fn"))):
        value = value.get("value") if isinstance(value, dict) else value
        if value is not None and value not in ACTIVATIONS:
            shown = text(value) or type(value).__name__  # YAML can describe endless lists
            raise refused(folder / str(where), "activation", shown)
    present = [file for file in (folder / SETTINGS, wandb) if file is not None and file.is_file()]
    return Origin(
        format="circuit_tracer",
        base_model=text(settings.get("model_name")),
        hook=_hooks(settings.get("feature_input_hook"), layers),
        target_hook=_hooks(settings.get("feature_output_hook"), targets or layers),
        layer=layers[0] if len(layers) == 1 else None,
        normalization="none",
        files=digests(*present, *files),
    )


def _hooks(name: Any, layers: range | tuple[int, ...] | list[int]) -> str | None:
    """A hook of every block in these blocks."""
    if not layers or text(name) is None:
        return None
    return side_by_side([f"blocks.{layer}.{name}" for layer in layers])


def _settings(folder: Path) -> Mapping[str, Any]:
    """config.yaml; of a set without one, what the name of its repository says."""
    file = folder / SETTINGS
    if file.is_file():
        return read_yaml(file)
    parts = Path(os.path.abspath(folder)).parts
    matches = [match for part in parts if (match := QWEN.search(part))]
    return OF_QWEN | {"model_name": f"Qwen/Qwen3-{matches[-1][1]}B"} if matches else {}

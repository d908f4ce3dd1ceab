"""circuit-tracer's transcoder sets, in which mwhanna and mntss publish: one file per layer,
`layer_3.safetensors`, each a transcoder of its own.

    W_enc (F,D), b_enc (F,), W_dec (F,D), b_dec (D,), W_skip (D,D),
    activation_function.threshold (F,)

With a threshold it is a jumprelu, otherwise codes are ReLU(pre); W_skip is optional too.
config.yaml names the base model and the hooks, which are those of every block: hook_resid_mid is
blocks.3.hook_resid_mid in layer 3. wandb-config.yaml of some sets names the activation function.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.interop.cross_layer import side_by_side
from saekit.interop.dictionary import (
    Origin,
    Published,
    digests,
    need,
    published,
    read_safetensors,
    refused,
    tensor_names,
    text,
)
from saekit.store.files import need_regular
from saekit.store.oserrors import reading

SETTINGS = "config.yaml"
WANDB = ("wandb-config.yaml", "wanb-config.yaml")  # some sets have the second spelling
FILES = ("layer_*.safetensors", SETTINGS, *WANDB)
WEIGHTS = re.compile(r"layer_(\d+)\.safetensors")
NAMES = frozenset({"W_enc", "W_dec", "b_enc", "b_dec"})
THRESHOLDS = ("activation_function.threshold", "threshold")
ACTIVATIONS = ("relu", "jumprelu", "jump_relu")
# sets of this name for Qwen3 that have no config.yaml; SAELens gives the same model and hooks
QWEN = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders")
OF_QWEN = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def recognizes(path: Path) -> bool:
    if not path.is_dir():
        return bool(WEIGHTS.fullmatch(path.name)) and tensor_names(path) >= NAMES
    try:
        settings = settings_of(path)
    except DataError:  # another program's config.yaml
        settings = {}
    described = settings.get("model_kind") == "transcoder_set" or "transcoders" in settings
    return described or any(
        tensor_names(path / f"layer_{number}.safetensors") >= NAMES
        for number in numbered(path, WEIGHTS)[:1]
    )


def read(path: Path) -> Published:
    if not path.is_dir():
        match = WEIGHTS.fullmatch(path.name)
        return _transcoder(path, int(match[1]) if match else None)
    numbers = numbered(path, WEIGHTS)
    if len(numbers) == 1:
        return _transcoder(path / f"layer_{numbers[0]}.safetensors", numbers[0])
    if numbers:
        raise DataError(
            f"{path} holds the transcoders of {len(numbers)} layers",
            f"give the file of one, such as {path / f'layer_{numbers[0]}.safetensors'}",
        )
    listed = settings_of(path).get("transcoders")
    example = text(listed[0]) if isinstance(listed, list) and listed else None
    raise DataError(
        f"{path / SETTINGS} describes transcoders that are in other files",
        "give the file of one" + (f", such as {example}" if example else ""),
    )


def _transcoder(file: Path, number: int | None) -> Published:
    tensors = read_safetensors(file)
    tensors = with_threshold(file, tensors, [name for name in THRESHOLDS if name in tensors])
    optional = {"threshold", "W_skip"} & tensors.keys()
    need(file, tensors, NAMES | optional)
    if tensors["W_dec"].ndim != 2:
        raise DataError(f"{file}: W_dec has the shape {tuple(tensors['W_dec'].shape)}")
    return published(
        file,
        "jumprelu" if "threshold" in tensors else "l1",
        tensors,
        origin_of("circuit_tracer", file.parent, () if number is None else (number,), (file,)),
        d_out=tensors["W_dec"].shape[1],
        skip="W_skip" in tensors,
    )


def with_threshold(
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


def numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The layers that have a file of this name, in order."""
    with reading(folder):
        files = list(folder.iterdir())
    return sorted({int(m[1]) for file in files if (m := pattern.fullmatch(file.name))})


def origin_of(
    format: str,
    folder: Path,
    layers: Sequence[int],
    files: Sequence[Path],
    targets: Sequence[int] | None = None,
) -> Origin:
    """`layers` are those that are read, and written unless `targets` says which; empty where the
    file's name does not say. Raises DataError for another activation function than a threshold or
    ReLU."""
    settings = settings_of(folder)
    wandb = next((folder / name for name in WANDB if (folder / name).is_file()), None)
    recorded = {} if wandb is None else _yaml(wandb)
    for where, value in ((SETTINGS, settings.get("activation")), (wandb, recorded.get("act_fn"))):
        value = value.get("value") if isinstance(value, dict) else value
        if value is not None and value not in ACTIVATIONS:
            shown = text(value) or type(value).__name__
            raise refused(folder / str(where), "activation", shown)
    present = [file for file in (folder / SETTINGS, wandb) if file is not None and file.is_file()]
    return Origin(
        format=format,
        base_model=text(settings.get("model_name")),
        hook=_hooks(settings.get("feature_input_hook"), layers),
        target_hook=_hooks(settings.get("feature_output_hook"), targets or layers),
        layer=layers[0] if len(layers) == 1 else None,
        normalization="none",
        files=digests(*present, *files),
    )


def _hooks(name: Any, layers: Sequence[int]) -> str | None:
    """A hook of every block in these blocks."""
    if not layers or text(name) is None:
        return None
    return side_by_side([f"blocks.{layer}.{name}" for layer in layers])


def settings_of(folder: Path) -> Mapping[str, Any]:
    """config.yaml; of a set without one, what the name of its repository says."""
    file = folder / SETTINGS
    if file.is_file():
        return _yaml(file)
    matches = [
        match for part in Path(os.path.abspath(folder)).parts if (match := QWEN.search(part))
    ]
    return OF_QWEN | {"model_name": f"Qwen/Qwen3-{matches[-1][1]}B"} if matches else {}


def _yaml(file: Path) -> Mapping[str, Any]:
    """Raises DataError for a file that does not hold a mapping."""
    import yaml

    with reading(file):
        need_regular(file)
        try:
            settings = yaml.safe_load(file.read_bytes())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{file} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise DataError(f"{file} does not hold the settings of transcoders")
    return settings

"""The files of a cross-layer transcoder (CLT), one per layer, in saekit's terms. A whole CLT opens
as one model (saekit.models.cross_layer), the file of one layer as a transcoder whose x_hat holds
what this layer adds to the outputs of its targets, side by side.

Shapes: as in saekit.models.cross_layer; T targets of one layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saekit.errors import DataError
from saekit.interop.dictionary import Origin, Published, published
from saekit.models.cross_layer import CrossLayerConfig


@dataclass(frozen=True)
class Layer:
    """One layer's file."""

    where: Path
    number: int
    """Of all layers, from 0."""
    tensors: Mapping[str, torch.Tensor]
    """W_enc (F,D), b_enc (F,), W_dec (F,T,D), b_dec (D,); threshold (F,) and W_skip (D,D) where it
    has them."""
    first_target: int
    """The first layer that it writes to; it writes to all after that."""


def one_layer(layer: Layer, origin: Origin) -> Published:
    """The transcoder of one layer. Its b_dec and skip belong to its own output, and are 0 for the
    other targets. Raises DataError for shapes that do not fit."""
    W_dec = layer.tensors["W_dec"]
    if W_dec.ndim != 3 or not W_dec.shape[1]:
        shape = tuple(W_dec.shape)
        raise DataError(f"{layer.where}: the decoder has the shape {shape}, not (F, targets, D)")
    _, targets, width = W_dec.shape
    start = (layer.number - layer.first_target) * width  # of this layer's own output in x_hat
    tensors = {**layer.tensors, "W_dec": W_dec.flatten(1)}
    for name in ("b_dec", "W_skip"):
        if name in tensors:
            values = tensors[name]
            if values.shape[:1] != (width,):
                raise DataError(
                    f"{layer.where}: {name} has the shape {tuple(values.shape)}, and the decoder"
                    f" {width} values per target"
                )
            tensors[name] = values.new_zeros(targets * width, *values.shape[1:])
            tensors[name][start : start + width] = values
    return published(
        layer.where,
        _sparsity(layer),
        tensors,
        origin,
        d_out=targets * width,
        skip="W_skip" in tensors,
    )


def all_layers(where: Path, layers: Sequence[Layer], origin: Origin) -> Published:
    """The model of all layers, which are given in order. Raises DataError where one differs from
    the others in its size or its kind."""
    opened = [one_layer(layer, origin) for layer in layers]
    first = opened[0].config
    config = CrossLayerConfig(
        d_in=first["d_in"] * len(layers),
        latents=first["latents"] * len(layers),
        layers=len(layers),
        sparsity=first["sparsity"],
        skip=first["skip"],
        causal=all(layer.first_target == layer.number for layer in layers),
    )
    for layer, dictionary in zip(layers, opened):
        wanted = dataclasses.asdict(config.of_layer(layer.number))
        for name in ("d_in", "d_out", "latents", "sparsity", "skip"):
            if dictionary.config[name] != wanted[name]:
                raise DataError(
                    f"{layer.where}: {name} is {dictionary.config[name]}, and by the other layers"
                    f" {wanted[name]}"
                )
    tensors = {
        f"layers.{number}.{name}": tensor
        for number, dictionary in enumerate(opened)
        for name, tensor in dictionary.tensors.items()
    }
    return Published(dataclasses.asdict(config), tensors, origin, model="cross_layer")


def side_by_side(names: Sequence[str]) -> str:
    """The hooks of a row that holds several, as the spec of a crosscoder names them."""
    return "+".join(names)


def _sparsity(layer: Layer) -> str:
    return "jumprelu" if "threshold" in layer.tensors else "l1"

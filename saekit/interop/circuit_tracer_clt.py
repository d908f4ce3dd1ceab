"""circuit-tracer's cross-layer transcoders, as mntss publishes them: two files per layer,

    W_enc_3.safetensors    W_enc_3 (F,D), b_enc_3 (F,), b_dec_3 (D,), threshold_3 (F,)
    W_dec_3.safetensors    W_dec_3 (F,T,D), for the T layers from 3 on

beside config.yaml. With thresholds they are a jumprelu, otherwise codes are ReLU(pre).
"""

from __future__ import annotations

import re
from pathlib import Path

from saekit.errors import DataError
from saekit.interop.circuit_tracer import SETTINGS, numbered, origin_of, with_threshold
from saekit.interop.cross_layer import Layer, all_layers, one_layer
from saekit.interop.dictionary import Published, need, read_safetensors, refused, tensor_names

FORMAT = "circuit_tracer_clt"
FILES = ("W_enc_*.safetensors", "W_dec_*.safetensors", SETTINGS)
WEIGHTS = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")


def recognizes(path: Path) -> bool:
    file = path / "W_enc_0.safetensors" if path.is_dir() else path
    return bool(WEIGHTS.fullmatch(file.name)) and file.stem in tensor_names(file)


def read(path: Path) -> Published:
    if path.is_dir():
        return _of_all_layers(path)
    if (match := WEIGHTS.fullmatch(path.name)) is None:
        raise refused(path, "file", path.name, "its name says which layer: W_enc_3.safetensors")
    return _of_one_layer(path.parent, int(match[1]))


def _of_one_layer(folder: Path, number: int) -> Published:
    layer = _part(folder, number)
    W_dec = layer.tensors["W_dec"]
    targets = range(number, number + (W_dec.shape[1] if W_dec.ndim == 3 else 1))
    return one_layer(layer, origin_of(FORMAT, folder, (number,), _files(folder, number), targets))


def _of_all_layers(folder: Path) -> Published:
    numbers = numbered(folder, WEIGHTS)
    if not numbers or numbers != list(range(len(numbers))):
        raise DataError(f"{folder} has the layers {numbers}", "it needs all of them, from 0")
    layers = [_part(folder, number) for number in numbers]
    files = [file for number in numbers for file in _files(folder, number)]
    return all_layers(folder, layers, origin_of(FORMAT, folder, numbers, files))


def _part(folder: Path, number: int) -> Layer:
    """One layer of a CLT."""
    encoder_file, decoder_file = _files(folder, number)
    encoder, decoder = read_safetensors(encoder_file), read_safetensors(decoder_file)
    threshold = f"threshold_{number}"
    names = {f"{name}_{number}" for name in ("W_enc", "b_enc", "b_dec")}
    need(encoder_file, encoder, names | ({threshold} & encoder.keys()))
    need(decoder_file, decoder, {f"W_dec_{number}"})
    tensors = {name.removesuffix(f"_{number}"): t for name, t in (encoder | decoder).items()}
    tensors = with_threshold(encoder_file, tensors, ["threshold"] if threshold in encoder else [])
    return Layer(decoder_file, number, tensors, number)


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"W_enc_{number}.safetensors", folder / f"W_dec_{number}.safetensors"

"""Goodfire's SAEs of Llama 3: `{model}-SAE-l{layer}.pth` with encoder_linear and decoder_linear, a
ReLU that does not subtract b_dec; and qresearch's of DeepSeek-R1-Distill, the same with `encoder`
and `decoder`.

The files hold tensors only: model and layer are in their names.
"""

from __future__ import annotations

import re
from pathlib import Path

from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    digests,
    need,
    need_matrices,
    published,
)
from saekit.interop.pickles import glance, read_tensors

FILES = Files(file=("*.pth", "*.pt"))
NAME = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d+)\.pth?")
OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}
PARTS = ("encoder{}.weight", "encoder{}.bias", "decoder{}.weight", "decoder{}.bias")
GOODFIRE, DEEPSEEK_R1 = "_linear", ""  # what their names have after encoder and decoder


def recognizes(path: Path) -> bool:
    return glance(path).keys() == set(_names(GOODFIRE))


def recognizes_deepseek_r1(path: Path) -> bool:
    """By its name too: programs besides qresearch's have files with these tensors."""
    return bool(NAME.fullmatch(path.name)) and glance(path).keys() == set(_names(DEEPSEEK_R1))


def read(path: Path) -> Published:
    return _read(path, "goodfire", GOODFIRE)


def read_deepseek_r1(path: Path) -> Published:
    return _read(path, "deepseek_r1", DEEPSEEK_R1)


def _names(infix: str) -> list[str]:
    return [part.format(infix) for part in PARTS]


def _read(path: Path, format: str, infix: str) -> Published:
    tensors = read_tensors(path)
    names = _names(infix)
    need(path, tensors, names)
    need_matrices(path, tensors, names[0], names[2])
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in names)
    # of a file that kept its name
    match = NAME.fullmatch(path.name)
    model, layer = (match["model"], int(match["layer"])) if match else (None, None)
    owner = OWNERS.get(model.split("-")[0]) if model else None
    origin = Origin(
        format=format,
        base_model=f"{owner}/{model}" if owner else None,
        hook=None if layer is None else f"blocks.{layer}.hook_resid_post",
        layer=layer,
        dataset="lmsys/lmsys-chat-1m" if owner else None,
        normalization="none",
        files=digests(path),
    )
    ours = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec.T, "b_dec": b_dec}
    return published(path, "l1", ours, origin)

"""The attention SAEs of GPT-2 by Kissane et al. 2024 ("Attention SAEs Scale to GPT-2 Small"):
`NAME.pt` with W_enc (D,F), W_dec (F,D), b_enc, b_dec, and `NAME_cfg.json` beside it; a ReLU that
subtracts b_dec, on the heads of hook_z side by side.
"""

from __future__ import annotations

from pathlib import Path

from saekit.errors import DataError
from saekit.interop.dictionary import (
    HEADS,
    Files,
    Origin,
    Published,
    digests,
    integer,
    json_object,
    need,
    need_matrices,
    number,
    published,
    text,
)
from saekit.interop.pickles import glance, read_tensors

FILES = Files(file=("*.pt",), beside=("{}_cfg.json",))
NAMES = frozenset({"W_enc", "W_dec", "b_enc", "b_dec"})
SIZES = {"act_size", "dict_size", "act_name"}


def recognizes(path: Path) -> bool:
    settings = json_object(_settings(path)) or {}
    return settings.keys() >= SIZES and glance(path).keys() == NAMES


def read(path: Path) -> Published:
    where = _settings(path)
    settings = json_object(where)
    if settings is None:
        raise DataError(f"{path} has no settings beside it, {where.name}")
    tensors = read_tensors(path)
    need(path, tensors, NAMES)
    need_matrices(path, tensors, "W_enc", "W_dec")
    shape = number(where, settings, "act_size"), number(where, settings, "dict_size")
    if tuple(tensors["W_enc"].shape) != shape:
        raise DataError(
            f"{path}: W_enc has the shape {tuple(tensors['W_enc'].shape)}, and by {where.name}"
            f" {shape}"
        )
    origin = Origin(
        format="hook_z",
        base_model=text(settings.get("model_name")),
        hook=text(settings.get("act_name")),
        layer=integer(settings.get("layer")),
        context=integer(settings.get("seq_len")),
        normalization="none",
        notes=(HEADS,),
        files=digests(path, where),
    )
    ours = tensors | {"W_enc": tensors["W_enc"].T}
    return published(path, "l1", ours, origin, subtract_b_dec=True)


def _settings(path: Path) -> Path:
    return path.parent / f"{path.stem}_cfg.json"  # "." and "/" have no name to replace

"""Gemma Scope 1: params.npz with W_enc (D,F), W_dec (F,D), b_enc, b_dec, threshold (F,), a jumprelu
that does not subtract b_dec.

The file says nothing about its origin; its folders (`layer_12/width_16k/average_l0_82`) give the
layer, and tell embedding dictionaries and transcoders apart, which have other maps.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from saekit.errors import DataError
from saekit.interop.dictionary import Origin, Published, above, digests, need, published, refused
from saekit.store.files import need_regular
from saekit.store.oserrors import reading

WEIGHTS = "params.npz"
FILES = (WEIGHTS,)
NAMES = frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})


def recognizes(path: Path) -> bool:
    try:
        with zipfile.ZipFile(_file(path)) as file:
            names = {_name(Path(member).stem) for member in file.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return names >= NAMES


def read(path: Path) -> Published:
    where = _file(path)
    folders = where.parent.resolve().parts  # the file may be a link into a cache
    for kind in ("embedding", "transcoder"):
        if named := [folder for folder in folders if kind in folder]:
            raise refused(where, "folder", named[-1], f"it says that this is of the kind {kind}")
    arrays = _arrays(where)
    need(where, arrays, NAMES)
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.ndim != (2 if name.startswith("W_") else 1):
            raise DataError(f"{where}: {name} is {array.dtype}, shape {array.shape}")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    tensors |= {"W_enc": tensors["W_enc"].T, "threshold": above(tensors["threshold"])}
    layers = [match for folder in folders if (match := re.fullmatch(r"layer_(\d+)", folder))]
    origin = Origin(
        format="gemma_scope",
        layer=int(layers[-1][1]) if layers else None,
        normalization="none",
        files=digests(where),
    )
    return published(where, "jumprelu", tensors, origin)


def _arrays(where: Path) -> dict[str, np.ndarray]:
    """Raises DataError for a damaged file and for arrays of objects, which are pickles."""
    with reading(where):
        need_regular(where)
        try:
            with np.load(where, allow_pickle=False) as file:
                return {_name(name): file[name] for name in file.files}
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(
                f"{where} does not load as plain arrays: {error}",
                "saekit does not run the code of a pickle",
            ) from None


def _name(name: str) -> str:
    """Some releases write w_enc and w_dec."""
    return f"W_{name[2:]}" if name.startswith("w_") else name


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path

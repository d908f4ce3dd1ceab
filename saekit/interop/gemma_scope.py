"""Gemma Scope 1: params.npz with W_enc (D,F), W_dec (F,D), b_enc, b_dec, threshold (F,), a jumprelu
that does not subtract b_dec.

The file says nothing about itself; its folders do: `gemma-scope-2b-pt-res/layer_12/width_16k/
average_l0_82`. In a repository of transcoders (or without one, in a folder with `transcoder` in its
name) it is a transcoder, below `embedding` a dictionary of token embeddings. These were trained on
embeddings before Gemma multiplies them by sqrt(D): on the rows of the model, x is divided by it and
x_hat multiplied.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    above,
    digests,
    need,
    published,
    refused,
)
from saekit.store.files import need_regular
from saekit.store.oserrors import reading

WEIGHTS = "params.npz"
FILES = Files(folder=(WEIGHTS,), file=("*.npz",))
# what zipfile and zlib raise for a file that is not a whole archive, encrypted or of another kind
NOT_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
NAMES = frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})
DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")]  # that torch takes
REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)$")
# repository -> (what a dictionary of it reads, what it writes if that is another hook)
HOOKS = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
# of the release (Lieberum et al. 2024, arXiv 2408.05147, section 3): no rows of BOS, EOS, padding
# in training; evaluated on sequences of 1,024 tokens
CONTEXT, SPECIAL_TOKENS = 1024, {"prepend_bos": True, "exclude_special_tokens": True}


def recognizes(path: Path) -> bool:
    try:
        with zipfile.ZipFile(_file(path)) as file:
            names = {_name(Path(member).stem) for member in file.namelist()}
    except (OSError, ValueError, *NOT_ZIP):
        return False
    return names >= NAMES


def read(path: Path) -> Published:
    where = _file(path)
    # not resolved: in a cache of the hub the file is a link to a folder without these names
    folders = Path(os.path.abspath(where)).parts[:-1]
    arrays = _arrays(where)
    scaling = arrays.pop("scaling_factor", None)
    if scaling is not None and not (scaling == 1).all():
        raise refused(where, "scaling_factor", "a factor for each latent")
    need(where, arrays, NAMES)
    for name, array in arrays.items():
        if array.dtype not in DTYPES or array.ndim != (2 if name.startswith("W_") else 1):
            raise DataError(f"{where}: {name} is {array.dtype}, shape {array.shape}")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    tensors |= {"W_enc": tensors["W_enc"].T, "threshold": above(tensors["threshold"])}
    # the kind, by the folders
    origin, transcodes = _origin(where, folders)
    factor = tensors["W_enc"].shape[1] ** -0.5 if "embedding" in folders else 1.0
    return published(
        where,
        "jumprelu",
        tensors,
        origin,
        d_out=tensors["W_dec"].shape[1] if transcodes else 0,
        input_factor=factor,
        output_factor=factor,
    )


def _origin(where: Path, folders: tuple[str, ...]) -> tuple[Origin, bool]:
    """What the folders say, and of the release if one of them is its repository; and whether this
    is a transcoder."""
    layers = [match for folder in folders if (match := re.fullmatch(r"layer_(\d+)", folder))]
    layer = int(layers[-1][1]) if layers else None
    origin = Origin("gemma_scope", layer=layer, normalization="none", files=digests(where))
    matches = [match for folder in folders if (match := REPOSITORY.search(folder))]
    if not matches:
        named = [folder for folder in folders if "transcoder" in folder]
        notes = tuple(f"A transcoder, since a folder is named {name}." for name in named[-1:])
        return replace(origin, notes=notes), bool(named)
    size, tuning, site = matches[-1].groups()
    hook, target_hook = (
        None if layer is None or name is None else f"blocks.{layer}.{name}" for name in HOOKS[site]
    )
    origin = replace(
        origin,
        base_model=f"google/gemma-2-{size}" + ("-it" if tuning == "it" else ""),
        hook="hook_embed" if "embedding" in folders else hook,
        target_hook=target_hook,
        context=CONTEXT,
        special_tokens=SPECIAL_TOKENS,
    )
    return origin, site == "transcoders"


def _arrays(where: Path) -> dict[str, np.ndarray]:
    """Raises DataError for a damaged file and for arrays of objects, which are pickles."""
    with reading(where):
        need_regular(where)
        try:
            with np.load(where, allow_pickle=False) as file:
                return {_name(name): file[name] for name in file.files}
        except (ValueError, EOFError, *NOT_ZIP) as error:
            raise DataError(
                f"{where} does not load as plain arrays: {error}",
                "saekit does not run the code of a pickle",
            ) from None


def _name(name: str) -> str:
    """Some releases write w_enc and w_dec."""
    return f"W_{name[2:]}" if name.startswith("w_") else name


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path

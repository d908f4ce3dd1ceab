"""Qwen-Scope: `layer{n}.sae.pt` with W_enc (F,D), W_dec (D,F), b_enc, b_dec, a topk that does not
subtract b_dec.

The file holds neither k nor the model: they are in the name of its repository,
`SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`, which must be one of the folders above the file.
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
    refused,
)
from saekit.interop.pickles import glance, read_tensors

FILES = Files(file=("*.sae.pt",))
REPOSITORY = re.compile(r"SAE-Res-(.+)-W\d+K-L0_(\d+)")
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
NEGATIVE = (
    "A value among the k largest of a row that is negative counts as 0, as in SAELens; the example"
    " of Qwen's model cards keeps it."
)


def recognizes(path: Path) -> bool:
    state = glance(path)
    if state.keys() != set(NAMES):
        return False
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
    # (F,D) and (F,): other programs with these names have W_enc (D,F)
    return len(shapes["W_enc"]) == 2 and shapes["W_enc"][:1] == shapes["b_enc"]


def read(path: Path) -> Published:
    # the names as they were given: a cache of the hub links them to others
    places = [found for part in path.absolute().parts if (found := REPOSITORY.search(part))]
    if not places or int(places[-1][2]) < 1:
        raise refused(
            path,
            "k",
            "unknown",
            "k is only in the name of the repository: keep the file in a folder of that name, such"
            " as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
        )
    model, k = places[-1].groups()
    layer = re.search(r"layer(\d+)\.sae", path.name)
    tensors = read_tensors(path)
    need(path, tensors, NAMES)
    need_matrices(path, tensors, "W_enc", "W_dec")
    origin = Origin(
        format="qwen_scope",
        base_model=f"Qwen/{model}",
        hook=f"blocks.{layer[1]}.hook_resid_post" if layer else None,
        layer=int(layer[1]) if layer else None,
        normalization="none",
        notes=(NEGATIVE,),
        files=digests(path),
    )
    return published(path, "topk", tensors | {"W_dec": tensors["W_dec"].T}, origin, k=int(k))

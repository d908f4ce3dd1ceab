"""The largest activation of every latent, from the indexes beside a checkpoint: the unit of
steering."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saekit.indexing.manifest import FEATURES, INDEXES
from saekit.store.folder_kinds import INDEX


def indexed_maxima(
    checkpoint: Path, config: Mapping[str, Any], latents: int
) -> torch.Tensor | None:
    """(F,) fp32: the largest |z| of each latent, 0 for one that never fired. Of the store of
    training where that was indexed, else of the largest store. None without a whole index."""
    trained_on = str(config.get("content") or "")[:16]
    known: list[tuple[bool, int, torch.Tensor]] = []
    for path in sorted((checkpoint / INDEXES).glob(f"*/{FEATURES}")):
        found = _maxima(path)
        if found is None:
            continue
        rows, maxima = found
        if maxima.shape == (latents,) and bool(torch.isfinite(maxima).all()):
            # an index is named by its store, or by the digest of several
            of_training = bool(trained_on) and path.parent.name.startswith(trained_on)
            known.append((of_training, rows, maxima))
    return max(known, key=lambda entry: entry[:2])[2] if known else None


def _maxima(path: Path) -> tuple[int, torch.Tensor] | None:
    """(rows, maxima) of a whole index; None where it cannot be read."""
    try:
        manifest = json.loads((path.parent / INDEX.marker).read_bytes())
        if manifest["complete"] is not True:
            return None
        with safe_open(path, "pt") as file:
            return int(manifest["rows"]), file.get_tensor("max")
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError):
        return None

"""The scans and indexes of stores that are kept beside a checkpoint (saekit.inspection.scan,
saekit.indexing), as far as others read them: the largest activation of every latent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SCAN_SCHEMA = 2
SCANS = "scans"
INDEXES = "index"
FEATURES = "features.safetensors"


def scanned_maxima(
    checkpoint: Path, config: Mapping[str, Any], latents: int
) -> torch.Tensor | None:
    """(F,) fp32: the largest |z| of each latent, 0 for one that never fired. Of the store of
    training where that was scanned or indexed, else of the largest store. None without a scan or
    index."""
    trained_on = str(config.get("content") or "")[:16]
    known: list[tuple[bool, int, torch.Tensor]] = []
    # an index is named by its store, or by the digest of several
    paths = [
        *(checkpoint / SCANS).glob("*.safetensors"),
        *(checkpoint / INDEXES).glob(f"*/{FEATURES}"),
    ]
    for path in sorted(paths):
        name = path.parent.name if path.name == FEATURES else path.stem
        found = _indexed(path) if path.name == FEATURES else _scanned(path)
        if found is None:
            continue  # a scan is a cache
        rows, maxima = found
        if maxima.shape == (latents,) and bool(torch.isfinite(maxima).all()):
            known.append((bool(trained_on) and name.startswith(trained_on), rows, maxima))
    return max(known, key=lambda entry: entry[:2])[2] if known else None


def _scanned(path: Path) -> tuple[int, torch.Tensor] | None:
    """(rows, maxima) of a scan; None where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            if int(file.get_tensor("schema")) != SCAN_SCHEMA:
                return None
            return int(file.get_tensor("rows")), file.get_tensor("max")
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None


def _indexed(path: Path) -> tuple[int, torch.Tensor] | None:
    """The same of a whole index."""
    try:
        manifest = json.loads((path.parent / "index.json").read_bytes())
        if manifest["complete"] is not True:
            return None
        with safe_open(path, "pt") as file:
            return int(manifest["rows"]), file.get_tensor("max")
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError):
        return None

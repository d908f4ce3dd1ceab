"""The scans of stores that `saekit inspect` keeps beside a checkpoint (saekit.inspection.scan), as
far as others read them: the largest activation of every latent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SCAN_SCHEMA = 2
SCANS = "scans"
INDEXES = "index"


def scanned_maxima(
    checkpoint: Path, config: Mapping[str, Any], latents: int
) -> torch.Tensor | None:
    """(F,) fp32: the largest |z| of each latent, 0 for one that never fired. Of the store of
    training where that was scanned, else of the largest store. None without a scan."""
    trained_on = str(config.get("content") or "")[:16]
    scans: list[tuple[bool, int, torch.Tensor]] = []
    for path in sorted((checkpoint / SCANS).glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                if int(file.get_tensor("schema")) != SCAN_SCHEMA:
                    continue
                rows, maxima = int(file.get_tensor("rows")), file.get_tensor("max")
        except (OSError, SafetensorError, ValueError, RuntimeError):
            continue  # a scan is a cache
        if maxima.shape == (latents,) and bool(torch.isfinite(maxima).all()):
            scans.append((bool(trained_on) and path.stem.startswith(trained_on), rows, maxima))
    return max(scans, key=lambda scan: scan[:2])[2] if scans else None

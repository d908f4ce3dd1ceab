"""What wrote a file."""

from __future__ import annotations

import torch

from saekit import __version__


def versions() -> dict[str, str]:
    """{"saekit": ..., "torch": ...}. Not from the metadata of packages, which sources that are
    only on PYTHONPATH do not have."""
    return {"saekit": __version__, "torch": str(torch.__version__)}

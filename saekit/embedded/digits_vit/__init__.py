"""embedded:digits-vit: a small ViT for embedded:digits; `train` writes the three files in this
folder.

One pixel is one patch, so that a heat map over patches has the full 8x8 resolution: 64 patches and
the class token.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def revision() -> str:
    """A digest of the weights: another training run is another model."""
    from saekit.embedded.digests import file_digest

    return f"files:{file_digest(FOLDER / 'model.safetensors')}"

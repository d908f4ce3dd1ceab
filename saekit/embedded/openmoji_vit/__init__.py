"""embedded:openmoji-vit: a small ViT for embedded:openmoji; `train` writes the files here.

6 blocks, width 160, 72x72 pixels in 9x9 patches of 8 pixels and the class token; its head names the
98 subgroups of emoji. Weights are stored as float16 and load as float32. They were trained on
OpenMoji's drawings (NOTICE.md); figures.json has what they get right.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def revision() -> str:
    """A digest of the weights: another training run is another model."""
    from saekit.embedded.digests import file_digest

    return f"files:{file_digest(FOLDER / 'model.safetensors')}"

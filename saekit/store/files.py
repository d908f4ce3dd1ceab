"""Files that are either whole or absent: written under a temporary name, fsynced, renamed. And output folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from saekit.errors import DataError, UsageError


def write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _publish(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Tensors must be contiguous and not share memory."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata)
    os.chmod(temporary, 0o644)  # save_file makes files that only their owner can read
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    _publish(temporary, path)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, what: str) -> Any:
    """The parsed file, or DataError naming `what` it should have been."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path.parent} is not {what}: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def prepare_output(path: Path, marker: str, *, resume: bool, overwrite: bool, resumable: bool = True) -> bool:
    """Make `path` ready to be written; True when there is something to resume.

    `marker` is the JSON file that saekit writes into such a folder first; only a folder with it is ever deleted or written into.
    Raises UsageError when both ways are asked for, DataError when the folder holds anything and neither was, or is not saekit's.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other", "give one of them")
    if path.is_file():
        raise DataError(f"{path} is a file, not a folder", "choose another OUT")
    occupied = path.is_dir() and any(each.suffix != ".tmp" for each in path.iterdir())
    ours = occupied and _is_saekits(path / marker)
    if occupied and not ours and (resume or overwrite):
        raise DataError(f"{path} holds files that saekit did not write (there is no {marker} of its own)", "choose another OUT")
    if occupied and not resume and not overwrite:
        ways = "--resume to continue it, --overwrite to replace it" if resumable else "--overwrite to replace it"
        hint = f"{ways}, or another OUT" if ours else "choose another OUT"
        raise DataError(f"{path} exists and is not empty", hint)
    if ours and overwrite:
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    return ours and resume


def folder_bytes(path: Path) -> int:
    """Bytes of all files below `path`; 0 when there is none."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _is_saekits(marker: Path) -> bool:
    try:
        return "schema_version" in json.loads(marker.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

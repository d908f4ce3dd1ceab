"""Files that are either whole or absent: written under a temporary name, fsynced, renamed. And output folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from saekit.errors import DataError

SECRET_WORDS = ("token", "secret", "password", "api_key")


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


def prepare_output(path: Path, marker: str, *, resume: bool, overwrite: bool) -> bool:
    """Make `path` ready to be written; True when there is something to resume.

    `marker` is the file that shows that the folder was written by saekit: only such a folder is ever deleted.
    Raises DataError when the folder holds anything and neither `resume` nor `overwrite` says what to do with it.
    """
    if path.is_file():
        raise DataError(f"{path} is a file, not a folder", "choose another OUT")
    occupied = path.is_dir() and any(path.iterdir())
    ours = (path / marker).exists()
    if occupied and overwrite:
        if not ours:
            raise DataError(f"{path} holds files that saekit did not write ({marker} is missing)", "choose another OUT")
        shutil.rmtree(path)
    elif occupied and not resume:
        hint = "--resume to continue it, --overwrite to replace it, or another OUT" if ours else "choose another OUT"
        raise DataError(f"{path} exists and is not empty", hint)
    path.mkdir(parents=True, exist_ok=True)
    return resume and ours and occupied


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

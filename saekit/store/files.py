"""Files that are either whole or absent: written under a temporary name, fsynced, renamed.

A temporary name is `NAME.<process>-<random>.tmp`: two processes never share one, and the remains of
a killed process can be distinguished from other files, so that the next command that locks the
folder removes them (saekit.store.run_folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from saekit.config import to_toml
from saekit.errors import DataError
from saekit.store.oserrors import writing

LARGEST_JSON = 1 << 28  # bytes: a manifest of a million shards is smaller
TEMPORARY = re.compile(r"(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")
# Files whose checksum this process has verified: (path, bytes, mtime, sha256). A file that changes
# is verified again.
_VERIFIED: set[tuple[str, int, int, str]] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which replaces `path` when the body ends. After an error
    it is removed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The format of all of saekit's JSON files: equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_config(path: Path, settings: dict[str, Any]) -> None:
    """config.toml: the resolved settings by flag name."""
    write_bytes(path, to_toml(settings).encode())


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Tensors must be contiguous and not share memory."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            temporary.mkdir()
            # save_file first writes under a random name: inside our folder, so that after a kill
            # nothing remains under a name that we do not know. It creates files that only their
            # owner can read; ours follow the umask.
            whole = temporary / path.name
            whole.touch()
            mode = whole.stat().st_mode & 0o777
            save_file(tensors, whole, metadata)
            os.chmod(whole, mode)
            with open(whole, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(whole, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """fsync the names in a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path, expected: str) -> str:
    """sha256 of a file, which is not read again where this process has seen that it is the
    `expected` one."""
    stat = path.stat()
    version = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, expected)
    if version in _VERIFIED:
        return expected
    digest = sha256_of(path)
    if digest == expected:
        _VERIFIED.add(version)
    return digest


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in the file. Raises DataError; `what` describes the folder it belongs to."""
    if not path.exists():
        raise DataError(f"{path.parent} is not {what}: {path.name} is missing")
    need_regular(path)
    if path.stat().st_size > LARGEST_JSON:
        cause = f"{path} has {path.stat().st_size:,} bytes, too many for {what}"
        raise DataError(cause, _restore(path.parent))
    try:
        value = json.loads(path.read_bytes().decode())
    # JSON errors, other encodings, numbers with too many digits, too many brackets
    except (ValueError, RecursionError) as error:
        cause = f"{path} is damaged: {str(error) or type(error).__name__}"
        raise DataError(cause, _restore(path.parent)) from None
    if not isinstance(value, dict):
        cause = f"{path} is damaged: it holds a {type(value).__name__}, not an object"
        raise DataError(cause, _restore(path.parent))
    return value


def _restore(folder: Path) -> str:
    """A hint for a damaged file. Overwriting would be refused: without this file, nothing shows
    that the folder is ours."""
    return (
        f"restore the file from a copy, or remove {folder} and run the command that wrote it again"
    )


def check_schema(folder: Path, data: dict[str, Any], reads: int) -> None:
    """Raise DataError when `data`, read from a file of `folder`, has no schema version, or a later
    one than `reads`."""
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        cause = f"{folder} is damaged: its schema_version is {str(version)[:20]}"
        raise DataError(cause, _restore(folder))
    if version > reads:
        raise DataError(
            f"{folder} was written by a later saekit (schema {version}, this one reads {reads})",
            "pip install -U saekit",
        )


def need_regular(path: Path) -> None:
    """Raise DataError for a device, FIFO, socket or folder: opening it might never return."""
    if not path.is_file():
        raise DataError(
            f"{path} is not a regular file", "remove it, and restore the file that was there"
        )


def folder_bytes(path: Path) -> int:
    """Bytes of all files below `path`; 0 when there are none."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

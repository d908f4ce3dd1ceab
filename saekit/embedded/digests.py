"""Digests of files' contents."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

SAMPLED_ABOVE = 16 << 30  # bytes: a file up to this size is read completely, at a few GB/s
_SPAN = 1 << 20
_SAMPLES = 256
_SETTLED_S = 2.0
# (path, size, mtime, ctime, inode) -> digest, for files that this process has read.
_KNOWN: dict[tuple, str] = {}


def file_digest(path: Path) -> str:
    """16 hex digits over all of the content; above SAMPLED_ABOVE over size, mtime and 256 MiB
    spread over the file (`is_sampled`).

    A process reads a file once while its times do not change. A file written in the last two
    seconds is always read: the system's clock is too coarse to distinguish two writes.
    """
    stat = path.stat()
    version = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S
    if settled and version in _KNOWN:
        return _KNOWN[version]
    digest = _digest(path, stat.st_size, stat.st_mtime_ns)
    if settled:
        _KNOWN[version] = digest
    return digest


def is_sampled(path: Path) -> bool:
    return path.stat().st_size > SAMPLED_ABOVE


def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        if size > SAMPLED_ABOVE:
            digest = hashlib.sha256(f"{size} {mtime_ns}".encode())
            for at in range(0, size, -(-size // _SAMPLES)):
                file.seek(at)
                digest.update(file.read(_SPAN))
            file.seek(max(0, size - _SPAN))
            digest.update(file.read(_SPAN))
        elif size > 2 * _SPAN:
            digest = hashlib.file_digest(file, "sha256")
        else:
            # The format of earlier versions, which covers all of a small file: their stores and
            # revisions keep their digests.
            digest = hashlib.sha256(str(size).encode())
            digest.update(file.read(_SPAN))
            file.seek(max(0, size - _SPAN))
            digest.update(file.read(_SPAN))
    return digest.hexdigest()[:16]

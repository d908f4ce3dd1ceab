"""Array files, .npy and .npz, read strictly: the header is checked against the file before memory
is allocated. No pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from saekit.errors import DataError, MissingError, unreadable
from saekit.harvesting.documents import refuse_pointer

# A zip member can grow by up to 1032 times. Above both of these, a file of a few MB is more likely
# an attack than data.
_LARGEST_BOMB, _LARGEST_RATIO = 1 << 29, 200
_LONGEST_HEADER = 10_000


def load_array(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """(x, labels or None): a .npy is memory-mapped, a .npz gives its array x and perhaps y. Raises
    MissingError, DataError."""
    if not path.is_file():
        raise MissingError(f"no array file at {path}", "give a .npy or .npz file")
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz"):
        raise DataError(
            f"{path} is not an array file",
            "save it with numpy.save (.npy) or numpy.savez (.npz, arrays x and y)",
        )
    x, y = None, None
    refuse_pointer(path)
    with unreadable(
        f"{path} cannot be read as an array", "save it with numpy.save, without objects"
    ):
        if suffix == ".npy":
            with path.open("rb") as file:
                _check_header(path, file, path.stat().st_size)
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            x, y = _archive(path)
    _check(path, x, y)
    with unreadable(
        f"{path}: the labels y cannot be read", "save them with numpy, as numbers or text"
    ):
        return x, None if y is None else [_label(value) for value in y]


def _archive(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if {"data", "shape", "format"} <= members.keys():
            hint = (
                f"numpy.save('x.npy', scipy.sparse.load_npz('{path.name}').toarray()) makes it"
                " dense"
            )
            raise DataError(f"{path} holds a sparse matrix of SciPy, which is not supported", hint)
        if "x" not in members:
            raise DataError(
                f"{path} has no array x; it holds {', '.join(members) or 'none'}",
                "numpy.savez(path, x=..., y=...)",
            )
        arrays = {}
        for name in ("x", "y"):
            if name not in members:
                continue
            info = members[name]
            if (
                info.file_size > _LARGEST_BOMB
                and info.file_size > _LARGEST_RATIO * info.compress_size
            ):
                raise DataError(
                    f"{path}: array {name} grows from {info.compress_size:,} to {info.file_size:,}"
                    " bytes",
                    "save it uncompressed, with numpy.save",
                )
            with archive.open(info) as file:
                _check_header(path, file, info.file_size)
            with archive.open(info) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays["x"], arrays.get("y")


def _check_header(path: Path, file: IO[bytes], size: int) -> None:
    """The values that the header declares must fill the rest of the `size` bytes exactly."""
    form = np.lib.format
    version = form.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise DataError(
            f"{path} cannot be read as an array: version {version} is unknown",
            "save it with numpy.save",
        )
    read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise DataError(
            f"{path} cannot be read as an array: it holds Python objects",
            "save it with numpy.save, without objects",
        )
    values = 1
    for length in shape:
        if not isinstance(length, int) or length < 0:
            raise DataError(
                f"{path} cannot be read as an array: its shape is {shape}",
                "save it with numpy.save",
            )
        values *= length
    declared, actual = values * dtype.itemsize, size - file.tell()
    if declared != actual:
        raise DataError(
            f"{path} cannot be read as an array: its header declares {declared:,} bytes of values,"
            f" but it has {actual:,}",
            "save it again with numpy.save",
        )


def _check(path: Path, x: np.ndarray, y: np.ndarray | None) -> None:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {x.dtype}, not numbers", "save integers or floats")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(f"{path} has the shape {x.shape}", "give (N,D), (N,T,D) or (N,H,W,C)")
    if y is not None and y.shape != x.shape[:1]:
        raise DataError(
            f"{path}: y has the shape {y.shape}, and x {len(x):,} entries",
            "give one label per entry",
        )


def _label(value: np.generic) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.item()).encode("utf-8", "backslashreplace").decode()

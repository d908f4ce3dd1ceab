"""Files that torch.save wrote, read without running their code.

torch reads them with weights_only=True, which builds tensors, numbers, strings and plain containers
and nothing else: a pickle that would run code, and a TorchScript archive, is refused.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.store.files import need_regular
from saekit.store.oserrors import reading

SUFFIXES = (".pt", ".pth")
# what the reader raises for bytes that are not such a file
MALFORMED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
)
Tensors = dict[str, torch.Tensor]


def read_plain(path: Path, skip: int = 0) -> Any:
    """What a file holds after its first `skip` bytes. Raises DataError, with the reason, for a file
    that would need to run code, or that is damaged."""
    with reading(path), warnings.catch_warnings(action="ignore", category=UserWarning):
        need_regular(path)
        try:
            if skip:  # the reader of zip files needs the archive by itself
                with open(path, "rb") as file:
                    file.seek(skip)
                    source = io.BytesIO(file.read())
            else:
                source = path
            return torch.load(source, map_location="cpu", weights_only=True)
        except MALFORMED as error:
            raise _refusal(path, str(error) or repr(error)) from None


def _refusal(path: Path, reason: str) -> DataError:
    """`reason` is torch's text, which ends with advice to run the code."""
    if needed := re.search(
        r"GLOBAL (\S+)|`(\S+)` is not supported|Unsupported class (\S+)", reason
    ):
        name = next(filter(None, needed.groups()))
        return DataError(
            f"{path} does not load as plain tensors: opening it would run {name}",
            "get it as safetensors; saekit does not run the code of a pickle",
        )
    if "TorchScript" in reason:
        cause = "it is a TorchScript archive, which is code"
    elif named := re.search(r"WeightsUnpickler error: (.+)", reason):
        cause = named[1]
    else:
        lines = [line.strip() for line in reason.splitlines() if "False" not in line]
        cause = next(filter(None, lines), "it is not a file of torch.save")
    return DataError(
        f"{path} does not load as plain tensors: {cause}",
        "download it again, or get it as safetensors",
    )


def read_tensors(path: Path) -> Tensors:
    """A state dict. Raises DataError for anything else than a dict of tensors."""
    return need_tensors(path, read_plain(path))


def need_tensors(path: Path, state: Any) -> Tensors:
    """`state`, if it is a dict of dense tensors. Raises DataError otherwise."""
    if not isinstance(state, dict) or not all(map(_is_dense, state.values())):
        raise DataError(f"{path} does not hold a dict of dense tensors")
    return state


def glance(path: Path) -> dict[str, Any]:
    """The dict in a file, its tensors mapped from the disk and not read; {} for any other file."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return {}
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (*MALFORMED, OSError):
        return {}
    return state if isinstance(state, dict) else {}


def _is_dense(value: Any) -> bool:
    """Whether it is a tensor with values of its own, rather than a sparse one or only a shape."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _is_zip(path: Path) -> bool:
    """Only files of torch >= 1.6 can be mapped."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"

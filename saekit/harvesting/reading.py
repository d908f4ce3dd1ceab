"""The two boundaries between transformers and a user: reading a model's files, and running its
forward pass.

transformers and the code below it may raise anything (SafetensorError, RuntimeError,
AttributeError, IndexError ...). Failures inside them on a user's model or data are for the user to
fix, so each boundary turns any exception into a DataError or MissingError with the model, the
original line and a next step, and keeps the original as its cause. Failures in saekit's own code
are not converted: they are bugs.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saekit.errors import BackendError, DataError, MissingError, SaekitError, opt
from saekit.harvesting.damage import damage, first_line

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_FILES = {
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
    ),
    "image processor": ("preprocessor_config.json", "processor_config.json"),
}  # the hint names the first
_ROOM = 50_000_000  # numbers that any config may request: 200 MB


@contextmanager
def model_reading(what: str, name: str, where: str) -> Iterator[None]:
    """Around the reading of `what` ("model", "tokenizer", "image processor") of `name` from
    `where`: any failure becomes a SaekitError."""
    try:
        yield
    except SaekitError:
        raise
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise reading_error(what, name, where, error) from error


def _is_failure(error: BaseException) -> bool:
    """An exception, or a panic of the Rust code below tokenizers and safetensors, which is a
    BaseException; never Ctrl-C."""
    return isinstance(error, Exception) or type(error).__module__.startswith("pyo3")


def reading_error(what: str, name: str, where: str, error: BaseException) -> SaekitError:
    """The error for the user when transformers raised `error` while it read `what` from `where`."""
    # Memory, and code in the model's folder.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return BackendError(
            f"{name} does not fit into memory: {first_line(error)}",
            f"choose a smaller model or {opt('device', 'cpu')}",
        )
    if "trust_remote_code" in str(error):
        return DataError(
            f"the {what} of {name} needs code from its own folder, which saekit does not run by"
            " default",
            f"read that code, then allow it with {opt('trust_remote_code', True)}",
        )
    # Damaged or missing files of a local folder.
    local = _local_folder(where)
    if local and (fault := damage(local, what)):
        return DataError(f"the {what} of {name} cannot be read: {fault[0]}", fault[1])
    if (
        local
        and what in _FILES
        and not any(
            file.name in _FILES[what] or file.suffix == ".model" for file in local.iterdir()
        )
    ):
        return MissingError(f"{name} has no {what}", f"put {_FILES[what][0]} beside its weights")
    # Missing packages, models and files.
    if isinstance(error, ModuleNotFoundError) and error.name:
        return MissingError(
            f"the {what} of {name} needs the package {error.name}: {first_line(error)}",
            f"pip install {error.name}",
        )
    if isinstance(error, ImportError):
        return MissingError(
            f"the {what} of {name} needs a package that is not installed: {first_line(error)}",
            "install that package",
        )
    if isinstance(error, OSError) and not Path(where).is_dir() and "valid JSON" not in str(error):
        return not_found(what, name, error)
    if isinstance(error, FileNotFoundError):
        return MissingError(
            f"a file of {name} is missing: {first_line(error)}", "copy or download that file again"
        )
    if isinstance(error, OSError) and "no file named" in str(error):
        return MissingError(
            f"{name} holds no weights: {first_line(error)}",
            "save the model with model.save_pretrained(FOLDER)",
        )
    if isinstance(error, PermissionError):
        return DataError(
            f"{error.filename or name} may not be read: {first_line(error)}",
            f"chmod -R u+rX {where}",
        )
    return _cannot_load(what, name, local, error)


def _cannot_load(what: str, name: str, local: Path | None, error: BaseException) -> DataError:
    """For any other error."""
    of = "" if what == "model" else f"the {what} of "
    hint = (
        "saekit reads text decoders, text encoders and vision transformers that transformers knows"
    )
    if local and not isinstance(error, ValueError):
        hint = (
            f"check {local / 'config.json'}, or save the model again with"
            " model.save_pretrained(FOLDER)"
        )
    if what != "model":
        hint = (
            f"save the {what} again with save_pretrained(FOLDER), or copy its files from where the"
            " model came from"
        )
    return DataError(f"{of}{name} cannot be loaded by transformers: {_described(error)}", hint)


@contextmanager
def forward_pass(
    name: str, inputs: dict[str, torch.Tensor], known: tuple[str, str] | None = None
) -> Iterator[None]:
    """Around a forward pass of the model `name`: any failure becomes a SaekitError. `known` is
    (cause, hint) of a likely failure (sizes of images)."""
    try:
        yield
    except SaekitError:
        raise
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"{name} ran out of memory: {first_line(error)}",
            f"a smaller {opt('batch')} or {opt('ctx')}",
        ) from error
    except Exception as error:
        if _raised_by_saekit(error):
            raise
        shapes = ", ".join(
            f"{key} {'x'.join(map(str, value.shape))}"
            for key, value in inputs.items()
            if torch.is_tensor(value)
        )
        cause, hint = known or (
            f"{name} fails in its forward pass on {shapes}",
            "check that the model runs in transformers by itself",
        )
        raise DataError(f"{cause}: {_described(error)}", hint) from error


def _raised_by_saekit(error: Exception) -> bool:
    """Whether the innermost line is saekit's: an error in a hook of ours is a bug of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)


def not_found(what: str, name: str, error: BaseException) -> MissingError:
    """The MissingError for a hub id that failed with `error`: not found, gated, or unreachable; the
    message says whether offline mode is on."""
    from huggingface_hub import constants

    text = str(error).lower()
    if constants.HF_HUB_OFFLINE:
        return MissingError(
            f"{what} {name} is not a folder here and not in the local cache, and offline mode is on"
            " (HF_HUB_OFFLINE=1)",
            f"unset HF_HUB_OFFLINE, give a local folder, or choose an embedded {what}"
            " (embedded:NAME)",
        )
    if "gated" in text or "401" in text or "403" in text:
        token = "a token is set" if os.environ.get("HF_TOKEN") else "no token is set"
        return MissingError(
            f"{what} {name} is gated or private, or does not exist ({token}; offline mode is off)",
            "ask for access on its hub page, then run hf auth login",
        )
    if "connect" in text or "reach" in text:
        return MissingError(
            f"{what} {name} is not a folder here and not in the local cache, and the hub cannot be"
            " reached (offline mode is off)",
            f"check the network, or give a local folder or an embedded {what} (embedded:NAME)",
        )
    return MissingError(
        f"{what} {name} was not found: {first_line(error)} (offline mode is off)",
        f"check the id and the network, or give a local folder or an embedded {what}"
        " (embedded:NAME)",
    )


def _described(error: BaseException) -> str:
    """With the class of errors whose text means nothing by itself: KeyError's is `'model_type'`."""
    line = first_line(error)
    return (
        line
        if isinstance(error, OSError | ValueError | RuntimeError) and line
        else f"{type(error).__name__}: {line}"
    )


def check_sizes(config: Any, name: str, where: str) -> None:
    """Raise DataError, before memory is allocated, for a local config that requests far more
    numbers than the weights beside it hold.

    transformers allocates memory for weights that a file lacks, so a config of a few bytes could
    fill the machine. Every pair below is a matrix of an ordinary model, with at least 4 bits per
    number.
    """
    if not Path(where).is_dir():
        return
    weight_bytes = sum(
        file.stat().st_size
        for file in Path(where).iterdir()
        if file.is_file() and file.suffix in (".safetensors", ".bin")
    )
    if not weight_bytes:
        return  # transformers names the files that it looked for
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    for other in ("vocab_size", "intermediate_size", "num_hidden_layers", "hidden_size"):
        size = getattr(text, other, None)
        if not isinstance(width, int) or not isinstance(size, int):
            continue
        if width * size > 2 * weight_bytes + _ROOM:
            raise DataError(
                f"the config of {name} says hidden_size {width} and {other} {size}, but its weights"
                f" are {weight_bytes:,} bytes in all",
                "put the model's own config.json beside its weights",
            )


def _local_folder(where: str) -> Path | None:
    """The folder of a local model, or of a hub id's snapshot in the cache."""
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(where, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None

"""GGUF files as ordinary model folders, dequantized once.

transformers reads a GGUF by dequantizing every tensor in numpy, which takes 15 to 30 s for 135M
parameters, on every load. The result is therefore stored as fp32 safetensors beside its tokenizer
in a cache folder, from which the same model loads in 0.2 s. This takes four bytes of disk per
parameter. The key is a digest of the content, so that a changed GGUF never uses an old cache.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from saekit.embedded.digests import file_digest
from saekit.embedded.gguf_header import check_gguf
from saekit.embedded.silence import quiet_transformers
from saekit.embedded.weights import check_weights, load_weights, weights_of_file
from saekit.errors import DataError, MissingError, unreadable

__all__ = ["cache_dir", "dequantized_folder", "file_digest"]

CACHE_SCHEMA = 2  # increase when the content of a cached folder changes
# file -> [bytes, mtime, sha256]; written last, so that a folder with it is complete
_CONTENTS = "contents.json"
_ABANDONED_S = 3600.0  # seconds: an older half-written folder belongs to a process that died


def cache_dir() -> Path:
    """$SAEKIT_CACHE, else $XDG_CACHE_HOME/saekit, else ~/.cache/saekit."""
    if folder := os.environ.get("SAEKIT_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "saekit"
    return Path.home() / ".cache" / "saekit"


def dequantized_folder(gguf: Path) -> Path:
    """The folder with `gguf`'s weights in fp32 and its tokenizer, written on the first call.

    Safe when processes race: every process writes a temporary folder and renames it; the first
    wins, the others discard theirs. Raises MissingError without the gguf and accelerate packages,
    DataError when the file is not a GGUF of a causal language model.
    """
    final = cache_dir() / "models" / f"{gguf.stem}-{file_digest(gguf)}-v{CACHE_SCHEMA}"
    if _is_whole(final):
        return final
    _require_packages()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        partial = Path(tempfile.mkdtemp(prefix=final.name + ".partial-", dir=final.parent))
    except OSError as error:
        raise _unwritable(final.parent, error) from error
    try:
        _convert(gguf, partial)
        _list_contents(partial)
        _publish(partial, final)
    except OSError as error:
        raise _unwritable(final.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _publish(partial: Path, final: Path) -> None:
    """Rename `partial` to `final`. A damaged folder of that name is moved away; a complete one was
    written by a faster process and stays."""
    for _ in range(3):
        try:
            partial.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if _is_whole(final):
            return
        aside = Path(tempfile.mkdtemp(prefix=final.name + ".partial-", dir=final.parent))
        try:
            final.rename(aside / "damaged")
        except FileNotFoundError:
            pass  # another process moved it
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(final))


def _list_contents(folder: Path) -> None:
    contents = {}
    for file in sorted(folder.iterdir()):
        stat = file.stat()
        contents[file.name] = [stat.st_size, stat.st_mtime_ns, _sha256(file)]
    (folder / _CONTENTS).write_text(json.dumps(contents, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Whether all files are as they were written, by size and time, or else by content."""
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        for name, (size, mtime_ns, sha256) in contents.items():
            stat = (folder / name).stat()
            if stat.st_size != size or (
                stat.st_mtime_ns != mtime_ns and _sha256(folder / name) != sha256
            ):
                return False
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return bool(contents)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the cache {folder} cannot be written: {error.strerror or error}",
        "set SAEKIT_CACHE to a folder with room",
    )


def _require_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            f"reading a .gguf file needs the package{'s' * (len(missing) > 1)}"
            f" {' and '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )


def _sweep(final: Path) -> None:
    for partial in final.parent.glob(final.name + ".partial-*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(partial, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(gguf)
    folder_of_gguf, file_name = str(gguf.parent), gguf.name
    hint = (
        "use a GGUF of an architecture that transformers supports, or the unquantized model folder"
    )
    with quiet_transformers():
        with unreadable(f"{gguf} cannot be read as a language model", hint):
            tokenizer = AutoTokenizer.from_pretrained(
                folder_of_gguf, gguf_file=file_name, trust_remote_code=False
            )
            loaded, report = load_weights(
                AutoModelForCausalLM, folder_of_gguf, gguf_file=file_name, dtype=torch.float32
            )
            has_head = check_weights(loaded, report, str(gguf), head=True)
        # transformers refuses to save a model that it considers quantized; the tensors are fp32.
        model: Any = loaded
        for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
        model.save_pretrained(folder, state_dict=weights_of_file(model, has_head))
        tokenizer.save_pretrained(folder)

"""GGUF files as ordinary model folders, dequantised once.

transformers reads a GGUF by dequantising every tensor in numpy, which takes 15 to 30 s for 135M parameters, on every load. The
result is therefore kept as fp32 safetensors beside its tokenizer in a cache folder, from which the same logits load in 0.2 s. The
price is disk: four bytes a parameter. The key is a digest of the file, so that a changed GGUF never meets an old cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

from saekit.embedded.silence import quiet_transformers
from saekit.embedded.weights import check_weights, load_weights, weights_of_file
from saekit.errors import DataError, MissingError

CACHE_SCHEMA = 1  # raise when the content of a cached folder changes
_DIGEST_SPAN = 1 << 20  # bytes read from each end of a file for its digest
_ABANDONED_S = 3600.0  # a half-written folder this old belongs to a process that died


def cache_dir() -> Path:
    """$SAEKIT_CACHE, else $XDG_CACHE_HOME/saekit, else ~/.cache/saekit."""
    if own := os.environ.get("SAEKIT_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "saekit"
    return Path.home() / ".cache" / "saekit"


def file_digest(path: Path) -> str:
    """16 hex digits over size, first and last MiB: cheap for files of any size, and different whenever weights were retrained."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_DIGEST_SPAN))
        file.seek(max(0, size - _DIGEST_SPAN))
        digest.update(file.read(_DIGEST_SPAN))
    return digest.hexdigest()[:16]


def dequantised_folder(gguf: Path) -> Path:
    """The folder with `gguf`'s weights in fp32 and its tokenizer, made on the first call.

    Safe when processes race: each writes its own temporary folder and renames it; the first wins, the others discard theirs.
    Raises MissingError without the gguf and accelerate packages, DataError when the file is no GGUF of a causal language model.
    """
    final = cache_dir() / "models" / f"{gguf.stem}-{file_digest(gguf)}-v{CACHE_SCHEMA}"
    if final.is_dir():
        return final
    _require_packages()
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    partial = Path(tempfile.mkdtemp(prefix=final.name + ".partial-", dir=final.parent))
    try:
        _convert(gguf, partial)
        partial.rename(final)
    except OSError:
        if not final.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _require_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            f"reading a .gguf file needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )


def _sweep(final: Path) -> None:
    for left in final.parent.glob(final.name + ".partial-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
            model, report = load_weights(AutoModelForCausalLM, str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise DataError(
                f"{gguf} cannot be read as a language model: {error}",
                "use a GGUF of an architecture that transformers supports, or the unquantised model folder",
            ) from error
        has_head = check_weights(model, report, str(gguf), head=True)
        # transformers refuses to save what it thinks is still quantised; the tensors are plain fp32 by now.
        for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
        model.save_pretrained(folder, state_dict=weights_of_file(model, has_head))
        tokenizer.save_pretrained(folder)

"""A model in memory as a LiveModel, and the model of a store that came from memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saekit.embedded.weights import output_embeddings
from saekit.errors import DataError, MissingError
from saekit.harvesting.anatomy import plain
from saekit.harvesting.kinds import check_input, kind_of
from saekit.harvesting.location import SAVE
from saekit.harvesting.models import FromFolder, LiveModel, assemble, load_model
from saekit.types import IN_MEMORY, ActivationSpec

REVISION = "weights:"  # prefix of the revision of a model in memory
# Keys of a config that say where the model came from or what it returns, not what it computes.
_NOT_COMPUTED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "_attn_implementation",
    }
)


def live_model(
    module: nn.Module, processor: Any = None, *, trust_remote_code: bool = False
) -> LiveModel:
    """A transformers model in memory, ready to be read from. The module stays on its device and
    keeps its mode and its hooks.

    `processor` is its tokenizer or image processor (or a Processor that holds one); None: the one
    in the place that the model was loaded from. The name is that place (`config._name_or_path`),
    else the class. The revision is `weights:` with a digest of weights and config. Raises DataError
    for a module that is not a transformers model of text or images, MissingError for an image model
    without a processor.
    """
    module = plain(module)
    config = getattr(module, "config", None)
    if not hasattr(config, "model_type"):
        raise DataError(
            f"{type(module).__name__} is not a transformers model: it has no config that says what"
            " input it takes",
            "run it yourself inside saekit.capture(model, hooks), and train on those rows",
        )
    origin = getattr(config, "_name_or_path", "") or ""
    name = origin or f"{type(module).__name__}{IN_MEMORY}"
    kind = kind_of(config, name, type(module).__name__)
    check_input(module, kind, name)
    has_head = kind == "causal_lm" and output_embeddings(module) is not None
    if processor is None and origin:
        processor = FromFolder(origin, trust_remote_code)
    if processor is None and kind == "vision":
        raise MissingError(f"{name} has no image processor", "give one with processor=")
    return assemble(
        module, kind, name, f"{REVISION}{weights_digest(module)}", processor, has_head=has_head
    )


def load_model_of(
    spec: ActivationSpec,
    device: str | torch.device = "cpu",
    given: nn.Module | None = None,
    processor: Any = None,
) -> LiveModel:
    """The model that a store's rows came from, by its spec, or `given`, with its `processor` as
    `live_model` takes it.

    A model that was in memory is loaded from the place that it was loaded from, and must have the
    same weights; so must a given one. Raises the errors of `load_model`, and MissingError when the
    weights differ.
    """
    from_memory = spec.revision is not None and spec.revision.startswith(REVISION)
    if given is None:
        commit = spec.revision if re.fullmatch("[0-9a-f]{40}", spec.revision or "") else None
        live = load_model(spec.model, device, revision=commit)
    else:
        live = live_model(given, processor)
    if not from_memory:
        return live
    revision = f"{REVISION}{weights_digest(live.module)}"
    if revision != spec.revision:
        where = "the one given" if given is not None else spec.model
        raise MissingError(
            f"the rows came from a model in memory ({spec.revision}), and {where} has other weights"
            f" ({revision})",
            SAVE,
        )
    return dataclasses.replace(live, revision=revision)


def weights_digest(module: nn.Module) -> str:
    """16 hex digits over the config and the weights that hidden states come from: those of the base
    model, without a head.

    16-bit weights have the digest of the same values in float32. About 1 s per GB.
    """
    config: Any = module.config
    settings = json.dumps(_computed(config.to_dict()), sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(getattr(module, "base_model", module).state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _computed(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: _computed(value)
            for key, value in config.items()
            if key not in _NOT_COMPUTED and value is not None
        }
    return config


def saved_files(processor: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` of a tokenizer or image processor writes, by path."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def processor_digest(processor: Any) -> str:
    """16 hex digits over all that `save_pretrained` writes."""
    digest = hashlib.sha256()
    for name, content in saved_files(processor).items():
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]

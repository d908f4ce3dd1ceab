"""A path -> a published dictionary, in the format that its content shows or that is asked for; or a
checkpoint, ours or theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from saekit.errors import DataError, MissingError, check_choice
from saekit.interop import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llamascopium,
    openai,
    pickles,
    qwen_scope,
    saelens,
    saev,
    sparsify,
    temporal,
    vit_prisma,
)
from saekit.interop.dictionary import Published
from saekit.store.checkpoint import Checkpoint, read_checkpoint
from saekit.store.oserrors import reading
from saekit.types import SPEC_SCHEMA


class Format(NamedTuple):
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Published]


FORMATS = {
    "saelens": Format(saelens.recognizes, saelens.read),
    "sparsify": Format(sparsify.recognizes, sparsify.read),
    "dictionary_learning": Format(dictionary_learning.recognizes, dictionary_learning.read),
    "gemma_scope": Format(gemma_scope.recognizes, gemma_scope.read),
    "gemma_scope_2": Format(gemma_scope_2.recognizes, gemma_scope_2.read),
    "circuit_tracer": Format(circuit_tracer.recognizes, circuit_tracer.read),
    "openai": Format(openai.recognizes, openai.read),
    "llama_scope": Format(llama_scope.recognizes, llama_scope.read),
    "llamascopium": Format(llamascopium.recognizes, llamascopium.read),
    "qwen_scope": Format(qwen_scope.recognizes, qwen_scope.read),
    "goodfire": Format(goodfire.recognizes, goodfire.read),
    "deepseek_r1": Format(goodfire.recognizes_deepseek_r1, goodfire.read_deepseek_r1),
    "saev": Format(saev.recognizes, saev.read),
    "temporal": Format(temporal.recognizes, temporal.read),
    "vit_prisma": Format(vit_prisma.recognizes, vit_prisma.read),
}


def open_published(path: str | Path, format: str | None = None) -> Published:
    """The dictionary at a local file or folder.

    format: a name in FORMATS; None: the one that the content shows. Raises MissingError where
    nothing is there, DataError for an unknown format, a damaged file or a dictionary that saekit
    does not compute exactly, UsageError for another `format`.
    """
    path = Path(path)
    if format is not None:
        check_choice("format", format, FORMATS)
    with reading(path):
        exists = path.exists()
    if not exists:
        raise MissingError(f"there is no dictionary at {path}", "give its folder or file")
    format = format or recognized(path)
    if format is None:
        raise DataError(
            f"{path} is not a dictionary in a format that saekit knows",
            f"these are {', '.join(FORMATS)}; docs/published.md says which files each has",
        )
    return FORMATS[format].read(path)


def recognized(path: Path) -> str | None:
    """The name of the format that the content shows; None for files of no known one. Raises
    DataError for a pickled file that does not load without running its code."""
    with reading(path):
        if not path.exists():
            return None
    name = next((name for name, format in FORMATS.items() if format.recognizes(path)), None)
    if name is None and path.suffix in pickles.SUFFIXES and path.is_file():
        pickles.read_plain(path)
    return name


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint folder of saekit, or a published dictionary as the checkpoint that an import of
    it would write. Raises what `read_checkpoint` and `open_published` raise."""
    if (format := recognized(Path(path))) is None:
        return read_checkpoint(path)
    dictionary = open_published(path, format)
    return Checkpoint(Path(path), description(dictionary), dictionary.tensors)


def description(dictionary: Published) -> dict[str, Any]:
    """config.json of a checkpoint, with null for what a published dictionary does not say."""
    origin, config = dictionary.origin, dictionary.config
    unknown = ("modality", "dtype", "layout", "scope", "grid", "seed")
    spec = dict.fromkeys(unknown) | {
        "model": origin.base_model,
        "revision": origin.revision,
        "hook": origin.hook,
        "d_in": config["d_in"],
        "dataset": origin.dataset,
        "context": origin.context,
        "schema_version": SPEC_SCHEMA,
    }
    result = dict.fromkeys(("step", "rows", "rows_per_s", "backend"))
    return {
        "model": dictionary.model,
        "config": config,
        "training": {},
        "spec": spec,
        "fingerprint": None,
        "content": None,
        "input_scale": None,
        "backend": {"name": None},
        "result": result | {"path": "", "metrics": {}},
        "versions": {name: version(name) for name in ("saekit", "torch")},
        "published": asdict(origin),
    }

"""A path or name -> a published dictionary, in the format that its content shows or that is asked
for; or a checkpoint, ours or theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from saekit.errors import DataError, MissingError, check_choice, opt
from saekit.interop import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hook_z,
    hub,
    llama_scope,
    llamascopium,
    openai,
    pickles,
    qwen_scope,
    registry,
    saelens,
    saev,
    sparsify,
    temporal,
    vit_prisma,
)
from saekit.interop.dictionary import Files, Published, read_safetensors
from saekit.interop.registry import FORMAT_OF, INSTEAD, Entry, completed, resolve
from saekit.store.checkpoint import CONFIG, Checkpoint, read_checkpoint
from saekit.store.folder_kinds import RUN
from saekit.store.oserrors import reading
from saekit.store.swap import settle
from saekit.types import SPEC_SCHEMA
from saekit.versions import versions


class Format(NamedTuple):
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Published]
    files: Files


FORMATS = {
    "saelens": Format(saelens.recognizes, saelens.read, saelens.FILES),
    "sparsify": Format(sparsify.recognizes, sparsify.read, sparsify.FILES),
    "dictionary_learning": Format(
        dictionary_learning.recognizes, dictionary_learning.read, dictionary_learning.FILES
    ),
    "gemma_scope": Format(gemma_scope.recognizes, gemma_scope.read, gemma_scope.FILES),
    "gemma_scope_2": Format(gemma_scope_2.recognizes, gemma_scope_2.read, gemma_scope_2.FILES),
    "circuit_tracer": Format(circuit_tracer.recognizes, circuit_tracer.read, circuit_tracer.FILES),
    "openai": Format(openai.recognizes, openai.read, openai.FILES),
    "llama_scope": Format(llama_scope.recognizes, llama_scope.read, llama_scope.FILES),
    "llamascopium": Format(llamascopium.recognizes, llamascopium.read, llamascopium.FILES),
    "qwen_scope": Format(qwen_scope.recognizes, qwen_scope.read, qwen_scope.FILES),
    "hook_z": Format(hook_z.recognizes, hook_z.read, hook_z.FILES),
    "goodfire": Format(goodfire.recognizes, goodfire.read, goodfire.FILES),
    "deepseek_r1": Format(
        goodfire.recognizes_deepseek_r1, goodfire.read_deepseek_r1, goodfire.FILES
    ),
    "saev": Format(saev.recognizes, saev.read, saev.FILES),
    "temporal": Format(temporal.recognizes, temporal.read, temporal.FILES),
    "vit_prisma": Format(vit_prisma.recognizes, vit_prisma.read, vit_prisma.FILES),
}


def open_published(src: str | Path, format: str | None = None) -> Published:
    """The dictionary at a local file or folder, or of a name: `hf:OWNER/REPO[@REV]/PATH`,
    `saelens:RELEASE/SAE_ID`.

    format: a name in FORMATS; None: the one that the registry or the content shows. Raises
    MissingError where nothing is there, DataError for an unknown format, a damaged file or a
    dictionary that saekit does not compute exactly, UsageError for another `format`.
    """
    if format is not None:
        check_choice("format", format, FORMATS)
    source = locate(src, format)
    with reading(source.path):
        exists = source.path.exists()
    if not exists:
        raise MissingError(f"there is no dictionary at {src}", "give its folder, file or name")
    if source.format is None:
        format = recognized(source.path)
        if format is None:
            raise told_apart(src, source.path) or DataError(
                f"{src} is not a dictionary in a format that saekit knows",
                f"these are {', '.join(FORMATS)}; docs/published.md says which files each has",
            )
    else:
        format = source.format
        _check_files(src, source.path, format)
    entry = source.entry
    if entry is not None and format == "saelens":
        dictionary = saelens.read(source.path, entry.overrides)
    else:
        dictionary = FORMATS[format].read(source.path)
    origin = dictionary.origin if entry is None else completed(dictionary.origin, entry)
    return replace(dictionary, origin=replace(origin, **source.place))


def _check_files(src: str | Path, path: Path, format: str) -> None:
    """Raise DataError where a folder has none of the format's files of tensors, with the format
    that it does have."""
    names = FORMATS[format].files.folder
    if not path.is_dir() or not names or any(any(path.glob(name)) for name in names):
        return
    actual = recognized(path)
    hint = "give the folder of the dictionary" if actual is None else opt("format", actual)
    raise DataError(f"{src} has no {' or '.join(names)}, as {format} dictionaries do", hint)


LOOKED_AT, SHOWN = 500, 3  # paths inside a folder; dictionaries that an error names


def told_apart(src: str | Path, path: Path) -> DataError | None:
    """The error for files of no known format that says more than this: a damaged file, or the
    dictionaries inside a folder that is not one. None: there are none."""
    inside = sorted(islice(path.rglob("*"), LOOKED_AT)) if path.is_dir() else [path]
    here = [file for file in inside if file.is_file() and file.parent in (path, path.parent)]
    # an incomplete download
    for file in here:
        try:
            if file.suffix == ".safetensors":
                read_safetensors(file)
            elif file.suffix in pickles.SUFFIXES:
                pickles.read_plain(file)
        except DataError as error:
            return error
    # a folder above dictionaries
    others = [other for other in inside if other != path and recognized(other) is not None]
    if not others:
        return None
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    names = ", ".join(map(str, others[:SHOWN]))
    return DataError(f"{src} is not a dictionary; there are some inside", f"{names}{more}")


class Source(NamedTuple):
    path: Path
    """On this machine."""
    format: str | None
    """None: its content decides."""
    entry: Entry | None
    """Of a name in SAELens' registry."""
    place: dict[str, str]
    """Fields of Origin that say where the files are from; empty for local ones."""


def locate(src: str | Path, format: str | None = None) -> Source:
    """The files of a path or name, fetched where they are not here yet. Raises MissingError,
    UsageError; DataError for an entry of the registry in a format that saekit does not read."""
    if not is_name(src):
        return Source(Path(src), format, None, {})
    entry = resolve(str(src)) if str(src).startswith(registry.PREFIX) else None
    if entry is None:
        name = hub.parsed(str(src))
    else:
        format, name = format or format_of(entry), hub.HubName(entry.repo, None, entry.path)
    formats = FORMATS if format is None else {format: FORMATS[format]}
    fetched = hub.fetch(name, {name: format.files for name, format in formats.items()})
    place = {"source": str(src), "repo": fetched.repo, "commit": fetched.commit}
    return Source(fetched.path, format, entry, place)


def is_name(src: object) -> bool:
    """Whether it names a dictionary on the hub, rather than a local path."""
    return isinstance(src, (str, Path)) and str(src).startswith((hub.PREFIX, registry.PREFIX))


def format_of(entry: Entry) -> str:
    """The name in FORMATS. Raises DataError, with SAELens' name for the format, where there is
    none."""
    if (format := FORMAT_OF.get(entry.loader)) in FORMATS:
        return str(format)
    raise DataError(
        f"{entry.name} is in the format {entry.loader} of SAELens, which saekit does not read",
        INSTEAD.get(entry.loader, "docs/published.md lists what opens").format(
            repo=entry.repo, path=entry.path
        ),
    )


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


def open_checkpoint(src: str | Path) -> Checkpoint:
    """A checkpoint folder of saekit, or a published dictionary, by its path or name, as the
    checkpoint that an import of it would write. Raises what `read_checkpoint` and `open_published`
    raise."""
    path = Path(src)
    if not is_name(src) and recognized(path) is None:
        if path.is_dir() and not any((path / name).exists() for name in (CONFIG, RUN.marker)):
            settle(path, RUN)  # a replacement that a kill cut short
            if not (path / CONFIG).exists() and (error := told_apart(src, path)) is not None:
                raise error
        return read_checkpoint(src)
    dictionary = open_published(src)
    return Checkpoint(Path(src), description(dictionary), dictionary.tensors, own=False)


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
        "versions": versions(),
        "published": asdict(origin),
    }

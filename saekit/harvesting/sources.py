"""DATA of any kind to documents: an embedded set, a file, a folder, a hub dataset, or objects
(saekit.harvesting.memory_data).

There are two kinds of data. Data that can be listed (embedded sets, paragraphs of a .txt, folders)
is visited in an order shuffled by `seed`, so that the first rows of a harvest are a fair sample of
all of it. Data that can only be streamed (jsonl, csv, parquet, the hub) keeps its order. Either way
a document's id is its index in the source, so it means the same for all seeds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saekit.embedded import data_set, is_embedded
from saekit.embedded.digests import file_digest
from saekit.errors import DataError, MissingError
from saekit.harvesting.documents import (
    Document,
    Documents,
    Modality,
    digest_of,
    readable_name,
    refuse_pointer,
)
from saekit.harvesting.folders import walk
from saekit.harvesting.listed import ListedDocuments, Listing, shuffled
from saekit.harvesting.memory_data import open_objects
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.streams import TABLES, is_saved, open_hub, open_saved, open_table
from saekit.types import IN_MEMORY, ActivationSpec

__all__ = [
    "Data",
    "Document",
    "Documents",
    "ListedDocuments",
    "open_data",
    "open_data_of",
    "shuffled",
]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


Data = str | Path | Iterable[Any]  # a name or path; or texts, images, a datasets.Dataset


def open_data(
    data: Data,
    *,
    modality: Modality,
    column: str | None = None,
    seed: int = 0,
    skip_broken: bool = False,
) -> Documents:
    """Open DATA as documents of `modality`. `column` is the field of a table that holds the text or
    image (default: the only one that does, or the one named `text` or `image`). With skip_broken,
    items that cannot be read are skipped and counted (`Documents.skipped`), else they are errors.

    Raises UsageError for an unknown embedded name, MissingError when there is nothing at `data`,
    DataError when it holds the other modality, no documents, or no such column.
    """
    # Objects, embedded sets, local files.
    if not isinstance(data, str | Path):
        return open_objects(data, modality, column, seed, skip_broken)
    data = str(data)
    if is_embedded(data):
        return _embedded(data, modality, seed)
    path = Path(data).expanduser()
    if path.is_dir():
        if is_saved(path):
            return open_saved(path, None, modality, column, skip_broken)
        return _folder(path, modality, column, seed, skip_broken)
    if path.is_file():
        return _file(path, modality, column, seed, skip_broken)
    if path.exists():
        raise DataError(
            f"{data} is neither a file nor a folder", "write the data into a file first"
        )
    if data.endswith(IN_MEMORY):
        hint = (
            f"write the {modality}s into a file or folder, and harvest from there; inspect also"
            " takes the data itself (data=...)"
        )
        raise MissingError(f"the data was {data}, and cannot be opened by its name", hint)
    # A split of a saved dataset, else the hub.
    repo, _, split = data.partition(":")
    local = Path(repo).expanduser()
    if split and local.is_dir() and is_saved(local):
        return open_saved(local, split, modality, column, skip_broken)
    suffixes = (*TEXT_SUFFIXES, *IMAGE_SUFFIXES, *TABLES)
    looks_local = (
        data.endswith(os.sep)
        or path.suffix.lower() in suffixes
        or repo.startswith((".", "~", os.sep))
    )
    if looks_local and not local.is_dir():
        raise MissingError(
            f"there is no data at {data}",
            "check the path, or use embedded:pydocs or embedded:digits",
        )
    return open_hub(
        str(local) if local.is_dir() else repo, split or "train", modality, column, skip_broken
    )


def open_data_of(spec: ActivationSpec, known: str | None, given: Data | None = None) -> Documents:
    """The data that a store was harvested from, by its spec, or `given`, which must have the digest
    `known`.

    Raises the errors of `open_data`, and DataError for other data than the store's.
    """
    data = open_data(
        spec.dataset if given is None else given,
        modality="image" if spec.modality == "image" else "text",
        column=spec.column,
        seed=spec.seed,
    )
    if given is not None and known is not None and data.digest() != known:
        raise DataError(
            f"{data.name}: not what the store was harvested from ({spec.dataset})",
            "give the same items in the same order",
        )
    return data


def _embedded(data: str, modality: Modality, seed: int) -> Documents:
    known = data_set(data)
    _need_modality(data, known.modality, modality)
    listing = Listing(
        data,
        known.names,
        known.load,
        lambda: digest_of(known.content()),
        known.label,
        known.document,
    )
    return ListedDocuments(listing, modality, seed)


def _file(
    path: Path, modality: Modality, column: str | None, seed: int, skip_broken: bool
) -> Documents:
    name, suffix = readable_name(str(path.absolute())), path.suffix.lower()
    if suffix in TABLES:
        return open_table([path], name, modality, column, skip_broken)
    _need_modality(name, "image" if suffix in IMAGE_SUFFIXES else "text", modality)
    if modality == "image":
        return _images(path.parent, [path], name, seed, skip_broken)
    if suffix not in TEXT_SUFFIXES:
        known = ", ".join((*TEXT_SUFFIXES, *TABLES))
        raise DataError(
            f"{path} is of no kind that can be read as text", f"give one of {known}, or a folder"
        )
    text = read_text(path)
    paragraphs = [part for part in re.split(r"\n[ \t\r]*\n", text) if part.strip()]
    names = [f"{readable_name(path.name)}#{index}" for index in range(len(paragraphs))]
    documents = ListedDocuments(
        Listing(name, names, paragraphs.__getitem__, lambda: file_digest(path)), "text", seed
    )
    if len(paragraphs) == 1:
        lines = sum(bool(line.strip()) for line in text.splitlines())
        count = f" ({lines:,} lines, no blank line between them)" if lines > 1 else ""
        remedy = (
            f"`sed G {path.name} > documents.txt` makes each line a document"
            if lines > 1
            else "a blank line begins another"
        )
        documents.notes += (
            f"{path} holds one document{count}: training needs two or more, to hold one out;"
            f" {remedy}",
        )
    return documents


def _folder(
    path: Path, modality: Modality, column: str | None, seed: int, skip_broken: bool
) -> Documents:
    name = readable_name(str(path.absolute()))
    contents = walk(path)
    tables = contents.having(tuple(TABLES))
    kinds = sorted({file.suffix.lower() for file in tables})
    images = contents.having(IMAGE_SUFFIXES) if modality == "image" else []
    # A README beside tables, as in every downloaded dataset, is not data; nor is a table of
    # metadata beside pictures.
    texts = contents.having(TEXT_SUFFIXES) if modality == "text" and not tables else []
    # One kind of files.
    if images:
        documents: Documents = _images(path, images, name, seed, skip_broken)
    elif texts:
        listing = _listing(path, texts, name, lambda index: read_text(texts[index]))
        documents = ListedDocuments(listing, "text", seed, skip_broken)
    elif len(kinds) > 1:
        raise DataError(
            f"{path} holds tables of several kinds: {', '.join(kinds)}",
            "give one file, or a folder of one kind",
        )
    elif tables:
        documents = open_table(tables, name, modality, column, skip_broken)
    else:
        suffixes = IMAGE_SUFFIXES if modality == "image" else (*TEXT_SUFFIXES, *TABLES)
        hidden = f" ({contents.note([])})" if contents.files or contents.ignored else ""
        raise DataError(
            f"{path} holds no {modality} files{hidden}", f"put {', '.join(suffixes)} files there"
        )
    documents.notes = (contents.note(images or texts or tables), *documents.notes)
    return documents


def _images(
    root: Path, files: list[Path], name: str, seed: int, skip_broken: bool
) -> ListedDocuments:
    def label(index: int) -> str | None:
        folder, _, rest = listing.names[index].partition("/")
        return folder if rest else None

    listing = _listing(root, files, name, lambda index: read_picture(files[index]))
    listing.label = label
    return ListedDocuments(listing, "image", seed, skip_broken)


def _listing(root: Path, files: list[Path], name: str, load) -> Listing:
    names = [readable_name(file.relative_to(root).as_posix()) for file in files]

    def digest() -> str:
        """Names and contents: a text replaced by another of its length is other data."""
        return digest_of([f"{name} {_digest_of_file(file)}" for name, file in zip(names, files)])

    return Listing(name, names, load, digest)


def _digest_of_file(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return "cannot be read"  # an error, or skipped, when it is opened as a document


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark; all line ends become \\n. Raises DataError, with
    the path, for other files."""
    try:
        refuse_pointer(path)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            encoding = _ENCODINGS.get(file.read(2))
        reason = f"it looks like {encoding}" if encoding else f"byte {error.start}"
        raise DataError(
            f"{path} is not UTF-8 text ({reason})",
            f"`iconv -f {encoding or 'LATIN1'} -t UTF-8 {path.name} > utf8.txt` converts it from"
            f" {encoding or 'Latin-1'}; or remove it from the data",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            "make it readable, or remove it from the data",
        ) from error


def _need_modality(name: str, holds: Modality, needed: Modality) -> None:
    if holds != needed:
        other = "embedded:pydocs" if needed == "text" else "embedded:digits"
        raise DataError(
            f"{name} holds {holds}s, not {needed}s", f"give {needed} data, such as {other}"
        )


_read_image = read_picture  # the name that scripts of earlier versions import

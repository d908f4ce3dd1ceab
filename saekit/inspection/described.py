"""What people, or other programs, have said about latents, in files beside a checkpoint.

names*.json: the names and notes that a reader saved from the page. explanations.jsonl, also
explanations-*.jsonl and the same with .gz: one object a line with "index" and "description", as
Neuronpedia exports its explanations (batch-0.jsonl.gz of a source) and as any program can write
them; other keys are not read.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saekit.errors import DataError
from saekit.inspection.opening import InspectedModel
from saekit.inspection.score import Meaning
from saekit.store.oserrors import reading

NAMES, EXPLANATIONS = "names*.json", "explanations*.jsonl*"
LARGEST = 256 << 20  # bytes of a file once it is unpacked


Source = Literal["name", "explanation", "automatic"]
# of an automatic label: on " import", before " import" ...
KIND_WORDS = {"token": "on", "next": "before", "previous": "after", "label": "in", "name": "in"}


@dataclass(frozen=True)
class Label:
    """What a latent is, in one line, and who says so."""

    text: str
    source: Source


def label_of(meaning: Meaning | None) -> str | None:
    """An automatic label in one line: `on ' import'`."""
    return None if meaning is None else f"{KIND_WORDS[meaning.kind]} {meaning.text!r}"


@dataclass(frozen=True)
class Described:
    """By latent: a reader's names and notes, and the explanations in the order of the files."""

    names: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    explanations: dict[int, list[str]] = field(default_factory=dict)

    def label(self, latent: int) -> Label | None:
        """Its name, else its first explanation."""
        if name := self.names.get(latent):
            return Label(name, "name")
        explanation = next(filter(None, self.explanations.get(latent, [])), None)
        return None if explanation is None else Label(explanation, "explanation")


def described(inspected: InspectedModel) -> Described:
    """What the files beside the checkpoint say; nothing for a model in memory, or where there are
    none. Raises DataError for a file of another checkpoint, or one that cannot be read."""
    found, checkpoint = Described(), inspected.checkpoint
    if checkpoint is None or not Path(checkpoint.path).is_dir():
        return found
    folder = Path(checkpoint.path)
    for path in sorted(folder.glob(NAMES)):
        _read_names(path, inspected, found)
    for path in sorted(folder.glob(EXPLANATIONS)):
        for number, line in enumerate(_lines(path), 1):
            where = f"line {number} of {path}"
            entry = _entry(line, "description", inspected.model.latents, where)
            found.explanations.setdefault(entry[0], []).append(entry[1])
    return found


def _read_names(path: Path, inspected: InspectedModel, found: Described) -> None:
    text = "\n".join(_lines(path))
    saved = _parsed(text, str(path))
    identity = str(saved.get("identity") or "")
    if identity and identity.split("-")[0] != inspected.weights_digest()[:16]:
        raise DataError(
            f"{path} has the names of another checkpoint",
            "move it away, or save the names from a page of this one",
        )
    for key, value, target in (("names", "name", found.names), ("notes", "note", found.notes)):
        entries = saved.get(key, [])
        if not isinstance(entries, list):
            raise DataError(f"{path} has no list of {key}", "save the names from the page again")
        for entry in entries:
            latent, text = _entry(entry, value, inspected.model.latents, str(path))
            target[latent] = text


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that are not blank."""
    try:
        with reading(path):
            content = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise DataError(f"{path} has more than {LARGEST >> 20} MB", "split it")
        lines = content.decode("utf-8-sig").splitlines()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", "copy it again") from None
    yield from (line for line in lines if line.strip())


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", "write it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object", 'write {"index": 12, "description": "..."}')
    return value


def _entry(entry: Any, name: str, latents: int, where: str) -> tuple[int, str]:
    """(latent, text) of {"index", name}. Numbers may be written as text, as Neuronpedia does."""
    if isinstance(entry, str):
        entry = _parsed(entry, where)
    entry = entry if isinstance(entry, dict) else {}
    index, text = entry.get("index"), entry.get(name)
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10:
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not isinstance(text, str):
        remedy = f'write {{"index": 12, "{name}": "..."}}'
        raise DataError(f"{where} has no latent with its {name}", remedy)
    if not 0 <= index < latents:
        cause = f"{where} describes latent {index}: this model has {latents:,}"
        raise DataError(cause, "use the file of this checkpoint")
    return index, text.strip()

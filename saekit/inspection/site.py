"""Where the parts of a page go: files next to index.html, or inert blocks in it. Every thumbnail
and every context is written once, however many records show it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from sys import intern
from typing import IO, Any

from saekit.store.oserrors import writing
from saekit.types import Example, FeatureRecord

CONTEXTS_EACH_FILE = 64
SUFFIX_OF_MAGIC = {b"\x89PNG": ".png", b"RIFF": ".webp", b"\xff\xd8\xff": ".jpg"}
SAFE_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Pictures:
    """Writes every thumbnail once, and replaces the key in an example with the file's name."""

    def __init__(self, images: Mapping[str, bytes], site: Folder | Inline) -> None:
        self.images, self.site = images, site
        self.names: dict[str, str] = {}

    def by_file(self, record: FeatureRecord) -> FeatureRecord:
        """The record with names of files in place of keys."""
        if all(example.image is None for example in (*record.examples, *record.samples)):
            return record
        lists = {"examples": record.examples, "samples": record.samples}
        named = {
            name: [e if e.image is None else replace(e, image=self._name(e.image)) for e in shown]
            for name, shown in lists.items()
        }
        return replace(record, **named)

    def _name(self, key: str) -> str:
        if key not in self.names:
            if not SAFE_KEY.fullmatch(key):
                raise ValueError(f"image key {key!r} is not a file name")
            if key not in self.images:
                raise ValueError(f"no thumbnail was given for image {key}")
            content = self.images[key]
            self.names[key] = key + _suffix(key, content)
            self.site.image(self.names[key], content)
        return self.names[key]


class Contexts:
    """Writes every context once, CONTEXTS_EACH_FILE in a file: [tokens, doc_id, source, label].
    `ids` are those of their examples, in the order of the files."""

    def __init__(self, contexts: MutableMapping[int, list[str]], site: Folder | Inline) -> None:
        self.contexts, self.site = contexts, site
        self.ids: list[int] = []
        self._known: dict[int, list[Any]] = {}
        self._waiting: list[list[Any]] = []

    def add(self, examples: list[Example]) -> None:
        for example in examples:
            index = example.example_id
            tokens = self.contexts.pop(index, None)
            if tokens is not None and index not in self._known:
                tokens = [intern(token) for token in tokens]  # kept, and mostly the same ones
                self._known[index] = [tokens, example.doc_id, example.source, example.label]
                self.ids.append(index)
                self._waiting.append(self._known[index])
                if len(self._waiting) == CONTEXTS_EACH_FILE:
                    self.close()

    def of(self, example: int) -> list[Any] | None:
        """What was written of a context."""
        return self._known.get(example)

    def close(self) -> None:
        if self._waiting:
            self.site.contexts((len(self.ids) - 1) // CONTEXTS_EACH_FILE, pack(self._waiting))
            self._waiting = []


def _suffix(key: str, content: bytes) -> str:
    for magic, suffix in SUFFIX_OF_MAGIC.items():
        if content.startswith(magic):
            return suffix
    raise ValueError(f"thumbnail {key} is neither PNG, WebP nor JPEG")


class Folder:
    """Shards, contexts and images as files next to index.html."""

    def __init__(self, out: Path) -> None:
        self.out, self.bytes = out, 0

    def shard(self, number: int, packed: str) -> None:
        self._write(
            self.out / "shards" / f"{number:03d}.js",
            f'saekitShard({number},"{packed}");\n'.encode(),
        )

    def contexts(self, number: int, packed: str) -> None:
        self._write(
            self.out / "contexts" / f"{number:03d}.js",
            f'saekitContexts({number},"{packed}");\n'.encode(),
        )

    def patches(self, number: int, packed: str) -> None:
        self._write(
            self.out / "patches" / f"{number:03d}.js",
            f'saekitPatches({number},"{packed}");\n'.encode(),
        )

    def part(self, folder: str, number: int, packed: str) -> None:
        """A file of its own folder; the page's loader takes it by the name of the folder."""
        path = self.out / folder / f"{number:03d}.js"
        self._write(path, f'saekitPart("{folder}",{number},"{packed}");\n'.encode())

    def image(self, name: str, content: bytes) -> None:
        self._write(self.out / "images" / name, content)

    def _write(self, path: Path, content: bytes) -> None:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        self.bytes += len(content)


class Inline:
    """Shards, contexts and images as inert blocks in index.html. Base64 cannot end a script
    element, whatever it encodes."""

    bytes = 0  # of other files than the page

    def __init__(self, page: IO[str]) -> None:
        self.page = page

    def shard(self, number: int, packed: str) -> None:
        self.page.write(inert(f"shard-{number}", packed))

    def contexts(self, number: int, packed: str) -> None:
        self.page.write(inert(f"contexts-{number}", packed))

    def patches(self, number: int, packed: str) -> None:
        self.page.write(inert(f"patches-{number}", packed))

    def part(self, folder: str, number: int, packed: str) -> None:
        self.page.write(inert(f"{folder}-{number}", packed))

    def image(self, name: str, content: bytes) -> None:
        self.page.write(inert(f"image-{name}", base64.b64encode(content).decode()))


def inert(name: str, base64_text: str) -> str:
    return f'<script type="text/plain" id="{name}">{base64_text}</script>\n'


def pack(value: Any) -> str:
    """Compact JSON, gzipped, in base64. Equal values give equal text: no time stamp is written."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()

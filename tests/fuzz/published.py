"""The readers of published dictionaries: every file of every format."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from fuzz.harness import Reader
from fuzz.mutations import of_bytes, of_json, of_tensors
from made_formats import WRITERS

from saekit.errors import SaekitError
from saekit.interop.opening import open_published
from saekit.models.catalog import restore

MUTATIONS = {".json": of_json, ".safetensors": of_tensors}


def _read(format: str, file: Path, place: Path, path: Path) -> None:
    """As `load` and `import` read it, in its format and in the one that its content shows. `file`
    and `place`, the dictionary, are relative to one folder."""
    here = path.parents[len(file.parts) - 1] / place
    dictionary = open_published(here, format)
    model = restore(dictionary.model, dictionary.config, dictionary.tensors)
    with torch.no_grad():
        model(torch.zeros(2, model.d_in))
    open_published(here)


def _readers() -> dict[str, Reader]:
    readers = {}
    for format, writers in WRITERS.items():
        for number, write in enumerate(writers):
            # which files there are
            with tempfile.TemporaryDirectory() as folder:
                base = Path(folder) / "base"
                place = write(base / "dictionary").relative_to(base)
                try:
                    open_published(base / place)
                except SaekitError:  # a fixture of a refusal
                    continue
                files = [path.relative_to(base) for path in base.rglob("*") if path.is_file()]
            # those of the first fixture, and settings of the others
            for file in files:
                if number and file.suffix != ".json":
                    continue

                def make(folder: Path, write=write, file=file) -> Path:
                    write(folder / "dictionary")
                    return folder / file

                name = "-".join(["published", format, *([str(number)] * (number > 0)), file.name])
                mutate = MUTATIONS.get(file.suffix, of_bytes)
                readers[name] = Reader(make, mutate, partial(_read, format, file, place))
    return readers


PUBLISHED = _readers()

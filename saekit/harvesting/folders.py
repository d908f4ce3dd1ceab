"""Which files of a folder are data: links are followed; hidden files and files of the operating
system are ignored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import DataError

# Created by file managers and archivers beside the data, sometimes as copies (__MACOSX/._cat.jpg).
_LITTER = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "__pycache__", "$recycle.bin"}
)


@dataclass(frozen=True)
class Walk:
    """The files below `root` in the order of their paths, and how many were ignored, by kind."""

    root: Path
    files: list[Path]
    ignored: Counter[str]

    def having(self, suffixes: tuple[str, ...]) -> list[Path]:
        """Files whose suffix, in any case, is one of these."""
        return [file for file in self.files if file.suffix.lower() in suffixes]

    def note(self, chosen: list[Path]) -> str:
        """'12 files taken from photos, 3 left out (2 .bin, 1 hidden)'."""
        others = set(self.files) - set(chosen)
        omitted = self.ignored + Counter(file.suffix.lower() or "without suffix" for file in others)
        total = sum(omitted.values())
        kinds = ", ".join(
            f"{count:,} {kind}"
            for kind, count in sorted(omitted.items(), key=lambda item: (-item[1], item[0]))[:6]
        )
        taken = f"{len(chosen):,} file{'s' * (len(chosen) != 1)} taken from {self.root}"
        return f"{taken}, {total:,} left out ({kinds})" if total else f"{taken}, none left out"


def walk(root: Path) -> Walk:
    """Raises DataError, with the path, for a folder that cannot be read."""
    ignored: Counter[str] = Counter()
    files = sorted(_files(root, frozenset(), ignored.update), key=lambda path: path.parts)
    return Walk(root, files, ignored)


def _files(
    folder: Path, above: frozenset[tuple[int, int]], ignore: Callable[[list[str]], None]
) -> Iterator[Path]:
    """`above`: the parent folders; a link to one of them is not followed."""
    try:
        stat = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}",
            "make it readable, or remove it from the data",
        ) from error
    if (stat.st_dev, stat.st_ino) in above:
        ignore(["link to a folder above it"])
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in _LITTER:
            ignore(["hidden"])
        elif entry.is_dir():
            yield from _files(path, above | {(stat.st_dev, stat.st_ino)}, ignore)
        elif entry.is_file():
            yield path
        else:
            ignore(["broken link" if entry.is_symlink() else "not a file"])

"""A page that is there already, read back so that features can be added to it."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from saekit.errors import DataError, opt
from saekit.inspection.opening import InspectedModel
from saekit.store.folder_kinds import PAGE
from saekit.store.oserrors import reading
from saekit.types import FeatureRecord

BLOCK = re.compile(r'<script type="text/plain" id="([\w.-]+)">([A-Za-z0-9+/=]*)</script>')


def page_identity(inspected: InspectedModel) -> dict[str, Any]:
    """What a page is of, whatever the folders are called: the content of the weights and of each
    store, in 16 hex digits."""
    return {
        "checkpoint": inspected.weights_digest()[:16],
        "stores": [content[:16] for content in inspected.contents()],
    }


def can_extend(out: Path, identity: dict[str, Any], overwrite: bool) -> bool:
    """Whether there is a page of the same weights and rows in `out`, to which features are added.
    Raises DataError for a page of others, unless it is to be replaced."""
    marker = None if overwrite else PAGE.read_marker(out)
    if marker is None:
        return False
    if marker.get("identity") == identity:
        return True
    raise DataError(
        f"{out} holds a page of {_what(marker)}, not of this checkpoint and store",
        f"{opt('overwrite', True)} to replace it, or another OUT",
    )


def _what(marker: dict[str, Any]) -> str:
    stores = marker["store"] if isinstance(marker["store"], list) else [marker["store"]]
    what = f"{marker['checkpoint']} on {' and '.join(map(str, stores))}"
    return what if "identity" in marker else f"{what}, made by an older saekit"


class ExistingPage:
    """The records, contexts and images of a page, whether they lie in index.html or beside it."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where it cannot be read."""
        self.folder = folder
        try:
            with reading(folder):
                page = (folder / "index.html").read_text(encoding="utf-8")
            self._blocks = dict(BLOCK.findall(page))
            catalog = _unpacked(self._blocks["catalog"])
            self.indices: list[int] = catalog["records"]
            self.single_file: bool = catalog["single_file"]
            self._place = {index: at for at, index in enumerate(catalog["contexts"])}
            self._each_file: int = catalog["contexts_each_file"]
        except (KeyError, ValueError, OSError, binascii.Error) as error:
            raise self._damaged(error) from None
        self._contexts = lru_cache(64)(self._context_file)

    def records(self) -> Iterator[FeatureRecord]:
        """At full precision, in the order in which they were written."""
        try:
            with (self.folder / "features.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    yield FeatureRecord.from_json(json.loads(line))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(error) from None

    def context(self, example_id: int) -> list[str] | None:
        """The tokens of a whole context; None where the page has none."""
        at = self._place.get(example_id)
        return None if at is None else self._contexts(at // self._each_file)[at % self._each_file]

    @cached_property
    def images(self) -> Mapping[str, bytes]:
        """Thumbnails by their key."""
        return _Images(self)

    def _context_file(self, number: int) -> list[list[str]]:
        try:
            if self.single_file:
                return _unpacked(self._blocks[f"contexts-{number}"])
            text = (self.folder / "contexts" / f"{number:03d}.js").read_text(encoding="ascii")
            return _unpacked(text.split('"')[1])
        except (KeyError, IndexError, ValueError, OSError, binascii.Error) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"the page in {self.folder} cannot be read: {error}",
            f"{opt('overwrite', True)} to replace it, or another OUT",
        )


class _Images(Mapping[str, bytes]):
    def __init__(self, page: ExistingPage) -> None:
        if page.single_file:
            names = [name for name in page._blocks if name.startswith("image-")]
            self._read = {
                name.removeprefix("image-").rsplit(".", 1)[0]: page._blocks[name] for name in names
            }
        else:
            self._read = {path.stem: path for path in sorted(page.folder.glob("images/*"))}

    def __getitem__(self, key: str) -> bytes:
        held = self._read[key]
        return held.read_bytes() if isinstance(held, Path) else base64.b64decode(held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def _unpacked(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))

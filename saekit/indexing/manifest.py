"""index.json: which weights and rows an index is of, what is written of it, and the checksums of
its files.

It contains neither times nor paths: equal indexes have equal bytes. While an index is made it lists
the runs that are done, from which a resume goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from saekit.errors import DataError, opt
from saekit.store.files import check_schema, read_json, write_json
from saekit.store.folder_kinds import INDEX
from saekit.store.manifest import checksum
from saekit.store.oserrors import reading
from saekit.store.reader import Store
from saekit.typed import MisfitError, build

SCHEMA = 2  # 1 had no shown.safetensors, and no index of a dense code
INDEXES = "index"  # the folder beside a checkpoint
RUNS = "runs"
BY_FEATURE, BY_ROW, ORIGIN, FEATURES, SHOWN, HISTOGRAMS = (
    f"{name}.safetensors"
    for name in ("by_feature", "by_row", "origin", "features", "shown", "histograms")
)
Values = Literal["float32", "float16"]


@dataclass
class IndexedStore:
    """One of the stores whose rows are side by side: its content, and (sha256, rows) of its
    shards."""

    content: str
    shards: list[tuple[str, int]]


@dataclass
class Rounding:
    """What float16 did to the values: the largest error, the sums of the squared errors and of the
    squared values, and how many became the smallest number that float16 has, because 0 would mean
    that a latent is not active."""

    largest: float
    squared_errors: float
    squares: float
    raised: int

    def after(self, earlier: Rounding | None) -> Rounding:
        """Of these values and those before them."""
        if earlier is None:
            return self
        return Rounding(
            max(earlier.largest, self.largest),
            earlier.squared_errors + self.squared_errors,
            earlier.squares + self.squares,
            earlier.raised + self.raised,
        )

    @property
    def relative(self) -> float:
        """Root mean square error over the root mean square of the values."""
        return (self.squared_errors / self.squares) ** 0.5 if self.squares else 0.0

    def stated(self) -> dict[str, float]:
        return {"largest": self.largest, "relative": self.relative, "raised": self.raised}


@dataclass
class Run:
    """A part of the rows, sorted: a file that is there until the index is whole."""

    name: str
    first_row: int
    rows: int
    entries: int
    sha256: str
    rounding: Rounding | None
    """Of the values up to its end."""


@dataclass
class IndexManifest:
    weights: str
    """sha256 of the weights."""
    stores: list[IndexedStore]
    latents: int
    rows: int
    values: Values
    device: str
    """cpu | cuda: what encoded the rows; the bits may depend on it."""
    chunk: int
    """Rows encoded at a time; the bits may depend on it too."""
    runs: list[Run] = field(default_factory=list)
    entries: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """name -> sha256, once they are whole."""
    rounding: Rounding | None = None
    complete: bool = False
    dense: bool = False
    """A code that has a value at every latent in every row: there are no entries."""

    @property
    def row_type(self) -> str:
        """Of row numbers in the files."""
        return "int32" if self.rows < 2**31 else "int64"

    def write(self, folder: Path) -> None:
        data = dataclasses.asdict(self) | {"schema_version": SCHEMA}
        write_json(folder / INDEX.marker, data | {"checksum": checksum(data)})

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """Raises DataError when it is not an index, is damaged or of a later version."""
        with reading(folder):
            data = read_json(folder / INDEX.marker, "an index")
        check_schema(folder, data, SCHEMA)
        try:
            if data.get("checksum") != checksum(data):
                raise MisfitError("its checksum does not match its content")
            fields = {k: v for k, v in data.items() if k not in ("schema_version", "checksum")}
            return build(cls, fields, "index")
        except MisfitError as error:
            raise DataError(
                f"{folder / INDEX.marker} is damaged: {error}",
                f"index the store again with {opt('overwrite', True)}",
            ) from None

    def difference(self, other: IndexManifest) -> str:
        """'weights 1a2b -> 3c4d': what prevents that `other` continues this one; '' where nothing
        does."""
        shown = {
            "weights": [m.weights[:12] for m in (self, other)],
            "store": ["+".join(s.content[:12] for s in m.stores) for m in (self, other)],
            **{
                name: [getattr(m, name) for m in (self, other)]
                for name in ("values", "device", "chunk")
            },
        }
        return ", ".join(f"{name} {a} -> {b}" for name, (a, b) in shown.items() if a != b)

    def shared_rows(self, other: IndexManifest) -> int:
        """How many of the first rows have the same entries in both indexes: those of shards that
        both stores begin with, in whole chunks."""
        alike = ("weights", "latents", "values", "device", "chunk")
        if any(getattr(self, name) != getattr(other, name) for name in alike):
            return 0
        if len(self.stores) != len(other.stores):
            return 0
        shared = min(
            _rows_of_same_shards(a.shards, b.shards) for a, b in zip(self.stores, other.stores)
        )
        return shared // self.chunk * self.chunk


def _rows_of_same_shards(a: Sequence[tuple[str, int]], b: Sequence[tuple[str, int]]) -> int:
    rows = 0
    for mine, theirs in zip(a, b):
        if mine != theirs:
            break
        rows += mine[1]
    return rows


def indexed_store(store: Store) -> IndexedStore:
    shards = [(shard.sha256, shard.rows) for shard in store.manifest.shards]
    return IndexedStore(store.content, shards)


def index_folder(checkpoint: Path, contents: Sequence[str]) -> Path:
    """The folder of the index of these rows beside a checkpoint: `CKPT/index/` and 16 digits of the
    store's content, of several stores of the digest of all."""
    digest = contents[0]
    if len(contents) > 1:
        digest = hashlib.sha256("-".join(contents).encode()).hexdigest()
    return checkpoint / INDEXES / digest[:16]


def checked_manifest(folder: Path) -> IndexManifest | None:
    """The manifest of a whole index; None where there is none."""
    if not (folder / INDEX.marker).is_file():
        return None
    manifest = IndexManifest.read(folder)
    return manifest if manifest.complete else None

"""manifest.json: what a store holds and how far it is written. No clock and no path in it: equal stores have equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekit.errors import DataError, MissingError
from saekit.store.files import read_json, write_json
from saekit.store.split import HOLDOUT_SHARE
from saekit.types import ActivationSpec

SCHEMA = 1
NAME = "manifest.json"


@dataclass
class Shard:
    """A finished file of rows. `batches` is the harvest cursor behind it: how many model batches it and its predecessors hold."""

    name: str
    rows: int
    bytes: int
    sha256: str
    batches: int
    examples: int
    dropped: int  # rows left out by --max-norm
    done: bool = True


@dataclass
class Manifest:
    spec: ActivationSpec
    plan: dict[str, Any]  # what must agree for a resume beside the spec: rows asked, batch, shard size, digest of the data
    shards: list[Shard] = field(default_factory=list)
    filled: bool = False  # no more rows come; what is left is the report
    complete: bool = False
    norm_limit: float | None = None  # rows with a larger norm are dropped (--max-norm times the median of the first rows)
    stats: dict[str, Any] | None = None  # the health report, once complete
    self_check: dict[str, str] | None = None  # what was shown on the first contexts; absent for raw data and in older stores

    @property
    def content(self) -> str:
        """sha256 over the shards' own: equal exactly when the stored bytes are, which the fingerprint of the settings is not."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def holdout(self) -> float:
        """The share of rows that is held out. The plan names it only where it is not the default, as in stores older than the choice."""
        return self.plan.get("holdout", HOLDOUT_SHARE)

    def write(self, folder: Path) -> None:
        data = dataclasses.asdict(self)
        if self.self_check is None:
            del data["self_check"]
        data |= {"schema_version": SCHEMA, "fingerprint": self.spec.fingerprint, "rows": self.rows}
        write_json(folder / NAME, data)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises DataError when there is no store here, or one of a later version."""
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "there is no such folder"
            raise MissingError(f"{folder} is not a store: {what}", _nearby(folder.parent))
        if not (folder / NAME).exists():
            raise DataError(f"{folder} is not a store: {NAME} is missing", _nearby(folder))
        data = read_json(folder / NAME, "a store")
        if data.get("schema_version", 0) > SCHEMA:
            raise DataError(f"{folder} was written by a later saekit (schema {data['schema_version']}, this one reads {SCHEMA})")
        try:
            return cls(
                ActivationSpec.from_json(data["spec"]),
                data["plan"],
                [Shard(**shard) for shard in data["shards"]],
                data["filled"],
                data["complete"],
                data["norm_limit"],
                data["stats"],
                data.get("self_check"),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / NAME} is damaged: {error}") from None


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """'batch 32 -> 64, seed 0 -> 1': the settings that forbid a resume."""
    keys = sorted(old.keys() | new.keys())
    return ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key))


def _nearby(folder: Path) -> str:
    if not folder.is_dir():
        return "give the folder that `saekit harvest` wrote"
    found = sorted(path.parent for path in folder.glob(f"*/{NAME}"))[:3]
    return "did you mean " + " or ".join(map(str, found)) if found else "give the folder that `saekit harvest` wrote"

"""manifest.json: what a store holds and how much of it is written. It contains neither times nor
paths: equal stores have equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saekit.errors import DataError, MissingError, opt
from saekit.store.files import check_schema, read_json, write_json
from saekit.store.folder_kinds import STORE
from saekit.store.oserrors import reading
from saekit.store.split import HOLDOUT_SHARE
from saekit.store.swap import settle
from saekit.typed import MisfitError, as_type, build
from saekit.types import ActivationSpec, canonical_json

SCHEMA = 1
REPORTED = ("skipped", "dtype_reason")  # keys of stats that are known before the harvest ends
OPTIONAL = ("self_check", "names")  # written only where they are known
NAME = "manifest.json"
DTYPES = Literal["float16", "bfloat16", "float32"]  # of stored rows


@dataclass
class Shard:
    """A finished file of rows. `batches` is the harvest cursor after it: how many model batches it
    and its predecessors hold."""

    name: str
    rows: int
    bytes: int
    sha256: str
    batches: int
    examples: int
    dropped: int  # rows dropped by max_norm
    done: bool = True


@dataclass
class Manifest:
    spec: ActivationSpec
    # must agree for a resume, besides the spec: requested rows, batch, shard size, data digest
    plan: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    filled: bool = False  # all rows are written; only the report is missing
    complete: bool = False
    # rows with a larger norm are dropped (max_norm times the median of the first rows)
    norm_limit: float | None = None
    stats: dict[str, Any] | None = None  # the health report, once complete
    # files besides the shards, config.toml and the manifest: those of the tokenizer
    extras: list[str] = field(default_factory=list)
    # results of the self-check on the first contexts; absent for raw data and in older stores
    self_check: dict[str, str] | None = None
    # other names of its model and hook, by which dictionaries know them; absent in older stores
    names: dict[str, list[str]] | None = None

    @property
    def content(self) -> str:
        """sha256 over the shards' sha256: equal exactly when the stored bytes are equal, unlike the
        fingerprint of the settings."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def holdout(self) -> float:
        """The share of rows that is held out. The plan lists it only when it is not the default;
        stores older than the option do not list it."""
        return self.plan.get("holdout", HOLDOUT_SHARE)

    def truncated_at(self, bad_shard: int) -> Manifest:
        """The manifest as it was before shard number `bad_shard` was written: a harvest continues
        from there."""
        kept = {name: value for name, value in (self.stats or {}).items() if name in REPORTED}
        return dataclasses.replace(
            self, shards=self.shards[:bad_shard], filled=False, complete=False, stats=kept or None
        )

    def write(self, folder: Path) -> None:
        data = dataclasses.asdict(self)
        for name in OPTIONAL:
            if data[name] is None:
                del data[name]
        data |= {"schema_version": SCHEMA, "fingerprint": self.spec.fingerprint, "rows": self.rows}
        write_json(folder / NAME, data | {"checksum": checksum(data)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises MissingError when there is no folder here, DataError when it is not a store, is
        damaged or has a later version."""
        with reading(folder):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> Manifest:
        settle(folder, STORE)
        if not folder.is_dir():
            reason = "it is a file" if folder.exists() else "there is no such folder"
            raise MissingError(f"{folder} is not a store: {reason}", _nearby(folder.parent))
        if not (folder / NAME).exists():
            raise DataError(f"{folder} is not a store: {NAME} is missing", _nearby(folder))
        data = read_json(folder / NAME, "a store")
        check_schema(folder, data, SCHEMA)
        try:
            return _checked(data)
        except MisfitError as error:
            hint = f"harvest it again with {opt('overwrite', True)}, or restore it from a copy"
            raise DataError(f"{folder / NAME} is damaged: {error}", hint) from None


def checksum(data: dict[str, Any]) -> str:
    """sha256 of a manifest's other keys: a harmless-looking edit could change the held-out rows."""
    return hashlib.sha256(
        canonical_json({key: value for key, value in data.items() if key != "checksum"}).encode()
    ).hexdigest()


def _checked(data: dict[str, Any]) -> Manifest:
    """The manifest of a parsed file. Raises MisfitError for anything that saekit would not write;
    in stores older than the checksum, the keys must at least be consistent."""
    if "checksum" in data and data["checksum"] != checksum(data):
        raise MisfitError(
            "its checksum does not match its content: it was edited, or only partly copied"
        )
    names = [field.name for field in dataclasses.fields(Manifest)]
    missing = [name for name in names if name not in data and name not in ("extras", *OPTIONAL)]
    if missing:
        raise MisfitError(f"it has no {missing[0]}")
    spec = ActivationSpec.from_json(data["spec"])
    as_type(spec.dtype, DTYPES, "spec.dtype")
    if data.get("fingerprint") != spec.fingerprint:
        raise MisfitError("its fingerprint does not match its spec")
    manifest = build(Manifest, {name: data[name] for name in names if name in data}, "manifest")
    manifest.spec = spec
    _check_shards(manifest.shards)
    if data.get("rows") != manifest.rows:
        raise MisfitError(f"rows is {data.get('rows')}, but its shards hold {manifest.rows:,}")
    if not 0 < as_type(manifest.holdout, float, "plan.holdout") < 1:
        raise MisfitError(f"plan.holdout is {manifest.holdout}; it must be between 0 and 1")
    if manifest.complete:
        _check_stats(manifest)
    return manifest


def _check_shards(shards: list[Shard]) -> None:
    batches = 0
    for n, shard in enumerate(shards):
        if shard.name != f"{n:05d}.safetensors":
            raise MisfitError(f"shards[{n}].name is {shard.name!r}; it must be {n:05d}.safetensors")
        if (
            min(shard.rows, shard.bytes, shard.examples, shard.dropped) < 0
            or shard.batches < batches
        ):
            raise MisfitError(
                f"shards[{n}] has a negative count, or fewer batches than the one before it"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            raise MisfitError(f"shards[{n}].sha256 is not a sha256")
        batches = shard.batches


def _check_stats(manifest: Manifest) -> None:
    if manifest.stats is None or manifest.rows == 0:
        raise MisfitError("it is complete but has no rows, or no stats")
    for name in ("mean", "std"):
        values = as_type(manifest.stats.get(name), list[float], f"stats.{name}")
        if len(values) != manifest.spec.d_in:
            raise MisfitError(
                f"stats.{name} has {len(values)} values for d_in {manifest.spec.d_in}"
            )
    for name in ("mean_square_norm", "mean_to_std", "median_norm", "max_norm", "high_norm_factor"):
        as_type(manifest.stats.get(name), float, f"stats.{name}")
    for name in ("high_norm_rows", "dropped_rows"):
        as_type(manifest.stats.get(name), int, f"stats.{name}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """'batch 32 -> 64, seed 0 -> 1': the settings that prevent a resume."""
    keys = sorted(old.keys() | new.keys())
    return ", ".join(
        f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)
    )


def _nearby(folder: Path) -> str:
    stores = sorted(path.parent for path in folder.glob(f"*/{NAME}"))[:3] if folder.is_dir() else []
    if stores:
        return "did you mean " + " or ".join(map(str, stores))
    return "give the folder that `saekit harvest` wrote"

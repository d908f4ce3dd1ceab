"""Rows -> shards. A shard ends at the end of a model batch, so that the batch count is the cursor
from which a killed harvest continues, with the same bytes as without the kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError, NumericsError, opt
from saekit.store.files import sha256_of, write_bytes, write_tensors
from saekit.store.folder_kinds import STORE
from saekit.store.health import DTYPES, STATISTICS_CHUNK, Rounding, health_report, overflow_hint
from saekit.store.manifest import Manifest, Shard, differences
from saekit.store.shards import ShardFile, StoredExample, example_tensors
from saekit.store.split import HOLDOUT_SHARE
from saekit.store.swap import remove
from saekit.types import ActivationSpec


@dataclass
class RowBlock:
    """The stored rows of one model batch, whole examples in order. first_row of the examples counts
    within the block."""

    x: torch.Tensor  # (R,D)
    doc_id: torch.Tensor  # (R,) int64
    example_id: torch.Tensor  # (R,) int64
    position: torch.Tensor  # (R,) int32
    examples: list[StoredExample] = field(default_factory=list)
    dropped: int = 0


class StoreWriter:
    """Writes a new store, or continues an interrupted one: then `batches_done` says how many model
    batches to skip.

    saekit.store.run_folder has checked that the folder may be written, and that an interrupted
    store has the same settings. `extras`: content of files beside the shards, by name.
    """

    def __init__(
        self,
        path: Path,
        spec: ActivationSpec,
        plan: dict[str, Any],
        *,
        shard_bytes: int,
        resume: bool = False,
        overwrite: bool = False,
        extras: Mapping[str, bytes] | None = None,
    ) -> None:
        """`overwrite`: a store at `path` is removed first. Raises DataError for files there that do
        not belong to a store."""
        if overwrite:
            remove(path, STORE)
        self.path, self.spec, self.shard_bytes = path, spec, shard_bytes
        self._blocks: list[RowBlock] = []
        self._pending_rows = 0
        self._rounding = Rounding(spec.d_in)
        # what the health report holds besides statistics of the rows, as of now
        self.report: Callable[[], dict[str, Any]] = dict
        self.repaired = ""
        """Which shard of an interrupted store was damaged; '' when all were intact."""
        extras = extras or {}
        self.manifest = (
            self._resumed(plan) if resume else Manifest(spec, plan, extras=sorted(extras))
        )
        self.batches = self.batches_done
        if not resume:
            path.mkdir(parents=True, exist_ok=True)
            # First: it marks the folder as a store, and lists the files to come.
            self.manifest.write(path)
        for name, content in extras.items():
            _write_once(path / name, content)
        (path / "shards").mkdir(exist_ok=True)

    @property
    def batches_done(self) -> int:
        return self.manifest.shards[-1].batches if self.manifest.shards else 0

    @property
    def rows(self) -> int:
        return self.manifest.rows + self._pending_rows

    @property
    def dropped(self) -> int:
        return sum(s.dropped for s in self.manifest.shards) + sum(b.dropped for b in self._blocks)

    def _resumed(self, plan: dict[str, Any]) -> Manifest:
        """The existing store up to the first shard that is missing or damaged: rows do not depend
        on later ones."""
        manifest = Manifest.read(self.path)
        if not manifest.shards:
            # No rows are stored yet that could be mixed with others: a broken input was removed.
            manifest.plan = {**manifest.plan, "data": plan.get("data")}
        for number, shard in enumerate(manifest.shards):
            try:
                ShardFile(self.path, shard).verify()
            except DataError as error:
                self.repaired = f"{error.cause}; its rows and those after it are harvested again"
                manifest = manifest.truncated_at(number)
                manifest.write(self.path)
                break
        return manifest

    def set_norm_limit(self, limit: float) -> None:
        """Set once, from the first rows; stored in the manifest so that a resumed harvest drops the
        same rows."""
        self.manifest.norm_limit = limit

    def append(self, block: RowBlock) -> None:
        """Add the rows of one model batch. Raises NumericsError when a value is not finite in the
        store's dtype."""
        stored = in_dtype(block, self.spec)
        self._rounding.add(block.x, stored)
        block.x = stored
        self._blocks.append(block)
        self._pending_rows += len(stored)
        self.batches += 1
        if self._pending_rows * stored.shape[1] * stored.element_size() >= self.shard_bytes:
            self.close_shard()

    def close_shard(self) -> None:
        """Write the pending rows as one shard, then the manifest that lists it."""
        if not self._blocks:
            return
        name = f"{len(self.manifest.shards):05d}.safetensors"
        path = self.path / "shards" / name
        tensors, examples = self._shard_tensors()
        write_tensors(path, tensors)
        digest = sha256_of(path)
        shard = Shard(
            name,
            len(tensors["x"]),
            path.stat().st_size,
            digest,
            self.batches,
            len(examples),
            sum(block.dropped for block in self._blocks),
        )
        self.manifest.shards.append(shard)
        # A harvest that is killed before its last report continues from this one.
        self.manifest.stats = self.report() or None
        self.manifest.write(self.path)
        self._blocks, self._pending_rows, self._rounding = [], 0, Rounding(self.spec.d_in)

    def _shard_tensors(self) -> tuple[dict[str, torch.Tensor], list[StoredExample]]:
        examples, offset = [], 0
        for block in self._blocks:
            for e in block.examples:
                examples.append(
                    StoredExample(
                        e.id, e.doc_id, e.first_row + offset, e.rows, e.tokens, e.ref, e.label
                    )
                )
            offset += len(block.x)
        columns = ("x", "doc_id", "example_id", "position")
        tensors = {
            name: torch.cat([getattr(block, name) for block in self._blocks]) for name in columns
        }
        # In chunks whose fp64 copies stay in cache: a third of the time of one large copy.
        sums = torch.zeros(2, self.spec.d_in, dtype=torch.float64)
        norms = []
        for x in tensors["x"].split(STATISTICS_CHUNK):
            x = x.double()
            sums[0] += x.sum(0)
            squares = x.square_()
            sums[1] += squares.sum(0)
            norms.append(squares.sum(1).sqrt().float())
        tensors |= {
            "norm": torch.cat(norms),
            "sum": sums[0].clone(),
            "sum_of_squares": sums[1].clone(),
        }
        rounding = self._rounding.tensors() if self._rounding.rows else {}
        return tensors | rounding | example_tensors(examples), examples

    def finish(self) -> Manifest:
        """Close the last shard and write the health report. Raises DataError without rows."""
        self.manifest.filled = True
        self.close_shard()
        if self.manifest.rows == 0:
            raise DataError(
                "no row was stored: the data has no tokens or patches in this scope",
                f"choose another {opt('scope')} or other data",
            )
        self.manifest.stats = (
            health_report(self.path, self.manifest) | (self.manifest.stats or {}) | self.report()
        )
        self.manifest.complete = True
        self.manifest.write(self.path)
        return self.manifest


def in_dtype(block: RowBlock, spec: ActivationSpec) -> torch.Tensor:
    """x (R,D) in the dtype of `spec`. Raises NumericsError when a value is not finite there."""
    stored = block.x.to(DTYPES[spec.dtype])
    # A sum is finite only if all values are; testing every value takes five times as long.
    finite = bool(torch.isfinite(stored.sum(dtype=torch.float32)))
    bad = [] if finite else (~torch.isfinite(stored).all(1)).nonzero()[:, 0]
    if len(bad):
        row = int(bad[0])
        where = f"example {int(block.example_id[row])}, position {int(block.position[row])}"
        if torch.isfinite(block.x[row]).all():
            raise NumericsError(
                f"a value overflows {spec.dtype} ({where})", overflow_hint(block.x, spec.dtype)
            )
        raise NumericsError(
            f"the model's hidden state at {spec.hook} is NaN or inf ({where})",
            f"choose another {opt('hook')}",
        )
    return stored


def other_settings(path: Path, spec: ActivationSpec, plan: dict[str, Any]) -> str:
    """How these settings differ from those of the store at `path`; '' when a harvest with these can
    continue it."""
    manifest = Manifest.read(path)
    if not manifest.shards:
        # There are no rows of older data to be mixed with.
        plan = {**plan, "data": manifest.plan.get("data")}
    defaults = {"holdout": HOLDOUT_SHARE}
    old = {**defaults, **manifest.spec.to_json(), **manifest.plan}
    new = {**defaults, **spec.to_json(), **plan}
    for settings in (old, new):
        # a digest, not an option of the user
        settings["the data's content"] = settings.pop("data", None)
    return differences(old, new)


def _write_once(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)

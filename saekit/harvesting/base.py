"""What every harvest does, whatever the rows come from: plan, open or resume the stores, fill them,
report."""

from __future__ import annotations

import dataclasses
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from saekit.errors import DataError, opt
from saekit.harvesting.config import HarvestConfig, HarvestPlan, HarvestResult
from saekit.harvesting.documents import NAMED, some_of
from saekit.harvesting.memory_writer import MemoryWriter
from saekit.store.files import folder_bytes, write_config
from saekit.store.folder_kinds import STORE
from saekit.store.health import PROBE_ROWS, choose_dtype, remarks
from saekit.store.oserrors import writing
from saekit.store.run_folder import RunFolder, run_folders
from saekit.store.split import HOLDOUT_SHARE
from saekit.store.writer import DTYPES, StoreWriter, other_settings
from saekit.types import ActivationBatch, ActivationSpec, Progress

Writer = StoreWriter | MemoryWriter


class Harvest(ABC):
    """One call of the verb. A subclass knows the data when it is made, so that wrong requests do
    not touch OUT."""

    dtype: ClassVar[str]  # of the rows, unless asked otherwise
    widths: dict[str, int]  # hook -> d_in, a store each
    notes: Sequence[str] = ()  # what the user should know before it begins
    dtype_reason: str | None = None  # why dtype "auto" chose what it chose

    def __init__(self, out: Path | None, config: HarvestConfig) -> None:
        """`out` None: the rows stay in memory."""
        self.out = out
        self.config = dataclasses.replace(config, dtype=config.dtype or self.dtype)

    @abstractmethod
    def spec(self, hook: str) -> ActivationSpec: ...

    @abstractmethod
    def digest(self) -> str | None:
        """Of the data, which must be the same on a resume."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The resolved settings by flag name, for config.toml."""

    @abstractmethod
    def fill(self, writers: Mapping[str, Writer], progress: Callable[[Progress], None]) -> None:
        """Append batches behind those that the writers have, until the rows asked for are there or
        the data ends."""

    def skipped(self) -> Sequence[str]:
        """Names of the broken inputs that were left out (skip_broken)."""
        return ()

    def _choose_dtype(self, parts: Iterable[Any]) -> None:
        """dtype "auto": by the first rows (R,D), as the model or the data gives them."""
        rows, count = [], 0
        for x_RD in parts:
            rows.append(x_RD if isinstance(x_RD, torch.Tensor) else torch.tensor(x_RD))
            count += len(rows[-1])
            if count >= PROBE_ROWS:
                break
        if not count:
            raise DataError(
                f"{opt('dtype', 'auto')}: the data gives no row to choose by",
                f"another {opt('scope')} or other data",
            )
        dtype, self.dtype_reason = choose_dtype(torch.cat(rows)[:PROBE_ROWS])
        self.config = dataclasses.replace(self.config, dtype=dtype)
        self.notes = (*self.notes, f"{opt('dtype', 'auto')}: {self.dtype_reason}")

    def _report(self) -> dict[str, Any]:
        """What the stores' health report holds besides the rows' own."""
        skipped = list(self.skipped())
        report: dict[str, Any] = (
            {"skipped": {"count": len(skipped), "first": skipped[:NAMED]}} if skipped else {}
        )
        return report | ({"dtype_reason": self.dtype_reason} if self.dtype_reason else {})

    def rows_expected(self) -> int | None:
        """Rows that will be stored, None when that is not known before."""
        return self.config.rows

    def own_plan(self) -> dict[str, Any]:
        """What must agree for a resume beside what every harvest has."""
        return {}

    def extras(self) -> dict[str, bytes]:
        """Files beside the shards that show the rows again: content by name."""
        return {}

    def plan(self) -> HarvestPlan:
        rows, size = self.rows_expected(), None
        if rows is not None:
            size = (
                sum(rows * width for width in self.widths.values())
                * DTYPES[self.config.dtype].itemsize
            )
        shards = (
            None
            if size is None
            else max(-(-size // (self.config.shard_mb << 20)), len(self.widths))
        )
        folder = self.out.absolute()
        with writing(folder):
            while not folder.exists():
                folder = folder.parent
            return HarvestPlan(self.widths, rows, size, shards, shutil.disk_usage(folder).free)

    def folder(self, hook: str) -> Path:
        return self.out if len(self.widths) == 1 else self.out / hook.replace(":", "-")

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> HarvestResult:
        if self.out is None:
            return self._keep_all(progress)
        plan = self.plan()
        have = sum(folder_bytes(self.folder(hook)) for hook in self.widths) if resume else 0
        if plan.bytes is not None and plan.bytes > plan.disk_free + have:
            fit = plan.disk_free // (plan.bytes // plan.rows)
            cause = (
                f"{plan.bytes / 1e9:.1f} GB are needed and {plan.disk_free / 1e9:.1f} GB are free"
                f" at {self.out}"
            )
            raise DataError(cause, f"{opt('rows', fit)} would fit, or another OUT")
        self._say_notes(progress)
        outs, store_plan = [self.folder(hook) for hook in self.widths], self._store_plan()

        def differs(n: int, path: Path) -> str:
            return other_settings(path, self.spec(list(self.widths)[n]), store_plan)

        with run_folders(
            outs, STORE, resume=resume, overwrite=overwrite, differs=differs
        ) as folders:
            for folder in folders:
                if folder.notice:
                    progress(Progress("harvest", 0, 0, message=folder.notice))
            return self._fill_all(folders, store_plan, progress)

    def _say_notes(self, progress: Callable[[Progress], None]) -> None:
        for note in self.notes:
            progress(Progress("harvest", 0, 0, message=note))

    def _say_skipped(self, progress: Callable[[Progress], None]) -> None:
        if skipped := self.skipped():
            progress(
                Progress(
                    "harvest",
                    0,
                    0,
                    message=f"broken inputs left out: {len(skipped):,} ({some_of(skipped)})",
                )
            )

    def _keep_all(self, progress: Callable[[Progress], None]) -> HarvestResult:
        """The rows in memory, without a folder."""
        self._say_notes(progress)
        began = time.monotonic()
        writers = {hook: MemoryWriter(self.spec(hook)) for hook in self.widths}
        self.fill(writers, progress)
        self._say_skipped(progress)
        batches = {hook: writer.finish() for hook, writer in writers.items()}
        return self._result(writers, time.monotonic() - began, 0, batches)

    def _fill_all(
        self,
        folders: list[RunFolder],
        store_plan: dict[str, Any],
        progress: Callable[[Progress], None],
    ) -> HarvestResult:
        began = time.monotonic()
        writers = self._open(folders, store_plan)
        for writer in writers.values():
            if writer.repaired:
                progress(Progress("harvest", 0, 0, message=writer.repaired))
        first = next(iter(writers.values()))
        rows_before = first.rows
        if not all(writer.manifest.complete for writer in writers.values()):
            if not all(writer.manifest.filled for writer in writers.values()):
                self.fill(writers, progress)
            self._say_skipped(progress)
            for writer in writers.values():
                manifest = writer.finish()
                for remark in remarks(manifest.stats, writer.spec):
                    progress(Progress("harvest", 0, 0, message=remark))
        return self._result(writers, time.monotonic() - began, rows_before)

    def _result(
        self,
        writers: Mapping[str, Writer],
        seconds: float,
        rows_before: int,
        batches: dict[str, ActivationBatch] | None = None,
    ) -> HarvestResult:
        first = next(iter(writers.values()))
        return HarvestResult(
            path=None if self.out is None else str(self.out),
            rows=first.rows,
            asked=self.config.rows,
            fingerprint=first.spec.fingerprint if len(writers) == 1 else None,
            seconds=round(seconds, 3),
            rows_per_s=round((first.rows - rows_before) / max(seconds, 1e-9), 1),
            stores={} if self.out is None else {hook: str(self.folder(hook)) for hook in writers},
            dropped=first.dropped,
            skipped=(
                len(self.skipped())
                if self.out is None
                else first.manifest.stats.get("skipped", {}).get("count", 0)
            ),
            batches=batches,
        )

    def _store_plan(self) -> dict[str, Any]:
        c = self.config
        plan = {
            "rows": c.rows,
            "batch": c.batch,
            "shard_mb": c.shard_mb,
            "data": self.digest(),
            **self.own_plan(),
        }
        return plan | self._chosen_holdout()

    def _chosen_holdout(self) -> dict[str, float]:
        """Absent in stores of before there was a choice."""
        return {} if self.config.holdout == HOLDOUT_SHARE else {"holdout": self.config.holdout}

    def _open(self, folders: list[RunFolder], plan: dict[str, Any]) -> dict[str, StoreWriter]:
        extras, writers = self.extras(), {}
        for hook, folder in zip(self.widths, folders):
            options = {
                "shard_bytes": self.config.shard_mb << 20,
                "resume": folder.resuming,
                "extras": extras,
            }
            writers[hook] = StoreWriter(folder.path, self.spec(hook), plan, **options)
            writers[hook].report = self._report
            write_config(folder.path / "config.toml", self.settings() | self._chosen_holdout())
        return writers

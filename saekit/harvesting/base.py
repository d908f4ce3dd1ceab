"""The steps of all harvests, with or without a model: plan, open stores, fill, report."""

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
    """One call of `harvest`. A subclass opens the data when it is constructed, so that wrong
    requests do not touch OUT."""

    dtype: ClassVar[str]  # default of the rows
    widths: dict[str, int]  # hook -> d_in, one store per hook
    notes: Sequence[str] = ()  # what the user should know before it begins
    dtype_reason: str | None = None  # the reason for the choice of dtype "auto"

    def __init__(self, out: Path | None, config: HarvestConfig) -> None:
        """`out` None: the rows stay in memory."""
        self.out = out
        self.config = dataclasses.replace(config, dtype=config.dtype or self.dtype)

    @abstractmethod
    def spec(self, hook: str) -> ActivationSpec: ...

    @abstractmethod
    def digest(self) -> str | None:
        """A digest of the data, which must be the same on a resume."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The resolved settings by flag name, for config.toml."""

    @abstractmethod
    def fill(self, writers: Mapping[str, Writer], progress: Callable[[Progress], None]) -> None:
        """Append batches after those that the writers have, until there are enough rows or the data
        ends."""

    def skipped(self) -> Sequence[str]:
        """Names of the broken inputs that were skipped (skip_broken)."""
        return ()

    def _choose_dtype(self, parts: Iterable[Any]) -> None:
        """dtype "auto": by the first rows (R,D) of the model or the data."""
        rows, count = [], 0
        for x_RD in parts:
            rows.append(x_RD if isinstance(x_RD, torch.Tensor) else torch.tensor(x_RD))
            count += len(rows[-1])
            if count >= PROBE_ROWS:
                break
        if not count:
            raise DataError(
                f"{opt('dtype', 'auto')}: the data has no rows to choose by",
                f"choose another {opt('scope')} or other data",
            )
        dtype, self.dtype_reason = choose_dtype(torch.cat(rows)[:PROBE_ROWS])
        self.config = dataclasses.replace(self.config, dtype=dtype)
        self.notes = (*self.notes, f"{opt('dtype', 'auto')}: {self.dtype_reason}")

    def _report(self) -> dict[str, Any]:
        """What the stores' health report holds besides statistics of the rows."""
        skipped = list(self.skipped())
        report: dict[str, Any] = (
            {"skipped": {"count": len(skipped), "first": skipped[:NAMED]}} if skipped else {}
        )
        return report | ({"dtype_reason": self.dtype_reason} if self.dtype_reason else {})

    def rows_expected(self) -> int | None:
        """The number of rows that will be stored; None when it is not known in advance."""
        return self.config.rows

    def own_plan(self) -> dict[str, Any]:
        """What must agree for a resume, besides what all harvests have."""
        return {}

    def extras(self) -> dict[str, bytes]:
        """Files beside the shards that are needed to show the rows: content by name."""
        return {}

    def plan(self) -> HarvestPlan:
        rows, size = self.rows_expected(), None
        if rows is not None:
            size = (
                sum(rows * width for width in self.widths.values())
                * DTYPES[self.stored_dtype].itemsize
            )
        shards = (
            None
            if size is None
            else max(-(-size // (self.config.shard_mb << 20)), len(self.widths))
        )
        folder = self._root.absolute()
        with writing(folder):
            while not folder.exists():
                folder = folder.parent
            return HarvestPlan(self.widths, rows, size, shards, shutil.disk_usage(folder).free)

    @property
    def _root(self) -> Path:
        assert self.out is not None, "rows in memory have no folder"
        return self.out

    def folder(self, hook: str) -> Path:
        return self._root if len(self.widths) == 1 else self._root / hook.replace(":", "-")

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> HarvestResult:
        if self.out is None:
            return self._keep_all(progress)
        # Refuse what does not fit on the disk.
        plan = self.plan()
        written = sum(folder_bytes(self.folder(hook)) for hook in self.widths) if resume else 0
        if plan.bytes is not None and plan.bytes > plan.disk_free + written:
            assert plan.rows is not None
            fit = plan.disk_free // (plan.bytes // plan.rows)
            raise DataError(
                f"{plan.bytes / 1e9:.1f} GB are needed, but only {plan.disk_free / 1e9:.1f} GB are"
                f" free at {self.out}",
                f"{opt('rows', fit)} would fit, or choose another OUT",
            )
        # Lock the folders and fill the stores.
        self._report_notes(progress)
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

    def _report_notes(self, progress: Callable[[Progress], None]) -> None:
        for note in self.notes:
            progress(Progress("harvest", 0, 0, message=note))

    def _report_skipped(self, progress: Callable[[Progress], None]) -> None:
        if skipped := self.skipped():
            message = f"broken inputs left out: {len(skipped):,} ({some_of(skipped)})"
            progress(Progress("harvest", 0, 0, message=message))

    def _keep_all(self, progress: Callable[[Progress], None]) -> HarvestResult:
        """The rows in memory, without a folder."""
        self._report_notes(progress)
        started = time.monotonic()
        writers = {hook: MemoryWriter(self.spec(hook)) for hook in self.widths}
        self.fill(writers, progress)
        self._report_skipped(progress)
        batches = {hook: writer.finish() for hook, writer in writers.items()}
        return self._result(writers, time.monotonic() - started, 0, batches)

    def _fill_all(
        self,
        folders: list[RunFolder],
        store_plan: dict[str, Any],
        progress: Callable[[Progress], None],
    ) -> HarvestResult:
        started = time.monotonic()
        writers = self._open(folders, store_plan)
        for writer in writers.values():
            if writer.repaired:
                progress(Progress("harvest", 0, 0, message=writer.repaired))
        first = next(iter(writers.values()))
        rows_before = first.rows
        if not all(writer.manifest.complete for writer in writers.values()):
            if not all(writer.manifest.filled for writer in writers.values()):
                self.fill(writers, progress)
            self._report_skipped(progress)
            for writer in writers.values():
                stats = writer.finish().stats
                for remark in remarks(stats or {}, writer.spec):
                    progress(Progress("harvest", 0, 0, message=remark))
        return self._result(writers, time.monotonic() - started, rows_before)

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
                else (first.manifest.stats or {}).get("skipped", {}).get("count", 0)
            ),
            batches=batches,
        )

    @property
    def stored_dtype(self) -> str:
        assert self.config.dtype is not None  # since the constructor
        return self.config.dtype

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
        """Absent in stores older than the option."""
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

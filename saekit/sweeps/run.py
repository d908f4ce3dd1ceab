"""grid -> many checkpoints and one table: the verb `sweep`.

Every member is an ordinary run in a folder of its own, with the bits that `saekit train --config
OUT/NAME/config.toml` would give it on one
thread: the same loop, state and resume. What they share is the reading of rows (or, live, the
model's forward pass), the statistics of the store, and the cores: on a CPU as many members compute
at a time as torch has threads, each on one, which wastes less than one member after the other on
all of them. One stacked computation for members of one shape was measured and is slower wherever
sparse kernels help (docs/sweeps.md).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from saekit.device import pick_device
from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.measures.pareto import Group, MemberResult, groups_of
from saekit.options import Doc
from saekit.report.pareto import pareto_page
from saekit.rows import Rows
from saekit.store.files import write_bytes, write_json
from saekit.store.folder_kinds import SWEEP
from saekit.store.opening import RowsLike, open_rows
from saekit.store.reader import Store
from saekit.store.run_folder import RunFolder, run_folder
from saekit.sweeps.grid import Member, members_of, read_grid
from saekit.training.fit import by_example
from saekit.training.loop import deferred_interrupt
from saekit.training.run import TrainPlan, TrainRun
from saekit.training.shared import SharedPass
from saekit.types import Progress

MARKER, PAGE = SWEEP.marker, "pareto.html"
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class SweepResult:
    path: str
    seconds: float
    members: list[MemberResult]
    groups: list[Group]
    """Members that differ by the seed alone, with means and spread; the best trade-offs are
    marked."""
    page: str


@dataclass(frozen=True)
class SweepPlan:
    members: dict[str, TrainPlan]
    memory_bytes: int
    at_a_time: int
    """Members that compute at the same time."""


def sweep(
    store: Annotated[RowsLike, Doc("Store folder.", metavar="STORE", positional=True)],
    out: Annotated[
        str | Path,
        Doc("Folder for the checkpoints, the table and the plot.", metavar="OUT", positional=True),
    ],
    grid: Annotated[
        str | Path | dict[str, Any],
        Doc(
            "TOML file: options of train by name. A list is swept; [[runs]] tables are grids of"
            " their own.",
            metavar="FILE",
        ),
    ],
    *,
    live: Annotated[
        bool, Doc("Train on rows of the running model, one forward pass for all members.")
    ] = False,
    device: Annotated[str, Doc("Device: auto | cpu | cuda | cuda:N.", metavar="DEVICE")] = "auto",
    resume: Annotated[bool, Doc("Continue the sweep in OUT.")] = False,
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SweepResult:
    """Train every member of a grid on the same rows, all over one pass of them.

    >>> saekit.sweep("acts/text", "runs/sweep", {"k": [16, 32, 64], "seed": [0, 1]}).page

    Writes OUT/NAME for each member, as `train` would, OUT/sweep.json and OUT/pareto.html.

    Parameters
        store: the path of a store, an open Store, a tensor or array (N,D), or an iterable of such
            blocks.
        grid: a TOML file, or the same as a dict (saekit.sweeps.grid).
        live: the training rows come from the store's model, which runs once for all members; the
            store gives statistics and held-out rows.
        resume: continue a killed sweep, each member bit for bit; finished members stay.

    A member that diverges is noted and the others go on. Raises UsageError, DataError,
    MissingError, BackendError; NumericsError when no member finished; KeyboardInterrupt after all
    states have been saved.
    """
    return _Sweep(store, out, grid, live, device).execute(resume, overwrite, progress)


def plan_sweep(
    store: RowsLike, grid: str | Path | dict[str, Any], device: str = "auto"
) -> SweepPlan:
    """Only the plan of `sweep`; nothing is written."""
    return _Sweep(store, "-", grid, False, device).plan()


class _Sweep:
    def __init__(
        self,
        store: RowsLike,
        out: str | Path,
        grid: str | Path | dict[str, Any],
        live: bool,
        device: str,
    ) -> None:
        self.store, self.out, self.live = open_rows(store), Path(out), live
        if self.store.parts:
            raise UsageError("a sweep trains on one store", "saekit.train trains crosscoders")
        if live and not isinstance(self.store, Store):
            raise UsageError(f"{opt('live')} needs a store: rows in memory have no model")
        self.device = pick_device(device)
        self.members = (
            members_of(grid, device) if isinstance(grid, dict) else read_grid(Path(grid), device)
        )
        self.hint = ""  # of the last member that failed
        self.workers = (
            min(torch.get_num_threads(), len(self.members)) if self.device.type == "cpu" else 1
        )
        self.runs = {member.name: self._run(member) for member in self.members}
        self._check()

    def _run(self, member: Member) -> TrainRun:
        return TrainRun(self.store, self.out / member.name, member.config)

    def _check(self) -> None:
        for name, run in self.runs.items():
            if run.model.strategy != "gradient" or by_example(run.model, run.source):
                raise DataError(
                    f"{name}: a sweep trains only models that take single rows and gradient steps",
                    f"train {opt('model', run.config.model)} by itself",
                )
            if self.live and run.source is not self.store:
                raise DataError(
                    f"{name}: {opt('live')} gives rows one by one, and"
                    f" {run.config.options['sparsity']} needs the row before each row"
                )
        for what in ("batch", "order_seed"):
            found = {
                run.config.order if what == "order_seed" else run.config.batch
                for run in self.runs.values()
            }
            if len(found) > 1:
                values = ", ".join(map(str, sorted(found)))
                raise DataError(
                    f"members of a sweep share their rows, and so {what}: {values}",
                    f"give {what} one value for all",
                )

    def plan(self) -> SweepPlan:
        plans = {name: run.plan() for name, run in self.runs.items()}
        return SweepPlan(plans, sum(plan.memory_bytes for plan in plans.values()), self.workers)

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> SweepResult:
        began = time.monotonic()
        # before anything is overwritten: the model may be gone
        rows = self._live_rows(progress) if self.live else self.store
        with run_folder(self.out, SWEEP, resume=resume, overwrite=overwrite) as folder:
            if folder.notice:
                progress(Progress("sweep", 0, 0, message=folder.notice))
            folder.begin({"members": [member.name for member in self.members]})
            results = self._train(rows, folder, _Together(progress, self.runs))
            done = [result for result in results if result.metrics]
            if not done:
                raise NumericsError(f"no member finished: {results[0].error}", self.hint)
            groups = groups_of(done)
            write_bytes(folder.path / PAGE, pareto_page(self.store.spec, groups, results).encode())
            result = SweepResult(
                str(self.out),
                round(time.monotonic() - began, 3),
                results,
                groups,
                str(self.out / PAGE),
            )
            write_json(
                folder.path / MARKER,
                {"schema_version": 1, **dataclasses.asdict(result) | {"path": "", "page": PAGE}},
            )
            return result

    def _live_rows(self, progress: Callable[[Progress], None]) -> Rows:
        from saekit.harvesting.live import LiveSource

        assert isinstance(self.store, Store)
        source = LiveSource(self.store, device=str(self.device))
        for note in source.live.notes:
            progress(Progress("sweep", 0, 0, message=note))
        progress(
            Progress(
                "sweep",
                0,
                0,
                message=(
                    f"the first {source.buffer_rows:,} rows are computed before training begins"
                ),
            )
        )
        return source

    def _train(self, rows: Rows, folder: RunFolder, together: _Together) -> list[MemberResult]:
        threads = torch.get_num_threads()
        shared = SharedPass(
            self.store, rows, len(self.members), self.workers, threads if self.live else 0
        )
        if self.live:  # the model may compute for long before its next batch
            rows.stopped = lambda: shared.stopped
        pool = ThreadPoolExecutor(len(self.members), "saekit-sweep", _one_thread_each(self.device))
        # Members set these flags each for itself, but they are the process's: so they are the same
        # before the first and after the last.
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with flags, deferred_interrupt() as interrupted, pool:
            futures = [
                pool.submit(self._member, member, shared, folder, together)
                for member in self.members
            ]
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2)
                if interrupted() or any(future.exception() for future in done):
                    shared.stop()
        torch.set_num_threads(threads)  # also for threads to come
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # what went wrong, rather than the interrupts that followed from it
            raise next(
                (error for error in errors if not isinstance(error, KeyboardInterrupt)), errors[0]
            )
        return [future.result() for future in futures]

    def _member(
        self, member: Member, shared: SharedPass, folder: RunFolder, together: _Together
    ) -> MemberResult:
        settings, out = member.config.flat(), self.out / member.name
        with shared.member() as source:
            run = self.runs[member.name]
            run.read_from(source, self.live, shared.estimated)
            run.out = folder.path / member.name
            try:
                result = run.execute(folder.resuming, False, together.of(member.name))
            except NumericsError as error:
                self.hint = error.remedy
                return MemberResult(member.name, member.group, str(out), settings, None, str(error))
            together.finished(member.name)
        return MemberResult(member.name, member.group, str(out), settings, result.metrics)


def _one_thread_each(device: torch.device) -> Callable[[], None]:
    def start() -> None:
        if device.type == "cpu":
            # a thread's first parallel operation would else set its number anew
            torch.get_num_threads()
            torch.set_num_threads(1)

    return start


class _Together:
    """One progress of all members: rows of all, and the mean fvu."""

    def __init__(self, progress: Callable[[Progress], None], runs: dict[str, TrainRun]) -> None:
        self.progress, self.lock = progress, threading.Lock()
        self.whole = {name: run.steps * run.config.batch for name, run in runs.items()}
        self.total = sum(self.whole.values())
        self.rows = dict.fromkeys(runs, 0)
        self.fvu: dict[str, float] = {}
        self.said = 0.0

    def finished(self, name: str) -> None:
        """Also one that was done before."""
        with self.lock:
            self.rows[name] = self.whole[name]

    def of(self, name: str) -> Callable[[Progress], None]:
        def heard(report: Progress) -> None:
            with self.lock:
                self.rows[name] = report.done
                if "fvu" in report.figures:
                    self.fvu[name] = report.figures["fvu"]
                now, done = time.monotonic(), sum(self.rows.values())
                if now - self.said >= REPORT_SECONDS or done == self.total:
                    self.said = now
                    figures = {"fvu": sum(self.fvu.values()) / len(self.fvu)} if self.fvu else {}
                    self.progress(Progress("sweep", done, self.total, figures=figures))

        return heard

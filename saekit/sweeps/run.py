"""grid -> many checkpoints and one table: the verb `sweep`.

Every member is an ordinary run in its own folder, with the bits of `saekit train --config
OUT/NAME/config.toml` on one thread: the same loop, state and resume. Members share the reading of
rows (or, live, the model's forward pass), the statistics of the store, and the cores: on a CPU as
many members compute at a time as torch has threads, each on one thread, which wastes less than
training one after the other on all threads. Stacking members of one shape into one computation was
measured, and is slower wherever sparse kernels help (docs/sweeps.md).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from saekit.device import pick_device, use_device
from saekit.display import brief
from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.measures.pareto import Group, MemberResult, groups_of
from saekit.options import Doc
from saekit.report.pareto import pareto_page
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

if TYPE_CHECKING:
    from saekit.harvesting.live import LiveSource

MARKER, PAGE = SWEEP.marker, "pareto.html"
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class SweepResult:
    path: str
    seconds: float
    members: list[MemberResult]
    groups: list[Group]
    """Members that differ only by the seed, with means and spread; the best trade-offs are
    marked."""
    page: str

    def __repr__(self) -> str:
        counts = {"members": len(self.members), "groups": len(self.groups)}
        return brief(self, {**counts, "seconds": self.seconds, "page": self.page}, repr(self.path))


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
        on_cpu = self.device.type == "cpu"
        self.workers = min(torch.get_num_threads(), len(self.members)) if on_cpu else 1
        self.runs = {member.name: self._run(member) for member in self.members}
        self._check()

    def _run(self, member: Member) -> TrainRun:
        return TrainRun(self.store, self.out / member.name, member.config, self.live)

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
        configs = [run.config for run in self.runs.values()]
        shared = {
            "batch": {config.batch or 0 for config in configs},
            "order_seed": {config.order for config in configs},
        }
        for name, values in shared.items():
            if len(values) > 1:
                raise DataError(
                    f"members of a sweep share their rows, and so {name}:"
                    f" {', '.join(map(str, sorted(values)))}",
                    f"give {name} one value for all",
                )

    def plan(self) -> SweepPlan:
        plans = {name: run.plan() for name, run in self.runs.items()}
        return SweepPlan(plans, sum(plan.memory_bytes for plan in plans.values()), self.workers)

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> SweepResult:
        started = time.monotonic()
        # before anything is overwritten: the model may be gone
        live = self._live_rows(progress) if self.live else None
        with run_folder(self.out, SWEEP, resume=resume, overwrite=overwrite) as folder:
            if folder.notice:
                progress(Progress("sweep", 0, 0, message=folder.notice))
            folder.begin({"members": [member.name for member in self.members]})
            results = self._train(live, folder, _Together(progress, self.runs))

            # the table and the page of those that finished
            finished = [result for result in results if result.metrics]
            if not finished:
                raise NumericsError(f"no member finished: {results[0].error}", self.hint)
            groups = groups_of(finished)
            write_bytes(folder.path / PAGE, pareto_page(self.store.spec, groups, results).encode())
            result = SweepResult(
                str(self.out),
                round(time.monotonic() - started, 3),
                results,
                groups,
                str(self.out / PAGE),
            )
            write_json(
                folder.path / MARKER,
                {"schema_version": 1, **dataclasses.asdict(result) | {"path": "", "page": PAGE}},
            )
            return result

    def _live_rows(self, progress: Callable[[Progress], None]) -> LiveSource:
        from saekit.harvesting.live import LiveSource

        assert isinstance(self.store, Store)
        source = LiveSource(self.store, device=str(self.device))
        first = f"the first {source.buffer_rows:,} rows are computed before training begins"
        for message in (*source.live.notes, first):
            progress(Progress("sweep", 0, 0, message=message))
        return source

    def _train(
        self, live: LiveSource | None, folder: RunFolder, together: _Together
    ) -> list[MemberResult]:
        # one reader of rows for all members
        threads, members = torch.get_num_threads(), len(self.members)
        if live is None:
            shared = SharedPass(self.store, self.store, members, self.workers)
        else:
            shared = SharedPass(self.store, live, members, self.workers, threads)
            # the model may compute for long before its next batch
            live.stopped = lambda: shared.stopped

        # a thread per member, until all end or one fails; each member sets these flags, which are
        # those of the process, so they are the same before the first and after the last
        pool = ThreadPoolExecutor(members, "saekit-sweep", _one_thread_each(self.device))
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
        torch.set_num_threads(threads)  # also for later threads

        # an error counts more than the interrupts that it caused
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            causes = (error for error in errors if not isinstance(error, KeyboardInterrupt))
            raise next(causes, errors[0])
        return [future.result() for future in futures]

    def _member(
        self, member: Member, shared: SharedPass, folder: RunFolder, together: _Together
    ) -> MemberResult:
        settings, out = member.config.flat(), self.out / member.name
        with shared.member() as source:
            run = self.runs[member.name]
            run.read_from(source, shared.estimated)
            run.out = folder.path / member.name
            try:
                result = run.execute(folder.resuming, False, together.of(member.name))
            except NumericsError as error:
                self.hint = error.remedy
                return MemberResult(
                    member.name, member.group, str(out), settings, None, error.message
                )
            together.finished(member.name)
        return MemberResult(member.name, member.group, str(out), settings, result.metrics)


def _one_thread_each(device: torch.device) -> Callable[[], None]:
    def start() -> None:
        use_device(device)
        if device.type == "cpu":
            # otherwise a thread's first parallel operation sets the number again
            torch.get_num_threads()
            torch.set_num_threads(1)

    return start


class _Together:
    """One progress of all members: rows of all, and the mean fvu."""

    def __init__(self, progress: Callable[[Progress], None], runs: dict[str, TrainRun]) -> None:
        self.progress, self.lock = progress, threading.Lock()
        self.whole = {name: run.steps * (run.config.batch or 0) for name, run in runs.items()}
        self.total = sum(self.whole.values())
        self.rows = dict.fromkeys(runs, 0)
        self.fvu: dict[str, float] = {}
        self.reported = 0.0  # when, on the clock of time.monotonic

    def finished(self, name: str) -> None:
        """Also for a member that a resumed sweep finds finished."""
        with self.lock:
            self.rows[name] = self.whole[name]

    def of(self, name: str) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            with self.lock:
                self.rows[name] = progress.done
                if (fvu := progress.figures.get("fvu")) is not None:
                    self.fvu[name] = fvu
                now, done = time.monotonic(), sum(self.rows.values())
                if now - self.reported >= REPORT_SECONDS or done == self.total:
                    self.reported = now
                    figures = {"fvu": sum(self.fvu.values()) / len(self.fvu)} if self.fvu else {}
                    self.progress(Progress("sweep", done, self.total, figures=figures))

        return report

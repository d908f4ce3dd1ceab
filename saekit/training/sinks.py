"""Where the metrics of a run go besides metrics.jsonl: TensorBoard, W&B, trackio, with one
interface, `write` and `close`.

A sink is named as on the command line. The bare name keeps everything on this machine; a name after
a colon asks for an upload.

    tensorboard     event files in OUT/tensorboard
    wandb           an offline run in OUT/wandb, for `wandb sync` later
    wandb:PROJECT   a run of that W&B project (or ENTITY/PROJECT), uploaded while it trains
    trackio         project `saekit` in trackio's own folder, for `trackio show --project saekit`
    trackio:SPACE   project `saekit` in that Hugging Face Space, made private when it is new

Variables such as WANDB_MODE=online or TRACKIO_SPACE_ID do not turn a bare name into an upload. Only
metrics and settings are uploaded: no code, git state, console output or machine statistics. trackio
fixes its folder (TRACKIO_DIR, else one in the Hugging Face cache) for the whole process when it is
first imported, so it cannot be in OUT; its dashboard also compares the runs of one folder.

A resumed run repeats, bit for bit, the steps after its last saved state. TensorBoard is told to
drop its lines of these steps. The other two cannot delete a line, so OUT/wandb.json and
OUT/trackio.json hold the run's id and its last step there, and lines up to that step are not sent
again. Both write with a delay: a run killed with SIGKILL may lack its last second there, but not in
metrics.jsonl.

The packages are imported when their sink opens. They may print to stderr, never to stdout, which
carries data.
"""

from __future__ import annotations

import contextvars
import importlib.util
import io
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from saekit.errors import MissingError, UsageError, check_choice, opt
from saekit.store.files import read_json, write_json

PROJECT = "saekit"  # of runs that stay on this machine, and of all in a Space
FLUSH_SECONDS = 1.0  # W&B's own 15 s would be lost when a run is killed


class Sink(Protocol):
    def write(self, figures: Mapping[str, float | None]) -> None:
        """One line of metrics: `step` and the values at that step; values that are not finite are
        dropped."""

    def close(self) -> None:
        """Write what is still buffered. With an upload this waits for the network."""


class TensorBoard:
    takes: str | None = None

    def __init__(
        self, target: str, out: Path, settings: Mapping[str, Any], resumed_step: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops events from purge_step on that it read from earlier files.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=resumed_step + 1)
        if resumed_step == 0:
            rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def write(self, figures: Mapping[str, float | None]) -> None:
        for name, value in _numbers(figures).items():
            self._writer.add_scalar(name, value, _step(figures))
        # By default it flushes every two minutes: a killed run would lack lines from before the
        # resumed step.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    takes: str | None = "PROJECT or ENTITY/PROJECT"

    def __init__(
        self, target: str, out: Path, settings: Mapping[str, Any], resumed_step: int
    ) -> None:
        self._sent = _Sent(out / "wandb.json", target)
        entity, _, project = target.rpartition("/")
        # Reports of wandb's own errors would be sent even from an offline run.
        with _process_as_it_was({"WANDB_ERROR_REPORTING": "false"}):
            import wandb

            options = wandb.Settings(
                silent=not target, console="off", reinit="create_new",
                x_transaction_log_flush_interval=FLUSH_SECONDS,
                disable_code=True, disable_git=True, label_disable=True, save_code=False,
                x_save_requirements=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            )  # fmt: skip
            try:
                self._run = wandb.init(
                    project=project or PROJECT,
                    entity=entity or None,
                    dir=str(out),
                    id=self._sent.run,
                    name=out.resolve().name,
                    resume="allow",
                    # WANDB_MODE may forbid an upload, but never turns a local run into one.
                    mode=None if target else "offline",
                    config=dict(settings),
                    settings=options,
                )
            except wandb.errors.Error as error:  # pyright: ignore[reportAttributeAccessIssue]
                hint = f"`wandb login`, or {opt('log', 'wandb')}, which stays on this machine"
                raise MissingError(f"{opt('log', f'wandb:{target}')}: {error}", hint) from None

    def write(self, figures: Mapping[str, float | None]) -> None:
        if self._sent.is_new(figures):
            self._run.log(_numbers(figures), step=_step(figures), commit=True)
            self._sent.note(figures)

    def close(self) -> None:
        with _process_as_it_was():
            self._run.finish()


class Trackio:
    takes: str | None = "SPACE"

    def __init__(
        self, target: str, out: Path, settings: Mapping[str, Any], resumed_step: int
    ) -> None:
        self._sent, self._uploads = _Sent(out / "trackio.json", target), bool(target)
        # a Space identifies the run to be resumed only by its name
        name = f"{out.resolve().name}-{self._sent.run}"
        with _process_as_it_was():
            self._run = (
                self._uploaded(target, name, settings) if target else self._local(name, settings)
            )

    def _local(self, name: str, settings: Mapping[str, Any]) -> Any:
        import trackio  # pyright: ignore[reportMissingImports]

        class LocalRun(trackio.Run):
            def _get_username(self) -> None:
                """trackio would ask the Hub for the owner of this machine's token."""

        # Not trackio.init, which follows TRACKIO_SPACE_ID and TRACKIO_SERVER_URL.
        return LocalRun(
            None, PROJECT, None, name=name, run_id=self._sent.run, config=dict(settings)
        )

    def _uploaded(self, target: str, name: str, settings: Mapping[str, Any]) -> Any:
        import trackio  # pyright: ignore[reportMissingImports]
        from huggingface_hub.utils import httpx

        hint = f"`hf auth login`, or {opt('log', 'trackio')}, which stays on this machine"
        try:
            # In a separate context: init would end a run that the caller may have open.
            return contextvars.Context().run(
                trackio.init, PROJECT, name, space_id=target, config=dict(settings),
                resume="allow", private=True, embed=False,
                auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        # not logged in, a Space that takes no runs, no network
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise MissingError(f"{opt('log', f'trackio:{target}')}: {error}", hint) from None

    def write(self, figures: Mapping[str, float | None]) -> None:
        if self._sent.is_new(figures):
            self._run.log(_numbers(figures), step=_step(figures))
            self._sent.note(figures)

    def close(self) -> None:
        # trackio prints that it uploads, even for a local run.
        with _process_as_it_was(), redirect_stdout(sys.stderr if self._uploads else io.StringIO()):
            self._run.finish()


SINKS: dict[str, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_sinks(specs: Sequence[str]) -> None:
    """Raise for sinks that could not be opened: UsageError (no such sink, one given twice),
    MissingError (package not installed)."""
    names = [spec.partition(":")[0] for spec in specs]
    for spec, name in zip(specs, names):
        check_choice("log", name, SINKS)
        takes, target = SINKS[name].takes, spec.partition(":")[2]
        if target and takes is None:
            raise UsageError(
                f"{opt('log', spec)}: {name} uploads nothing and takes no name", opt("log", name)
            )
        if ":" in spec and not target:
            raise UsageError(
                f"{opt('log', spec)}: no name after the colon",
                opt("log", name) + (f", or a {takes} to upload to" if takes else ""),
            )
        if names.count(name) > 1:
            raise UsageError(f"{opt('log', name)} is given twice", "give each sink once")
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingError(
                f"{opt('log', name)} needs the package {name}, which is not installed",
                "pip install 'saekit[loggers]'",
            )


def open_sinks(
    specs: Sequence[str], out: Path, settings: Mapping[str, Any], resumed_step: int
) -> list[Sink]:
    """The sinks of the run in the folder `out`; `settings` are shown beside its curves.

    `resumed_step`: steps finished before this process; 0 in a new run. Raises as check_sinks does,
    and MissingError when the service of an upload cannot be reached.
    """
    check_sinks(specs)
    sinks: list[Sink] = []
    with ExitStack() as opened:
        for spec in specs:
            name, _, target = spec.partition(":")
            sinks.append(SINKS[name](target, out, settings, resumed_step))
            opened.callback(sinks[-1].close)
        opened.pop_all()  # all are open: closing them is the caller's now
    return sinks


class _Sent:
    """What was already sent to a service that cannot delete a line, in a file that outlives the
    process.

    One entry per target: a resumed run that is uploaded for the first time has sent nothing there
    yet.
    """

    def __init__(self, path: Path, target: str) -> None:
        self._path = path
        self._targets = read_json(path, "a run with this sink") if path.exists() else {}
        # The id is random, not OUT's name: runs/a of two people must not become one run of a shared
        # project.
        new = {"run": secrets.token_hex(4), "step": 0}
        self._entry = self._targets.setdefault(target, new)
        write_json(path, self._targets)

    @property
    def run(self) -> str:
        return self._entry["run"]

    def is_new(self, figures: Mapping[str, float | None]) -> bool:
        return _step(figures) > self._entry["step"]

    def note(self, figures: Mapping[str, float | None]) -> None:
        self._entry["step"] = _step(figures)
        write_json(self._path, self._targets)


def _step(figures: Mapping[str, float | None]) -> int:
    step = figures["step"]
    assert step is not None
    return int(step)


def _numbers(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: value
        for name, value in figures.items()
        if name != "step" and value is not None and math.isfinite(value)
    }


@contextmanager
def _process_as_it_was(environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Give `environment` to a library while it starts or ends, and undo its changes to the process.

    wandb leaves the address of its service in the environment and replaces sys.exit and
    sys.excepthook. trackio prints to stdout, and so does the service of wandb, a process that keeps
    the stdout it was started with: hence the descriptor is redirected as well.
    """
    before, hooks = dict(os.environ), (sys.exit, sys.excepthook)
    os.environ.update(environment or {})
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        sys.exit, sys.excepthook = hooks

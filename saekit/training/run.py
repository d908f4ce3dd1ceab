"""store -> checkpoint: the verb `train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from saekit.device import use_device
from saekit.display import brief, html_table
from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import labelled_options, model_options, restore
from saekit.options import Overwrite, Resume, keywords
from saekit.rows import Rows
from saekit.store.checkpoint import CONFIG, MODEL, read_checkpoint, write_checkpoint
from saekit.store.files import read_json
from saekit.store.folder_kinds import RUN as RUN_KIND
from saekit.store.manifest import differences
from saekit.store.opening import RowsLike, open_rows
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.run_folder import run_folder
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import load
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolve
from saekit.training.fit import Estimate, fit, holdout_figures
from saekit.training.keywords import TrainKeywords
from saekit.training.sinks import Sink, open_sinks
from saekit.types import Progress
from saekit.versions import versions

DIVERGED_FVU = 100.0  # so many times worse than the mean row is not a model
# after a run that diverged
CALMER = f"{opt('overwrite', True)} with a lower {opt('lr')}, or with {opt('clip', 1)}"
SHOWN = (
    "fvu",
    "cosine",
    "l0",
    "dead",
    "dead_train",
    "diversity",
    "classes",
)  # of the metrics, where a result is printed
RUN = RUN_KIND.marker  # what a resume must agree with; written when the folder is made


@dataclass(frozen=True)
class TrainResult:
    path: str | None
    """The checkpoint folder; None where nothing was written."""
    step: int
    rows: int
    """Rows trained on, counted with repetition."""
    rows_per_s: float
    backend: str
    metrics: dict[str, float | None]
    """On the held-out rows: fvu, mse, cosine, l0, dead; dead_train over the last dead_rows training
    rows (None in a shorter run). A model that encodes nothing has None for these, and diversity and
    classes of its samples."""

    def __repr__(self) -> str:
        return brief(self, self._figures())

    def _repr_html_(self) -> str:
        return html_table([self._figures()], "TrainResult")

    def _figures(self) -> dict[str, Any]:
        drawn = {name for name in ("diversity", "classes") if name not in self.metrics}
        metrics = {name: self.metrics.get(name) for name in SHOWN if name not in drawn}
        run = {"step": self.step, "rows": self.rows, "rows_per_s": round(self.rows_per_s)}
        return {"path": self.path, **metrics, **run, "backend": self.backend}

    @cached_property
    def model(self) -> Autoencoder:
        """The trained model, as `saekit.load` gives it: in eval mode, on the CPU, it takes raw
        rows. Read from `path` when first used."""
        assert self.path is not None, "a run that wrote nothing sets its model"
        return load(self.path)


@dataclass(frozen=True)
class TrainPlan:
    """What a run would do: for a dry run and the first line on the screen."""

    model: str
    d_in: int
    latents: int
    parameters: int
    rows: int
    steps: int
    train_rows: int
    memory_bytes: int
    backend: str


@keywords(TrainConfig, more=labelled_options())
def train(
    activations: RowsLike,
    /,
    out: str | Path | None = None,
    *,
    config: TrainConfig | None = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[TrainKeywords],
) -> TrainResult:
    """Train one autoencoder on rows; with `out`, write a checkpoint folder. The model acts on raw
    rows.

    >>> result = saekit.train(x_ND, sparsity="topk", k=32, latents=4096)  # nothing is written
    >>> code = result.model.encode(x_ND[:8])
    >>> saekit.train("acts/text", "runs/a", k=32, rows=8_000)

    Parameters
        activations: the path of a store, an open Store, a list of row-aligned ones (a crosscoder),
            a tensor or NumPy array (N,D), (N,T,D) or (N,H,W,D), or an iterable of such blocks,
            which is read once and kept in memory (saekit.store.opening). Of rows in memory 5 % are
            held out, whole sequences; they are normalized by default (center+scale), unless the
            model's output is bounded.
        out: the folder of the checkpoint. None: nothing is written, and `TrainResult.model` holds
            the only copy of the model.
        config: settings to start from; None: the defaults.
        resume: go on with a killed run in `out`, bit for bit; it must have been given the same rows
            (by content) and the same settings.
        overwrite: replace the run in `out`.
        options: fields of TrainConfig (batch, lr, seed, rows: the number of rows to train on, ...)
            and of the model's config (sparsity, k, expansion, ...), flat. They override `config`.

    Raises UsageError (options), DataError (rows, `out`), MissingError (no store), NumericsError
    (NaN, divergence), BackendError; KeyboardInterrupt after the state has been saved, where there
    is an `out`.
    """
    config = (config or TrainConfig()).with_options({**options})
    return prepare(activations, out, config).execute(resume, overwrite, progress)


def prepare(
    rows: RowsLike, out: str | Path | None = None, config: TrainConfig | None = None
) -> TrainRun:
    """A run that has not begun: its `plan()` says what it would do, `execute()` does it. `rows`,
    `out`, `config` and what is raised: as for `train`."""
    config = config or TrainConfig()
    source = open_rows(rows)
    if isinstance(source, StackedStore):  # a run records the first store, the others as an option
        source, *others = source.sources
        stores = (*(str(store.path) for store in others), *config.stores)
        config = dataclasses.replace(config, stores=stores)
    return TrainRun(source, None if out is None else Path(out), config)


class TrainRun:
    """One training run: rows, model and resolved config; `out` None: nothing is written."""

    def __init__(
        self, store: Rows, out: Path | None, config: TrainConfig, live: bool = False
    ) -> None:
        """`live`: the rows will be of the store's model, not of the store (`read_from`)."""
        self.store, self.out, self.live = store, out, live
        self.asked_rows = config.rows
        resolved = resolve(config, store, live)
        self.notice = resolved.notice
        self.model, self.source, self.config = resolved.model, resolved.rows, resolved.config
        self.device, self.backend, self.steps = resolved.device, resolved.backend, resolved.steps
        self._estimated: Estimate | None = None

    def read_from(self, source: Rows, estimated: Estimate) -> None:
        """Another source of the same store's rows, which other runs read too
        (saekit.training.shared). `estimated` gives the statistics of the store."""
        self._estimated = estimated
        self.source = WithPrevious(source) if isinstance(self.source, WithPrevious) else source

    def plan(self) -> TrainPlan:
        parameters = sum(t.numel() for t in self.model.state_dict().values())
        closed = self.model.strategy == "closed_form"
        train_rows = self.store.count("train")
        rows = train_rows if closed else self.steps * self.config.batch
        # fp32 weights, gradients, two moments and an average; what a batch leaves for the backward
        # pass; the window of the loader.
        latents = self.model.latents
        weights = parameters * (16 if self.config.ema is None else 20)
        memory = (
            weights
            + (0 if closed else self.model.batch_bytes(self.config.batch))
            + 65_536 * self.store.spec.d_in * 2
        )
        steps = 1 if closed else self.steps
        return TrainPlan(
            self.config.model,
            self.store.spec.d_in,
            latents,
            parameters,
            rows,
            steps,
            train_rows,
            memory,
            self.backend.name,
        )

    def execute(
        self,
        resume: bool = False,
        overwrite: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> TrainResult:
        """Train, and write the checkpoint. Errors as for `train`."""
        if self.asked_rows is not None and self.asked_rows < self.config.batch:
            step = f"one step of {self.config.batch:,} rows is trained"
            text = f"{opt('rows', self.asked_rows)}: {step}; {opt('batch')} makes steps smaller"
            progress(Progress("train", 0, 0, message=text))
        if self.notice:
            progress(Progress("train", 0, 0, message=self.notice))
        # Without a folder.
        if self.out is None:
            self._check_unwritten(resume, overwrite)
            return self._train(None, progress)
        # With one, unless it holds the result already.
        identity = self._identity()

        def differs(_: int, path: Path) -> str:
            return differences(read_json(path / RUN, "a run"), identity)

        with run_folder(
            self.out, RUN_KIND, resume=resume, overwrite=overwrite, differs=differs
        ) as folder:
            if (
                folder.resuming
                and (folder.path / MODEL).exists()
                and (folder.path / CONFIG).exists()
            ):
                finished = read_checkpoint(folder.path).config["result"]
                return TrainResult(**finished | {"path": str(self.out)})
            if folder.notice:
                progress(Progress("train", 0, 0, message=folder.notice))
            folder.begin(identity, self._settings())
            return self._train(folder.path, progress)

    def _check_unwritten(self, resume: bool, overwrite: bool) -> None:
        """Raise UsageError for what only a run with a folder can do."""
        given = {"resume": resume, "overwrite": overwrite, "log": bool(self.config.log)}
        if names := [name for name, value in given.items() if value]:
            raise UsageError(
                f"{opt(names[0])} needs a folder, and this run writes nothing", f"give {opt('out')}"
            )

    def _settings(self) -> dict[str, Any]:
        """Every option as it was resolved, defaults too: the file means the same when a default
        changes. What follows from other options is not repeated, so that these can be changed."""
        options, resolved = self.config.options, dataclasses.asdict(self.model.config)
        for name, option in model_options(self.config.model, resolved.get("sparsity")).items():
            if name in options or option.default is not None:
                options = options | {name: resolved[name]}
        settings = {**self.config.flat(), **options, "latents": resolved["latents"]}
        settings.pop("expansion", None)
        if isinstance(self.store, Store):  # rows in memory cannot be found again
            settings["store"] = str(self.store.path)
        return settings

    def _identity(self) -> dict[str, Any]:
        """What a resume must agree with, resolved: a run goes on under its own config.toml as well
        as under the flags that began it."""
        # Settings of the run and of its model.
        of_run = {
            f.name: getattr(self.config, f.name)
            for f in dataclasses.fields(self.config)
            if f.name not in ("options", "save_seconds", "log")
        }
        model = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self.model.config).items()
        }
        of_run["stores"] = list(of_run["stores"])
        # The content of what it reads.
        content = {
            "schema_version": 1,
            "store": self.source.spec.fingerprint,
            "content": self.store.content,
        }
        if (target := self.source.target) is not None:
            content |= {"target": target.spec.fingerprint, "target_content": target.content}
        if self.live:
            content["live"] = True
        if model.get("sparsity") == "kl":  # not the sigmoid codes that had this name once
            content["code"] = "relu"
        return {
            **of_run,
            **model,
            **content,
            "device": self.device.type,
            "backend": self.backend.name,
        }

    def _train(self, path: Path | None, progress: Callable[[Progress], None]) -> TrainResult:
        def sinks(resumed_step: int) -> list[Sink]:
            if path is None:
                return []
            return open_sinks(self.config.log, path, self._settings(), resumed_step)

        use_device(self.device)  # a run may have been prepared in another thread
        # Training.
        fitted = fit(
            self.model,
            self.source,
            self.config,
            self.steps,
            self.device,
            self.backend.name,
            path,
            progress,
            sinks,
            self._estimated,
        )
        # The model as it will be loaded, on the held-out rows.
        resolved_options = dataclasses.asdict(self.model.config)
        final = restore(self.config.model, resolved_options, fitted.tensors)
        figures = holdout_figures(final, self.source, device=self.device).scalars() | fitted.figures
        fvu, mse = figures["fvu"], figures["mse"]
        if fvu is not None and mse is not None:  # a generator reconstructs nothing
            if math.isnan(fvu) and math.isfinite(mse):
                raise DataError(
                    "the held-out rows do not vary, so fvu has no value",
                    f"harvest more rows, or with a larger {opt('holdout')}",
                )
            if not fvu <= DIVERGED_FVU:
                raise NumericsError(f"the run diverged: held-out fvu {fvu:.3g}", CALMER)
        # The result, in memory or in the folder.
        rate = round(fitted.done / max(fitted.seconds, 1e-9), 1)
        where = None if self.out is None else str(self.out)
        result = TrainResult(where, fitted.steps, fitted.rows, rate, self.backend.name, figures)
        if path is None:
            vars(result)["model"] = final
        else:
            self._write(
                path,
                fitted.tensors,
                resolved_options,
                fitted.normalize.scales(self.source.parts),
                result,
            )
        return result

    def _write(
        self,
        path: Path,
        tensors: dict,
        resolved: dict,
        scale: float | list[float],
        result: TrainResult,
    ) -> None:
        description = {
            "model": self.config.model,
            "config": resolved,
            "training": self.config.flat(),
            "spec": self.source.spec.to_json(),
            "fingerprint": self.source.spec.fingerprint,
            "content": self.store.content,
            "input_scale": scale,
            "backend": dataclasses.asdict(self.backend),
            "result": dataclasses.asdict(result) | {"path": ""},
            "versions": versions(),
        }
        write_checkpoint(path, description, tensors)

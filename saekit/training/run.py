"""store -> checkpoint: the verb `train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from saekit_kernels import Backend, resolve_backend

from saekit.device import pick_device
from saekit.errors import BackendError, DataError, NumericsError, UsageError, check_choice, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import build, flags_of, options_of, restore
from saekit.models.sae import SAE
from saekit.rows import Rows
from saekit.store.checkpoint import CONFIG, MODEL, read_checkpoint, write_checkpoint
from saekit.store.files import read_json, write_config, write_json
from saekit.store.folder_kinds import RUN as RUN_KIND
from saekit.store.manifest import differences
from saekit.store.opening import RowsLike, open_rows
from saekit.store.pair import PairedStore
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.run_folder import run_folder
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import load
from saekit.training.config import TrainConfig
from saekit.training.defaults import memory_normalize, resolved
from saekit.training.fit import Estimate, fit, holdout_figures, training_units
from saekit.training.optim import BETA2, WARMUP_SHARE, decay_share
from saekit.training.sinks import Sink, open_sinks
from saekit.types import Progress

DIVERGED_FVU = 100.0  # so many times worse than the mean row is no model
# after a run that diverged
CALMER = f"{opt('overwrite', True)} with a lower {opt('lr')}, or with {opt('clip', 1)}"
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
    rows (None in a shorter run)."""

    @cached_property
    def model(self) -> Autoencoder:
        """The trained model, as `saekit.load` gives it: in eval mode, on the CPU, it takes raw
        rows. Read from `path` when first used."""
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


def train(
    rows: RowsLike,
    /,
    out: str | Path | None = None,
    *,
    config: TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> TrainResult:
    """Train one autoencoder on rows; with `out`, write a checkpoint folder. The model acts on raw
    rows.

    >>> result = saekit.train(x_ND, sparsity="topk", k=32, latents=4096)  # nothing is written
    >>> code = result.model.encode(x_ND[:8])
    >>> saekit.train("acts/text", "runs/a", k=32, rows=8_000)

    Parameters
        rows: the path of a store, an open Store, a list of row-aligned ones (a crosscoder), a
            tensor or NumPy array (N,D), (N,T,D) or (N,H,W,D), or an iterable of such blocks, which
            is read once and kept in memory (saekit.store.opening). Of rows in memory 5 % are held
            out, whole sequences; they are normalized by default (center+scale), unless the model's
            output is bounded.
        out: the folder of the checkpoint. None: nothing is written, and `TrainResult.model` holds
            the only copy of the model.
        config: settings to start from; None: the defaults.
        resume: go on with a killed run in `out`, bit for bit; it must have been given the same rows
            (by content) and the same settings.
        overwrite: replace the run in `out`.
        progress: is called with a Progress at each line of metrics.
        options: fields of TrainConfig (batch, lr, seed, rows: the number of rows to train on, ...)
            and of the model's config (sparsity, k, expansion, ...), flat. They override `config`.

    Raises UsageError (options), DataError (rows, `out`), MissingError (no store), NumericsError
    (NaN, divergence), BackendError; KeyboardInterrupt after the state has been saved, where there
    is an `out`.
    """
    config = (config or TrainConfig()).with_options(options)
    source = open_rows(rows)
    # a run records the first store, and the others as an option
    if isinstance(source, StackedStore):
        source, *others = source.sources
        config = dataclasses.replace(
            config, stores=(*(str(store.path) for store in others), *config.stores)
        )
    if not isinstance(source, Store) and config.normalize is None:
        config = dataclasses.replace(config, normalize=memory_normalize(config.options))
    return Run(source, None if out is None else Path(out), config).execute(
        resume, overwrite, progress
    )


def plan_training(store: str | Path, config: TrainConfig) -> TrainPlan:
    """The plan alone; nothing is written."""
    return Run(Store(Path(store)), Path("-"), config).plan()


class Run:
    """One training run: rows, model and resolved config; `out` None: nothing is written."""

    def __init__(self, store: Rows, out: Path | None, config: TrainConfig) -> None:
        self.store, self.out, self.live = store, out, False
        self.device = pick_device(config.device)
        self.source, d_out = _source(store, config)
        self._estimated: Estimate | None = None
        # The seed of the run is that of a model that keeps one of its own.
        options = config.options | (
            {"seed": config.seed}
            if config.model != "sae" and "seed" in options_of(config.model)
            else {}
        )
        spec = self.source.spec
        self.model = build(config.model, spec.d_in, options, spec.shape, d_out, self.source.parts)
        if self.model.needs_previous:
            self.source = WithPrevious(self.source)
        self.backend = pick_backend(self.model, config.backend, self.device)
        self.units = training_units(self.model, self.source)
        check_strategy(self.model, config)
        config = resolved(config, self.model, self.units)
        self.config = dataclasses.replace(config, decay=decay_share(config, self.model))
        if self.model.strategy != "closed_form" and self.config.batch > self.units:
            what = "rows" if self.units == store.count("train") else "examples"
            cause = (
                f"{opt('batch', self.config.batch)} is above the {self.units:,} training {what} of"
                f" {store.path}"
            )
            raise DataError(cause, opt("batch", max(self.units // 4, 1)))
        self.steps = max(self.config.rows // self.config.batch, 1)

    def read_from(self, source: Rows, live: bool, estimated: Estimate) -> None:
        """Another source of the same store's rows, which other runs read too
        (saekit.training.shared); `live`: of rows that the store does not hold. `estimated` gives
        the statistics of the store."""
        self.live, self._estimated = live, estimated
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
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> TrainResult:
        if self.out is None:
            self._check_unwritten(resume, overwrite)
            return self._train(None, progress)
        identity = self._identity()

        def differs(_: int, path: Path) -> str:
            return differences(self._before_choice() | read_json(path / RUN, "a run"), identity)

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
            if not folder.resuming:
                write_json(folder.path / RUN, identity)
            write_config(folder.path / "config.toml", self._settings())
            return self._train(folder.path, progress)

    def _check_unwritten(self, resume: bool, overwrite: bool) -> None:
        """Raise UsageError for what only a run with a folder can do."""
        given = {"resume": resume, "overwrite": overwrite, "log": bool(self.config.log)}
        if names := [name for name, value in given.items() if value]:
            raise UsageError(
                f"{opt(names[0])} needs a folder, and this run writes nothing", f"give {opt('out')}"
            )

    def _settings(self) -> dict[str, Any]:
        """Every flag as it was resolved, defaults too: the file means the same when a default
        changes."""
        own = dataclasses.asdict(self.model.config)
        own |= {
            name: ",".join(map(str, value))
            for name, value in own.items()
            if isinstance(value, tuple)
        }
        flags = {
            name: own[name]
            for name in flags_of(self.config.model, own.get("sparsity"))
            if name in own
        }
        settings = {**self.config.flat(), **flags}
        if isinstance(self.store, Store):  # rows in memory cannot be found again
            settings["store"] = str(self.store.path)
        others = [name for name in self.config.options if name not in flags and name != "expansion"]
        if others:
            settings["set"] = [f"{name}={own[name]}" for name in others]
        for name in others:
            del settings[name]
        settings.pop("save_seconds")
        settings.pop("expansion", None)  # latents says it
        return settings

    def _identity(self) -> dict[str, Any]:
        """What a resume must agree with, resolved: a run goes on under its own config.toml as well
        as under the flags that began it."""
        own = {
            f.name: getattr(self.config, f.name)
            for f in dataclasses.fields(self.config)
            if f.name not in ("options", "save_seconds", "log")
        }
        model = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self.model.config).items()
        }
        own["stores"] = list(own["stores"])
        content = {
            "schema_version": 1,
            "store": self.source.spec.fingerprint,
            "content": self.store.content,
        }
        if (target := self.source.target) is not None:
            content |= {"target": target.spec.fingerprint, "target_content": target.content}
        if self.live:
            content["live"] = True
        return {**own, **model, **content, "device": self.device.type, "backend": self.backend.name}

    def _before_choice(self) -> dict[str, Any]:
        """What a run did while it could not be chosen: run.json of such a run is silent about it.
        What was not done at all is None, as is what is missing."""
        decay = decay_share(TrainConfig(), self.model)
        return {
            "schedule": "linear",
            "warmup": WARMUP_SHARE,
            "decay": decay,
            "beta2": BETA2,
            "precision": "float32",
        }

    def _train(self, path: Path | None, progress: Callable[[Progress], None]) -> TrainResult:
        def sinks(resumed_step: int) -> list[Sink]:
            return open_sinks(self.config.log, path, self._settings(), resumed_step)

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
        resolved_options = dataclasses.asdict(self.model.config)
        final = restore(self.config.model, resolved_options, fitted.tensors)
        figures = holdout_figures(final, self.source).scalars() | fitted.figures
        if math.isnan(figures["fvu"]) and math.isfinite(figures["mse"]):
            raise DataError(
                "the held-out rows do not vary, so fvu has no value",
                f"harvest more rows, or with a larger {opt('holdout')}",
            )
        if not figures["fvu"] <= DIVERGED_FVU:
            raise NumericsError(f"the run diverged: held-out fvu {figures['fvu']:.3g}", CALMER)
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
            "versions": {name: version(name) for name in ("saekit", "torch")},
        }
        write_checkpoint(path, description, tensors)


def _source(rows: Rows, config: TrainConfig) -> tuple[Rows, int]:
    """(the rows of a run, with a target or side by side with those of more stores; the target's
    width, 0 without one)."""
    if config.target_store is None and not config.stores:
        return rows, 0
    if not isinstance(rows, Store):
        option = opt("stores" if config.stores else "target_store")
        raise UsageError(
            f"{option}: rows in memory cannot be aligned with those of a store",
            "give the path of a store",
        )
    if config.stores:
        return StackedStore([rows, *(Store(Path(path)) for path in config.stores)]), 0
    target = Store(Path(config.target_store))
    return PairedStore(rows, target), target.spec.d_in


def check_strategy(model: torch.nn.Module, config: TrainConfig) -> None:
    """Raise UsageError where ema or precision would do nothing, or harm."""
    closed = model.strategy == "closed_form"
    if closed and config.ema is not None:
        cause = (
            f"{opt('ema', config.ema)}: {opt('model', config.model)} is fitted in one go, there are"
            " no steps to average"
        )
        raise UsageError(cause, f"drop {opt('ema')}")
    if config.precision == "float32":
        return
    why = f"{opt('model', config.model)} is fitted in fp64" if closed else ""
    if model.sparse_kernels:
        why = (
            f"the kernels of {opt('sparsity', model.config.sparsity)} choose their own precision"
            " (docs/kernels.md)"
        )
    if why:
        raise UsageError(f"{opt('precision', config.precision)}: {why}", f"drop {opt('precision')}")


def pick_backend(model: torch.nn.Module, asked: str, device: torch.device) -> Backend:
    """Kernels are for sparse codes: a model without a fused step runs on plain torch. Raises
    UsageError, BackendError."""
    if not isinstance(model, SAE):
        if asked == "triton":
            raise UsageError(
                f"{opt('backend', asked)}: this model has no sparse code", f"drop {opt('backend')}"
            )
        return Backend("torch", "the model has no sparse code")
    check_choice("backend", asked, ("auto", "triton", "torch"))
    try:
        return resolve_backend(asked, device.type)
    except ValueError as error:  # of the variable that stands in for auto
        raise UsageError(str(error), option="backend") from None
    except RuntimeError as error:
        raise BackendError(f"{opt('backend', asked)}: {error}", opt("backend", "torch")) from None

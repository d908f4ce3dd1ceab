"""store -> checkpoint: the verb `train`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from saekit_kernels import keep_freed_memory, resolve_backend

from saekit.config import write_toml
from saekit.device import pick_device
from saekit.errors import BackendError, DataError, NumericsError, UsageError
from saekit.models.catalog import build, flags_of, restore
from saekit.models.metrics import Figures, RowSums
from saekit.store.checkpoint import CONFIG, MODEL, write_checkpoint
from saekit.store.files import prepare_output, read_json, write_json
from saekit.store.manifest import differences
from saekit.store.reader import Store
from saekit.training.config import EPOCHS, TrainConfig
from saekit.training.inputs import checked, estimate
from saekit.training.loop import Trainer
from saekit.training.optim import default_lr
from saekit.types import Progress, Split

DIVERGED_FVU = 100.0  # so many times worse than the mean row is no model
RUN = "run.json"  # what a resume must agree with; written when the folder is made


@dataclass(frozen=True)
class TrainResult:
    path: str
    step: int
    rows: int
    """Rows trained on, counted with repetition."""
    rows_per_s: float
    backend: str
    metrics: dict[str, float | None]
    """On the held-out rows: fvu, mse, cosine, l0, dead; dead_train over the last dead_rows training rows (None in a shorter run)."""


@dataclass(frozen=True)
class TrainPlan:
    """What a run would do: for --dry-run and the first line on the screen."""

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
    store: str | Path,
    out: str | Path,
    *,
    config: TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> TrainResult:
    """Train one autoencoder on a store and write a checkpoint folder that acts on raw activations.

    Options are the fields of TrainConfig and of the model's config, flat: `train("acts", "runs/a", sparsity="topk", k=32)`.
    `resume` continues a killed run bit for bit. Raises UsageError, DataError (store, OUT), NumericsError, BackendError;
    KeyboardInterrupt after the state has been saved.
    """
    run = _Run(Store(Path(store)), Path(out), config or TrainConfig.from_flat(options))
    return run.execute(resume, overwrite, progress)


def plan_training(store: str | Path, config: TrainConfig) -> TrainPlan:
    """The plan alone; nothing is written."""
    return _Run(Store(Path(store)), Path("-"), config).plan()


class _Run:
    def __init__(self, store: Store, out: Path, config: TrainConfig) -> None:
        self.store, self.out = store, out
        self.device = pick_device(config.device)
        try:
            self.backend = resolve_backend(config.backend, self.device.type)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        except RuntimeError as error:
            raise BackendError(f"--backend {config.backend}: {error}", "--backend torch") from None
        self.model = build(config.model, store.spec.d_in, config.options)
        sparsity = getattr(self.model.config, "sparsity", None)
        self.config = dataclasses.replace(config, lr=config.lr or default_lr(self.model.latents, sparsity))
        self.train_rows = len(store.split("train"))
        if self.model.strategy != "closed_form" and config.batch > self.train_rows:
            cause = f"--batch {config.batch:,} is above the {self.train_rows:,} training rows of {store.path}"
            raise DataError(cause, f"--batch {max(self.train_rows // 4, 1)}")
        self.steps = max((config.rows or EPOCHS * self.train_rows) // config.batch, 1)

    def plan(self) -> TrainPlan:
        parameters = sum(t.numel() for t in self.model.state_dict().values())
        closed = self.model.strategy == "closed_form"
        rows = self.train_rows if closed else self.steps * self.config.batch
        # fp32 weights, gradients and two moments; two copies of a batch of codes; the window of the loader.
        latents = self.model.latents
        codes = 0 if closed else 2 * min(self.config.batch, 1024 if self.model.config.sparsity == "topk" else 1 << 30) * latents * 4
        memory = parameters * 16 + codes + 65_536 * self.store.spec.d_in * 2
        steps = 1 if closed else self.steps
        return TrainPlan(
            self.config.model, self.store.spec.d_in, latents, parameters, rows, steps, self.train_rows, memory, self.backend.name
        )

    def execute(self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]) -> TrainResult:
        resuming = prepare_output(self.out, RUN, resume=resume, overwrite=overwrite)
        identity = self._identity()
        if resuming:
            changed = differences(read_json(self.out / RUN, "a run"), identity)
            if changed:
                raise DataError(
                    f"{self.out} was trained with other settings: {changed}",
                    "--resume with the old settings, --overwrite, or another OUT",
                )
            if (self.out / MODEL).exists() and (self.out / CONFIG).exists():
                return TrainResult(**read_json(self.out / CONFIG, "a checkpoint")["result"] | {"path": str(self.out)})
        else:
            write_json(self.out / RUN, identity)
            write_toml(self.out / "config.toml", self._settings())
        return self._train(progress)

    def _settings(self) -> dict[str, Any]:
        """Every flag as it was resolved, defaults too: the file means the same when a default changes."""
        own = dataclasses.asdict(self.model.config)
        flags = {name: own[name] for name in flags_of(self.config.model, own.get("sparsity")) if name in own}
        settings = {**self.config.flat(), **flags, "store": str(self.store.path)}
        settings.pop("save_seconds")
        settings.pop("expansion", None)  # latents says it
        return settings

    def _identity(self) -> dict[str, Any]:
        config = self.config.flat()
        config.pop("save_seconds")
        content = {"schema_version": 1, "store": self.store.spec.fingerprint, "content": self.store.manifest.content}
        return {**config, **content, "device": self.device.type, "backend": self.backend.name}

    def _train(self, progress: Callable[[Progress], None]) -> TrainResult:
        config, model = self.config, self.model
        keep_freed_memory()
        began = time.monotonic()
        normalize, sample = estimate(self.store, config.normalize, config.seed, self.device)
        steps, figures = 1, {}
        if model.strategy == "closed_form":
            batches = checked(self.store, self.store.batches(8192, split="train"))
            model.fit(normalize(batch).x.cpu() for batch in batches)
            rows, seconds, done = self.train_rows, time.monotonic() - began, self.train_rows
        else:
            model.initialise(sample.cpu(), torch.Generator().manual_seed(config.seed))
            model.backend = self.backend.name
            trainer = Trainer(model.to(self.device), self.store, normalize, config, self.steps, self.out)
            trainer.restore()
            done = (self.steps - trainer.step) * config.batch
            seconds = trainer.run(progress)
            normalize, steps, rows = trainer.normalize, self.steps, self.steps * config.batch
            if trainer.dead is not None:
                figures["dead_train"] = trainer.dead_share()
        tensors = {n: t.detach().cpu().clone() for n, t in model.folded(normalize.mean_D, normalize.scale).items()}
        resolved = dataclasses.asdict(model.config)
        figures = holdout_figures(restore(config.model, resolved, tensors), self.store).scalars() | figures
        if not figures["fvu"] <= DIVERGED_FVU:
            raise NumericsError(f"the run diverged: held-out fvu {figures['fvu']:.3g}", "--overwrite with a lower --lr, or with --clip 1")
        result = TrainResult(str(self.out), steps, rows, round(done / max(seconds, 1e-9), 1), self.backend.name, figures)
        self._write(tensors, resolved, normalize.scale, result)
        return result

    def _write(self, tensors: dict, resolved: dict, scale: float, result: TrainResult) -> None:
        description = {
            "model": self.config.model,
            "config": resolved,
            "training": self.config.flat(),
            "spec": self.store.spec.to_json(),
            "fingerprint": self.store.spec.fingerprint,
            "content": self.store.manifest.content,
            "input_scale": scale,
            "backend": dataclasses.asdict(self.backend),
            "result": dataclasses.asdict(result) | {"path": ""},
            "versions": {name: version(name) for name in ("saekit", "torch")},
        }
        write_checkpoint(self.out, description, tensors)


def holdout_figures(model: torch.nn.Module, store: Store, split: Split = "holdout", rows: int | None = None) -> Figures:
    """The figures of a model that takes raw activations, on one side of a store. Raises NumericsError for a row that is not finite."""
    sums = RowSums(model.active_above)
    with torch.no_grad():
        for batch in checked(store, store.batches(4096, split=split)):
            x = batch.x.float() if rows is None else batch.x[: rows - sums.rows].float()
            output = model(x)
            sums.add(x, output.x_hat, output.code)
            if rows is not None and sums.rows >= rows:
                break
    return sums.figures()

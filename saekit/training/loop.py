"""The gradient loop: one for every model. It knows an `Autoencoder`, a source of rows, and what a
resume needs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from saekit.errors import BackendError, NumericsError, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.normalizer import Normalizer
from saekit.rows import Rows
from saekit.store.checkpoint import damaged_state, read_train_state, write_train_state
from saekit.training.average import Average
from saekit.training.config import TrainConfig
from saekit.training.dead import RESAMPLED, DeadTracker, dead_rows, resampling_steps, revive_rows
from saekit.training.inputs import BatchNormalizer, check_peaks, peaks, scale_from
from saekit.training.logging import MetricsFile
from saekit.training.optim import (
    adam_tensors,
    decay_share,
    make_adam,
    need_like,
    products_in_bfloat16,
    reset_moments,
    restore_adam,
    schedule,
)
from saekit.training.sinks import Sink
from saekit.training.step import apply_gradients, take_step
from saekit.typed import as_type
from saekit.types import ActivationBatch, LossTerms, Progress, Stage, Step

LOGS = 200  # lines of metrics in a run
# Steps between looks at the device: whether losses were finite and which latents are dead. Reading
# either makes the host wait for all work in flight, which costs nothing on a CPU.
LOOK_EVERY = {"cpu": 1}
LOOK_EVERY_ON_DEVICE = 32
LOOKS = 200  # in a run at least, as L0 is steered then
COMPARISONS = 20  # in a run: how often a model that steers its L0 is shown a batch of held-out rows


class Trainer:
    """A run in progress. `step` counts finished steps; the rows used so far are step * batch."""

    def __init__(
        self,
        model: Autoencoder,
        store: Rows,
        normalize: BatchNormalizer,
        config: TrainConfig,
        total: int,
        out: Path | None,
        sample: torch.Tensor | None = None,
        examples: bool = False,
        backend: str = "torch",
    ) -> None:
        """`out` None: no state and no metrics are written. `sample`: normalised rows, for models
        that look at some between stages. `examples`: the model takes whole examples, and a batch
        counts these."""
        self.model, self.store, self.normalize, self.config, self.total, self.out = (
            model,
            store,
            normalize,
            config,
            total,
            out,
        )
        self.sample, self.examples, self.backend = sample, examples, backend
        self.step = 0
        self.dead_order: torch.Tensor | None = None  # latents to revive, longest idle first
        self.names = [name for name, _ in model.named_parameters()]
        self.optimizer = make_adam(model, config.lr, config.weight_decay or 0.0, config.beta2)
        self.average = None if config.ema is None else Average(config.ema)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        n = store.count("train", examples)
        device = normalize.inputs.mean_D.device
        self.dead = None
        if model.active_above is not None:
            self.dead = DeadTracker(
                model.latents, dead_rows(n), revive_rows(n, total * config.batch), device
            )
        self.resample_at = resampling_steps(total) if model.resamples else set()
        self.stages = model.stages(total)
        self.decay = decay_share(config, model)
        self.look_every = LOOK_EVERY.get(
            device.type, min(LOOK_EVERY_ON_DEVICE, max(total // LOOKS, 1))
        )
        compares = model.compares and store.count("holdout") > 0
        self.comparisons = min(COMPARISONS, total) if compares else 0
        self.held_out: Iterator[ActivationBatch] | None = None
        # Steps whose loss has not been looked at: number, rows in the store, their peaks, and the
        # terms.
        self.unseen: list[
            tuple[int, torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]
        ] = []

    # -- state
    # ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        if self.out is None:
            return
        tensors = self._tensors() | adam_tensors(self.optimizer, self.names)
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        if self.dead_order is not None:
            tensors["dead_order"] = self.dead_order
        state = {"step": self.step, "model": self.model.run_state()}
        if self.average is not None:
            state["averaged"] = self.average.count
        write_train_state(self.out, tensors, state)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What a state holds of one shape from the first step to the last."""
        tensors = {
            f"model.{name}": value.detach() for name, value in self.model.state_dict().items()
        }
        inputs, targets = self.normalize.inputs, self.normalize.targets
        tensors |= {"mean": inputs.mean_D, "generator": self.generator.get_state()}
        tensors["scale"] = torch.as_tensor(inputs.scale, dtype=torch.float64)
        if self.dead is not None:
            tensors["idle"] = self.dead.idle
        if targets is not None:
            tensors["target_mean"] = targets.mean_D
            tensors["target_scale"] = torch.as_tensor(targets.scale, dtype=torch.float64)
        return tensors

    def restore(self) -> None:
        """Continue from the last saved state, if there is one."""
        saved = None if self.out is None else read_train_state(self.out)
        if saved is None:
            return
        try:
            self._continue_from(*saved)
        except (RuntimeError, ValueError) as error:
            raise damaged_state(self.out, error) from error

    def _continue_from(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        self.step = as_type(state.get("step"), int, "step")
        if not 0 <= self.step <= self.total:
            raise ValueError(f"step is {self.step} of {self.total}")
        need_like(tensors, self._tensors())
        if self.average is not None and as_type(state.get("averaged"), int, "averaged"):
            floats = {
                name: value
                for name, value in self.model.state_dict().items()
                if value.is_floating_point()
            }
            need_like(tensors, {f"average.{name}": value for name, value in floats.items()})
        if "dead_order" in tensors:
            order, latents = tensors["dead_order"], torch.arange(self.model.latents)
            if (
                order.dtype != torch.int64
                or order.dim() != 1
                or not torch.isin(order, latents).all()
            ):
                raise ValueError("dead_order names latents that there are not")
        if known := as_type(state.get("model"), dict[str, Any], "model"):
            self.model.continue_from(known)
        self.model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
        restore_adam(self.optimizer, self.names, tensors)
        self.generator.set_state(tensors["generator"])
        device = self.normalize.inputs.mean_D.device
        units = {
            prefix: Normalizer(
                tensors[f"{prefix}mean"].to(device), scale_from(tensors[f"{prefix}scale"], device)
            )
            for prefix in ("", "target_")
            if f"{prefix}mean" in tensors
        }
        self.normalize = BatchNormalizer(units[""], units.get("target_"))
        if self.average is not None:
            averaged = {n[8:]: t.to(device) for n, t in tensors.items() if n.startswith("average.")}
            self.average.restore(state["averaged"], averaged)
        if self.dead is not None:
            self.dead.idle.copy_(tensors["idle"])
            self.dead_order = tensors.get("dead_order", self.dead.dead()).to(device)

    # -- the loop
    # ----------------------------------------------------------------------------------------------

    def run(
        self,
        progress: Callable[[Progress], None],
        sinks: Callable[[int], list[Sink]] = lambda _: [],
    ) -> float:
        """Train to the end; the seconds spent in steps. On SIGINT or SIGTERM the state is saved and
        KeyboardInterrupt raised."""
        metrics = None if self.out is None else MetricsFile(self.out / "metrics.jsonl", self.step)
        opened = [] if metrics is None else [metrics, *sinks(self.step)]

        def save() -> None:
            if metrics is not None:
                metrics.sync()
            self.save()

        every = max(self.total // LOGS, 1)
        began = last_log = last_save = time.monotonic()
        save_every, logged = self.config.save_seconds, self.step
        batches = self.store.batches(
            self.config.batch,
            self.config.order,
            self.step * self.config.batch,
            "train",
            self.examples,
        )
        with ExitStack() as closing, deferred_interrupt() as interrupted:
            for sink in opened:  # closed last, when a second SIGINT can end a wait for the network
                closing.callback(sink.close)
            for raw in batches:
                if self.step >= self.total or interrupted():
                    break
                batch, terms = self.train_step(raw)
                now = time.monotonic()
                if self.step % every == 0 or self.step == self.total:
                    rate = (self.step - logged) * self.config.batch / max(now - last_log, 1e-9)
                    figures = self.figures(batch, terms) | {"rows_per_s": round(rate, 1)}
                    for sink in opened:
                        sink.write(figures)
                    rows = self.step * self.config.batch
                    progress(
                        Progress("train", rows, self.total * self.config.batch, figures=figures)
                    )
                    last_log, logged = now, self.step
                if now - last_save >= save_every:
                    self._check()
                    save()
                    last_save = time.monotonic()
                    # Saving never takes more than a twentieth of the time, however large the state.
                    save_every = max(save_every, 20 * (last_save - now))
            self._check()
            save()
            seconds = time.monotonic() - began  # waiting for an upload is not training
        if interrupted() or self.step < self.total:  # a source of rows without end was stopped
            raise KeyboardInterrupt
        return seconds

    @property
    def at(self) -> Step:
        """What the model is told of the coming step."""
        return Step(self.step, self.total, self.config.seed, self.dead_order, self.backend)

    def train_step(self, raw: ActivationBatch) -> tuple[ActivationBatch, LossTerms]:
        batch, stage = self.normalize(raw), self._stage()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._factor(stage)
        terms = self._take_step(batch)
        self.step += 1
        values = {"total": terms.total, **terms.terms, **terms.metrics}
        self.unseen.append(
            (
                self.step,
                raw.rows,
                peaks(batch),
                {name: value.detach() for name, value in values.items()},
            )
        )
        looks = self.step % self.look_every == 0
        if looks:
            self._check()
        if self.dead is not None and terms.fired is not None:  # a stage of pretraining has no code
            self.dead.update(terms.fired, len(batch.x))
            resamples = self.step in self.resample_at
            if looks or resamples:
                self.dead_order = self.dead.dead()
            if looks and self._compares():
                self._compare()
            if looks:
                self.model.observe(float(self.dead.l0), self.at)
            if resamples and len(self.dead_order):
                self._resample(batch)
        if self.average is not None:  # last, since steering and resampling change weights too
            self.average.update(self.model)
        return batch, terms

    def _compares(self) -> bool:
        return self._compared(self.step) > self._compared(self.step - self.look_every)

    def _compared(self, step: int) -> int:
        """How many comparisons there are in so many steps."""
        return step * self.comparisons // self.total

    def _compare(self) -> None:
        if self.held_out is None:
            start = (self._compared(self.step) - 1) * self.config.batch
            self.held_out = self.store.batches(
                self.config.batch, self.config.order, start, "holdout"
            )
        self.model.compare(self.normalize(next(self.held_out)).x, self.at)

    def _factor(self, stage: Stage) -> float:
        """On the peak rate, in the coming step."""
        return schedule(
            self.step - stage.start,
            stage.stop - stage.start,
            self.decay,
            self.config.schedule,
            self.config.warmup,
        )

    def _take_step(self, batch: ActivationBatch) -> LossTerms:
        if self.config.precision == "float32":
            return take_step(self.model, self.optimizer, batch, self.at, self.config.clip)
        # not the backward pass: a product's gradient knows its precision
        with products_in_bfloat16(batch.x.device):
            terms = self.model.loss(batch, self.at)
        apply_gradients(self.model, self.optimizer, terms, self.config.clip)
        return terms

    def _stage(self) -> Stage:
        """The stage of the coming step. Entering one tells the model and forgets the moments and
        the average, which belong to another loss."""
        stage = next(stage for stage in self.stages if stage.start <= self.step < stage.stop)
        if self.step == stage.start and self.average is not None:
            self.average.restart()
        if self.step == stage.start:
            self.model.enter(stage, self.sample)
            self.optimizer.state.clear()
        return stage

    def _resample(self, batch: ActivationBatch) -> None:
        latents = self.dead_order[: max(round(RESAMPLED * len(batch.x)), 1)]
        self.model.resample(latents, batch, self.generator, self.at)
        reset_moments(self.optimizer, latents, self.model.latents, self.model.by_output)
        self.dead.idle[latents] = 0
        self.dead_order = self.dead.dead()

    def _check(self) -> None:
        """Raise for the first step since the last look whose loss was not finite (bad data, or a
        run that diverged) or not exact."""
        seen, self.unseen = self.unseen, []
        hint = f"{opt('overwrite', True)} with a lower {opt('lr')}, or with {opt('clip', 1)}"
        for step, rows, found, values in seen:
            if not math.isfinite(values["total"].item()):
                check_peaks(self.store, rows, found)
                bad = [
                    f"{name} is {value.item()}"
                    for name, value in values.items()
                    if not math.isfinite(value.item())
                ]
                raise NumericsError(f"the loss diverged at step {step}: {bad[-1]}", hint)
            if values.get("lost_rows", 0) > 0:
                lost = int(values["lost_rows"])
                raise BackendError(
                    f"step {step}: {lost} rows had more active latents than the sparse kernels"
                    " hold",
                    opt("backend", "torch"),
                )

    def dead_share(self) -> float | None:
        """Share of dead latents; None while fewer rows have been seen than a latent may be silent
        for."""
        # pretraining has no code to look at
        seen = (self.step - self.stages[-1].start) * self.config.batch
        return self.dead.share() if seen >= self.dead.threshold else None

    def figures(self, batch: ActivationBatch, terms: LossTerms) -> dict[str, float]:
        """What a line of metrics.jsonl holds; fvu is that of this batch."""
        figures = {
            "step": self.step,
            "rows": self.step * self.config.batch,
            "loss": terms.total.item(),
        }
        figures |= {name: value.item() for name, value in (terms.terms | terms.metrics).items()}
        error = figures.get("squared_error", figures.get("reconstruction"))
        if error is not None:  # a stage of pretraining reconstructs something else
            x = batch.x if batch.target is None else batch.target
            # a mean far from 0
            x = (x.reshape(-1, x.shape[-1]) if batch.mask is None else x[batch.mask]).double()
            figures["fvu"] = error / max((x - x.mean(0)).square().sum(1).mean().item(), 1e-12)
        if self.dead is not None:
            figures |= {"l0": float(self.dead.l0), "dead": self.dead_share()}
        return figures | {"lr": self.optimizer.param_groups[0]["lr"]}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let a step finish before SIGINT or SIGTERM takes effect: a state saved in mid-step could not
    be resumed bit for bit."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {
        number: signal.signal(number, lambda n, _: seen.append(n))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The gradient loop: one for every model. It knows an `Autoencoder` and a source of rows."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from saekit.models.autoencoder import Autoencoder
from saekit.rows import Rows
from saekit.store.checkpoint import damaged_state, read_train_state, write_train_state
from saekit.training.adversarial import Players
from saekit.training.average import Average
from saekit.training.config import TrainConfig
from saekit.training.dead import (
    NUDGE_EVERY,
    DeadTracker,
    dead_rows,
    resample,
    resampling_steps,
    revive_rows,
)
from saekit.training.divergence import PendingLosses
from saekit.training.health import Health, is_due
from saekit.training.inputs import BatchNormalizer
from saekit.training.logging import MetricsFile
from saekit.training.optim import decay_share, make_adam, products_in_bfloat16, schedule
from saekit.training.prefetch import prefetched
from saekit.training.sinks import Sink
from saekit.training.state import restore_state, state_of
from saekit.training.step import apply_gradients, take_step
from saekit.types import ActivationBatch, LossTerms, Progress, Stage, Step

LOGS = 200  # lines of metrics in a run
# Steps between polls of the device: were losses finite, and which latents are dead? Reading either
# makes the host wait for all work in flight, which costs nothing on a CPU.
POLL_EVERY = {"cpu": 1}
POLL_EVERY_ON_DEVICE = 32
POLLS = 200  # in a run, at least: L0 is controlled at each of them
COMPARISONS = 20  # in a run: how often a model that controls its L0 is shown held-out rows


class Trainer:
    """A run in progress. `step` counts finished steps; step * batch rows were used so far."""

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
        reads_ahead: bool = True,
    ) -> None:
        """`config` is resolved (saekit.training.defaults). `out` None: no state and no metrics are
        written. `sample`: normalized rows, for models that use some between stages. `examples`: the
        model takes whole examples, and a batch counts these. `reads_ahead`: on a GPU a thread of
        its own reads the rows."""
        assert config.batch is not None and config.lr is not None, "the config is not resolved"
        self.model, self.store, self.normalize, self.config = model, store, normalize, config
        self.total, self.out = total, out
        self.batch, self.lr = config.batch, config.lr
        self.sample, self.examples, self.backend = sample, examples, backend
        self.reads_ahead = reads_ahead
        self.step = 0
        # optimizer, average of the weights, random numbers
        self.names = [name for name, _ in model.named_parameters()]
        self.optimizer = make_adam(model, self.lr, config.weight_decay or 0.0, config.beta2)
        self.players: Players | None = None
        self.health: Health | None = None
        if model.strategy == "adversarial":
            self.players = Players(model, self.lr, config)
            self.optimizer = self.players.optimizers["generator"]
            self.names = self.players.names["generator"]
        self.average = None if config.ema is None else Average(config.ema)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.stages = model.stages(total)
        self.decay = decay_share(config, model)
        # dead latents
        rows = store.count("train", examples)
        device = normalize.inputs.mean_D.device
        self.dead: DeadTracker | None = None
        self.dead_order: torch.Tensor | None = None
        """Latents to revive, those idle for longest first."""
        if model.active_above is not None:
            wait = dead_rows(rows) if model.nudges else revive_rows(rows, total * self.batch)
            self.dead = DeadTracker(model.latents, dead_rows(rows), wait, device)
        self.resample_at = resampling_steps(total) if model.resamples else set()
        # how often the device is polled, and held-out rows are compared
        by_length = min(POLL_EVERY_ON_DEVICE, max(total // POLLS, 1))
        self.poll_every = POLL_EVERY.get(device.type, by_length)
        compares = model.compares and store.count("holdout") > 0
        self.comparisons = min(COMPARISONS, total) if compares else 0
        self.held_out: Iterator[ActivationBatch] | None = None
        self.pending = PendingLosses()

    def save(self) -> None:
        if self.out is not None:
            write_train_state(self.out, *state_of(self))

    def restore(self) -> None:
        """Continue from the last saved state, if there is one. Raises DataError for a damaged
        one."""
        if self.out is None or (saved := read_train_state(self.out)) is None:
            return
        try:
            restore_state(self, *saved)
        except (RuntimeError, ValueError) as error:
            raise damaged_state(self.out, error) from error

    # -- the loop

    def run(
        self,
        progress: Callable[[Progress], None],
        sinks: Callable[[int], list[Sink]] = lambda _: [],
    ) -> float:
        """Train to the end; returns the seconds spent in steps. On SIGINT or SIGTERM the state is
        saved and KeyboardInterrupt raised."""
        metrics = None if self.out is None else MetricsFile(self.out / "metrics.jsonl", self.step)
        outputs = [] if metrics is None else [metrics, *sinks(self.step)]

        def save() -> None:
            self.pending.check(self.store)
            if metrics is not None:
                metrics.sync()
            self.save()

        log_every = max(self.total // LOGS, 1)
        began = last_log = last_save = time.monotonic()
        save_every, logged = self.config.save_seconds, self.step
        batches: Iterator[ActivationBatch] = self.store.batches(
            self.batch, self.config.order, self.step * self.batch, "train", self.examples
        )
        with ExitStack() as closing, deferred_interrupt() as interrupted:
            # closed last, when a second SIGINT can end a wait for the network
            for output in outputs:
                closing.callback(output.close)
            if self.reads_ahead:
                device = self.normalize.inputs.mean_D.device
                batches = closing.enter_context(contextlib.closing(prefetched(batches, device)))
            for raw in batches:
                if self.step >= self.total or interrupted():
                    break
                batch, terms = self.train_step(raw)
                now = time.monotonic()
                # a line of metrics
                if self.step % log_every == 0 or self.step == self.total:
                    rate = (self.step - logged) * self.batch / max(now - last_log, 1e-9)
                    figures = self.figures(batch, terms) | {"rows_per_s": round(rate, 1)}
                    for text in self._watch(figures, log_every):
                        progress(Progress("train", 0, 0, message=text))
                    for output in outputs:
                        output.write(figures)
                    rows, all_rows = self.step * self.batch, self.total * self.batch
                    progress(Progress("train", rows, all_rows, figures=figures))
                    last_log, logged = now, self.step
                # a state; saving takes at most a twentieth of the time, however large it is
                if now - last_save >= save_every:
                    save()
                    last_save = time.monotonic()
                    save_every = max(save_every, 20 * (last_save - now))
            save()
            seconds = time.monotonic() - began  # waiting for an upload is not training
        if interrupted() or self.step < self.total:  # an endless source of rows was stopped
            raise KeyboardInterrupt
        return seconds

    @property
    def at(self) -> Step:
        """What the model is told about the coming step."""
        return Step(self.step, self.total, self.config.seed, self.dead_order, self.backend)

    def train_step(self, raw: ActivationBatch) -> tuple[ActivationBatch, LossTerms]:
        """One step on a stored batch, and what follows it: (the normalized batch, its loss)."""
        # loss and update
        batch, stage = self.normalize(raw), self._stage()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self._factor(stage)
        if self.players is not None:
            self.players.set_rate(self.lr * self._factor(stage))
        terms = self._take_step(batch)
        self.step += 1
        # what only a poll of the device tells: NaN, dead latents, L0
        self.pending.add(self.step, batch, terms)
        polls = self.step % self.poll_every == 0
        if polls:
            self.pending.check(self.store)
        if self.dead is not None and terms.fired is not None:  # pretraining stages have no code
            self._follow_latents(self.dead, terms.fired, batch, polls)
        # last, since control and resampling change weights too
        if self.average is not None:
            self.average.update(self.model)
        return batch, terms

    def _follow_latents(
        self, dead: DeadTracker, fired_F: torch.Tensor, batch: ActivationBatch, polls: bool
    ) -> None:
        """Count idle latents; at a poll tell the model of L0 and show it held-out rows; nudge or
        resample dead latents when it is time."""
        dead.update(fired_F, len(batch.x))
        resamples = self.step in self.resample_at
        if polls or resamples:
            self.dead_order = dead.dead()
        if polls and self._comparisons(self.step) > self._comparisons(self.step - self.poll_every):
            self._compare()
        if polls:
            self.model.observe(float(dead.l0), self.at)
        if self.model.nudges and polls and self.step % NUDGE_EVERY < self.poll_every:
            if self.dead_order is not None and len(self.dead_order):
                self.model.nudge(self.dead_order, batch, self.at)
        if resamples and self.dead_order is not None and len(self.dead_order):
            resample(self.model, dead, self.optimizer, batch, self.generator, self.at)
            self.dead_order = dead.dead()

    def _comparisons(self, step: int) -> int:
        """How many comparisons with held-out rows there are in so many steps."""
        return step * self.comparisons // self.total

    def _compare(self) -> None:
        if self.held_out is None:
            start = (self._comparisons(self.step) - 1) * self.batch
            self.held_out = iter(
                self.store.batches(self.batch, self.config.order, start, "holdout")
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
        if self.players is not None:
            return self.players.step(batch, self.at, self.config.clip, self._precision(batch))
        if self.config.precision == "float32":
            return take_step(self.model, self.optimizer, batch, self.at, self.config.clip)
        # without the backward pass: a product's gradient has the precision of the product
        with self._precision(batch)():
            terms = self.model.loss(batch, self.at)
        apply_gradients(self.model, self.optimizer, terms, self.config.clip)
        return terms

    def _precision(self, batch: ActivationBatch) -> Callable[[], AbstractContextManager[None]]:
        """Of the products of a forward pass."""
        if self.config.precision == "float32":
            return nullcontext
        return partial(products_in_bfloat16, batch.x.device)

    def _stage(self) -> Stage:
        """The stage of the coming step. At its first step the model is told, and the moments and
        the average, which belong to another loss, are reset."""
        stage = next(stage for stage in self.stages if stage.start <= self.step < stage.stop)
        if self.step == stage.start and self.average is not None:
            self.average.restart()
        if self.step == stage.start:
            self.model.enter(stage, self.sample)
            self.optimizer.state.clear()
            if self.players is not None:
                self.players.clear()
        return stage

    # -- figures

    def _watch(self, figures: dict[str, float | None], log_every: int) -> list[str]:
        """Add what a generator draws to some lines of metrics; returns warnings."""
        if self.players is None or not is_due(self.step, self.total, log_every):
            return []
        if self.health is None:
            self.health = Health.of(
                self.players.model, self.store, self.normalize, self.config.order, self.examples
            )
        figures |= self.health.figures(self.step)
        return self.health.warnings(self.step / self.total, self.players.told_apart, figures)

    def dead_share(self) -> float | None:
        """Share of dead latents; None until as many rows were seen as make a latent dead, and for
        dense codes."""
        # pretraining has no code
        seen = (self.step - self.stages[-1].start) * self.batch
        return self.dead.share() if self.dead is not None and seen >= self.dead.threshold else None

    def figures(self, batch: ActivationBatch, terms: LossTerms) -> dict[str, float | None]:
        """The values of a line of metrics.jsonl; fvu is that of this batch."""
        figures: dict[str, float | None] = {
            "step": self.step,
            "rows": self.step * self.batch,
            "loss": terms.total.item(),
        }
        values = {name: value.item() for name, value in (terms.terms | terms.metrics).items()}
        figures |= values
        # fvu; a pretraining stage reconstructs something else than rows
        error = values.get("squared_error", values.get("reconstruction"))
        if error is not None:
            x = batch.x if batch.target is None else batch.target
            x = x.reshape(-1, x.shape[-1]) if batch.mask is None else x[batch.mask]
            x = x.double()  # the mean may be far from 0
            figures["fvu"] = error / max((x - x.mean(0)).square().sum(1).mean().item(), 1e-12)
        if self.dead is not None:
            figures |= {"l0": float(self.dead.l0), "dead": self.dead_share()}
        return figures | {"lr": self.optimizer.param_groups[0]["lr"]}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let a step finish before SIGINT or SIGTERM takes effect: a state saved in the middle of a
    step could not be resumed bit for bit. Yields a function that tells whether a signal came."""
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

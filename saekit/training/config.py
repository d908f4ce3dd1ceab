"""What a training run is asked to do. The model's own options live in its config
(saekit.models.catalog)."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from saekit.errors import UsageError, check_choice, opt
from saekit.models.catalog import check_options
from saekit.training.optim import BETA2, PRECISIONS, SCHEDULES, WARMUP_SHARE
from saekit.training.sinks import check_sinks
from saekit.typed import MisfitError, as_type

NORMALIZE = ("center+scale", "scale", "none")


@dataclass(frozen=True)
class TrainConfig:
    model: str = "sae"
    options: dict[str, Any] = field(default_factory=dict)
    """The model's own options: expansion, sparsity, k ..."""
    rows: int | None = None
    """Rows (for models that take whole examples: examples) to train on, counted with repetition;
    None: saekit.training.defaults."""
    batch: int | None = None
    """Rows or examples a step; None: saekit.training.defaults."""
    lr: float | None = None
    """Peak learning rate of Adam; None: saekit.training.defaults."""
    schedule: str = "linear"
    """constant | linear | cosine: how the rate falls at the end (saekit.training.optim); with
    stages, at the end of each."""
    warmup: float = WARMUP_SHARE
    """Share of the steps over which the rate rises."""
    decay: float | None = None
    """Share of the steps over which it falls; None: the model's recipe, or 0.2; for cosine all
    behind the warm-up."""
    beta2: float = BETA2
    """Of Adam: how slowly it forgets squared gradients."""
    weight_decay: float | None = None
    """Decoupled decay of all parameters (AdamW), times the learning rate a step; None:
    saekit.training.defaults."""
    clip: float | None = None
    """Largest norm of the gradient; None: no clipping."""
    ema: float | None = None
    """Share that an exponential average of the weights keeps a step: the checkpoint holds that
    average; None: the last weights."""
    precision: str = "float32"
    """float32 | bfloat16: of dense products, for models whose step does not go through
    saekit_kernels."""
    normalize: str | None = None
    """center+scale | scale | none; None: center+scale for hidden states, none for raw data."""
    target_store: str | None = None
    """Store whose row-aligned rows are to be reconstructed; None: the input itself."""
    stores: tuple[str, ...] = ()
    """More row-aligned stores, read side by side with the first: a crosscoder."""
    seed: int = 0
    """Of the first weights, of noise and samples and, unless order_seed is given, of the order of
    the rows."""
    order_seed: int | None = None
    """Of the order of the rows; None: seed. Runs of one order can share a pass (saekit.sweeps)."""
    backend: str = "auto"
    device: str = "auto"
    save_seconds: float = 60.0
    """Time between train states; saving does not change the run."""
    log: tuple[str, ...] = ()
    """Sinks of the metrics besides metrics.jsonl (saekit.training.sinks); they do not change the
    run."""

    def __post_init__(self) -> None:
        self._check_types()
        if self.normalize is not None:
            check_choice("normalize", self.normalize, NORMALIZE)
        check_options(self.model, self.options)
        check_sinks(self.log)
        if self.stores and (self.target_store or self.model != "sae"):
            raise UsageError(
                f"{opt('stores')} applies to {opt('model', 'sae')} without {opt('target_store')}",
                f"drop {opt('stores')}",
            )
        for option, seed in (("seed", self.seed), ("order_seed", self.order_seed or 0)):
            if seed < 0:
                raise UsageError(f"{opt(option, seed)} must not be negative")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"{opt('weight_decay', self.weight_decay)} must not be negative")
        self._check_schedule()
        check_choice("precision", self.precision, PRECISIONS)
        for option, value in (("beta2", self.beta2), ("ema", self.ema)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{opt(option, value)} must be above 0 and below 1")
        for option, value in (
            ("rows", self.rows),
            ("batch", self.batch),
            ("lr", self.lr),
            ("clip", self.clip),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{opt(option, value)} must be above 0")

    def _check_types(self) -> None:
        """Config and grid files, and callers, give anything."""
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                continue  # what bounds the option says so
            try:
                as_type(value, hint, opt(name))
            except MisfitError as error:
                raise UsageError(
                    str(error), "write numbers without quotes and words with quotes"
                ) from None

    def _check_schedule(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        for option, value in (("warmup", self.warmup), ("decay", self.decay)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(
                    f"{opt(option, value)} is a share of the steps, and must be in [0, 1]"
                )
        if self.schedule == "constant" and self.decay:
            raise UsageError(
                f"{opt('decay', self.decay)} does not apply to {opt('schedule', 'constant')}",
                opt("schedule", "linear", "cosine"),
            )
        # 0.1 and 0.9 may sum to a rounding error more
        if self.warmup + (self.decay or 0.0) > 1 + 1e-9:
            cause = (
                f"{opt('warmup', self.warmup)} and {opt('decay', self.decay)} are more than the"
                " whole run"
            )
            raise UsageError(cause, opt("warmup", 1 - self.decay))

    @property
    def order(self) -> int:
        """The seed of the order of the rows."""
        return self.seed if self.order_seed is None else self.order_seed

    @classmethod
    def from_flat(cls, options: dict[str, Any]) -> TrainConfig:
        """From one flat dict, as flags and config files give it: names that are not the run's own
        are the model's."""
        run_fields = {f.name for f in dataclasses.fields(cls)} - {"options"}
        settings = {name: value for name, value in options.items() if name in run_fields}
        return cls(
            **settings,
            options={name: value for name, value in options.items() if name not in run_fields},
        )

    def with_options(self, options: dict[str, Any]) -> TrainConfig:
        """The same with other values of some fields or options of the model, by name. Raises
        UsageError."""
        run_fields = {f.name for f in dataclasses.fields(self)} - {"options"}
        changes = {name: value for name, value in options.items() if name in run_fields}
        model_options = {name: value for name, value in options.items() if name not in run_fields}
        return dataclasses.replace(self, **changes, options={**self.options, **model_options})

    def flat(self) -> dict[str, Any]:
        """The inverse of from_flat, without what is not set: fit for a config file."""
        own = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("options", "log")
        }
        return {
            name: value
            for name, value in {**own, **self.options}.items()
            if value not in (None, ())
        }

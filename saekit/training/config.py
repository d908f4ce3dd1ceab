"""What a training run is asked to do. The model's own options live in its config
(saekit.models.catalog)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from saekit.errors import UsageError, opt
from saekit.models.catalog import check_options
from saekit.options import Doc, check, options_of
from saekit.training.sinks import check_sinks

SIZES = {"expansion", "latents"}
TRAINING, DATA, RUN = "Training", "Data", "Run"  # panels of the help


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run, and in `options` those of its model, by name.

    What is None is chosen by saekit.training.defaults, from model and data.
    """

    model: Annotated[
        str, Doc("What to train; `saekit models` lists the models.", metavar="NAME")
    ] = "sae"
    options: dict[str, Any] = field(default_factory=dict)
    """The model's own options: expansion, sparsity, k ..."""
    rows: Annotated[
        int | None,
        Doc(
            "Rows to train on, with repetition (default: 8 epochs, classic models 60). For models"
            " of grids and sequences: examples.",
            TRAINING,
        ),
    ] = None
    batch: Annotated[
        int | None, Doc("Rows per step (default 4,096; fewer on small stores).", TRAINING)
    ] = None
    lr: Annotated[
        float | None, Doc("Peak learning rate of Adam (default: by model and size).", TRAINING)
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Doc(
            "How the learning rate falls at the end of training, and of each stage of it.", TRAINING
        ),
    ] = "linear"
    warmup: Annotated[float, Doc("Share of the steps with a rising learning rate.", TRAINING)] = (
        0.05
    )
    decay: Annotated[
        float | None,
        Doc(
            "Share of the steps with a falling learning rate (default 0.2, classic models 0.5;"
            " cosine: everything after the warm-up).",
            TRAINING,
        ),
    ] = None
    beta2: Annotated[float, Doc("Adam's decay of squared gradients.", TRAINING)] = 0.999
    weight_decay: Annotated[
        float | None,
        Doc("Decoupled weight decay (AdamW; default 0, classic models 0.01).", TRAINING),
    ] = None
    clip: Annotated[
        float | None, Doc("Clip the gradient norm at this value (default: no clipping).", TRAINING)
    ] = None
    ema: Annotated[
        float | None,
        Doc("Save an exponential average of the weights with this decay, such as 0.99.", TRAINING),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Doc("Precision of dense products, for models without kernels of their own.", TRAINING),
    ] = "float32"
    normalize: Annotated[
        Literal["center+scale", "scale", "none"] | None,
        Doc("Normalization of the rows (default: center+scale; none for raw data).", DATA),
    ] = None
    target_store: Annotated[
        str | Path | None,
        Doc(
            "Row-aligned store to reconstruct in place of STORE (transcoder).",
            DATA,
            metavar="STORE",
        ),
    ] = None
    stores: Annotated[
        tuple[str | Path, ...],
        Doc(
            "More row-aligned stores, read side by side with STORE (crosscoder).",
            DATA,
            metavar="STORE...",
            flag="store",
        ),
    ] = ()
    seed: Annotated[int, Doc("Seed of initial weights, noise and row order.", RUN)] = 0
    order_seed: Annotated[
        int | None, Doc("Seed of the row order only (default: the seed above).", RUN)
    ] = None
    backend: Annotated[
        Literal["auto", "triton", "torch"], Doc("Implementation of the sparse kernels.", RUN)
    ] = "auto"
    device: Annotated[str, Doc("auto | cpu | cuda | cuda:N", RUN, metavar="DEVICE")] = "auto"
    save_seconds: Annotated[
        float, Doc("Seconds between saved states, from which a run can be resumed.", RUN)
    ] = 60.0
    log: Annotated[
        tuple[str, ...],
        Doc(
            "tensorboard | wandb | trackio; PROJECT after a colon uploads.",
            RUN,
            metavar="SINK...",
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        if self.target_store is not None:  # texts, as JSON and TOML have them
            object.__setattr__(self, "target_store", str(self.target_store))
        object.__setattr__(self, "stores", tuple(map(str, self.stores)))
        check_options(self.model, self.options, also=options_of(type(self)))
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

    def _check_schedule(self) -> None:
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
            raise UsageError(cause, opt("warmup", 1 - (self.decay or 0.0)))

    @property
    def order(self) -> int:
        """The seed of the order of the rows."""
        return self.seed if self.order_seed is None else self.order_seed

    @classmethod
    def from_flat(cls, options: dict[str, Any]) -> TrainConfig:
        """From one flat dict, as flags and config files give it: names that are not the run's own
        are the model's."""
        return cls().with_options(options)

    def with_options(self, options: dict[str, Any]) -> TrainConfig:
        """The same with other values of some fields or options of the model, by name; None is the
        default. Raises UsageError."""
        own = options_of(type(self))
        changes = {
            name: own[name].default if value is None else value
            for name, value in options.items()
            if name in own
        }
        unset = {name for name, value in options.items() if value is None}
        model = {name: options[name] for name in options if name not in {*own, *unset}}
        kept = {name: value for name, value in self.options.items() if name not in unset}
        if model.keys() & SIZES:  # both say how many latents there are: the later one counts
            kept = {name: value for name, value in kept.items() if name not in SIZES}
        return dataclasses.replace(self, **changes, options={**kept, **model})

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


@dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """Settings whose sizes, rates and shares saekit.training.defaults has chosen."""

    rows: int = 0
    batch: int = 0
    lr: float = 0.0
    weight_decay: float = 0.0
    decay: float = 0.0

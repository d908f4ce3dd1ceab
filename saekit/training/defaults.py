"""What a run does where the user left it open, chosen once from model and data and stored with it.

`resolve` is the one place where options meet data: `train`, `sweep`, the estimator and a dry run
all start from its answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from saekit_kernels import Backend, resolve_backend

from saekit.device import pick_device
from saekit.errors import BackendError, DataError, UsageError, opt
from saekit.models.adversarial.gan import AdversarialConfig, drawn_by_default
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import CATALOG, LABELED, build
from saekit.models.sae import SAE
from saekit.rows import Rows
from saekit.store.labels import WithLabels, classes_of
from saekit.store.pair import PairedStore
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.training.config import ResolvedConfig, TrainConfig
from saekit.training.fit import training_units
from saekit.training.optim import decay_share

# Training rows per latent below which latents are not nudged by default: more live latents then
# remember rows, and the error on held-out rows rises (docs/variants.md).
NUDGED_FROM = 3


@dataclass(frozen=True)
class Resolved:
    """A run with nothing left open."""

    model: Autoencoder
    """Untrained."""
    rows: Rows
    """What it reads: the rows given, with their target or beside those of more stores."""
    config: ResolvedConfig
    steps: int
    device: torch.device
    backend: Backend
    notice: str = ""
    """What was chosen for these rows and is not the usual default; empty: nothing."""


def resolve(config: TrainConfig, rows: Rows, live: bool = False) -> Resolved:
    """Model, defaults, device and kernels of a run of `config` on `rows`; `live`: on more rows of
    their kind than these.

    Raises UsageError for options that do not go together, DataError where the rows do not suit
    the model or are too few for a batch, BackendError for a device or backend that is not there.
    """
    if config.normalize is None and not isinstance(rows, Store):
        output = output_of(config.model, config.options, rows)
        config = dataclasses.replace(config, normalize=memory_normalize({"output": output}))
    device = pick_device(config.device)
    source, d_out = _with_target(rows, config)
    spec = source.spec
    classes = classes_of(source) if config.model in LABELED else ()
    given = (spec.shape, d_out, source.parts, config.seed, classes)
    model = build(config.model, spec.d_in, config.options, *given)
    if classes:
        source = WithLabels(source, classes)
    if model.needs_previous:
        source = WithPrevious(source)
    backend = pick_backend(model, config.backend, device)
    _check_applies(model, config)
    units, notice = training_units(model, source), ""
    if model.nudges and "revive" not in config.options and not live:
        if units < NUDGED_FROM * model.latents:
            options = {**config.options, "revive": "none"}
            model = build(config.model, spec.d_in, options, *given)
            notice = (
                f"{opt('revive', 'none')}: {units / model.latents:.1g} training rows per latent are"
                f" too few to bring dead ones back (docs/variants.md); fewer {opt('latents')}, or"
                " more rows"
            )
    chosen = resolved(config, model, units)
    if model.strategy != "closed_form" and chosen.batch > units:
        kind = "rows" if units == rows.count("train") else "examples"
        raise DataError(
            f"{opt('batch', chosen.batch)} is above the {units:,} training {kind} of {rows.path}",
            opt("batch", max(units // 4, 1)),
        )
    steps = max(chosen.rows // chosen.batch, 1)
    return Resolved(model, source, chosen, steps, device, backend, notice)


def resolved(config: TrainConfig, model: Autoencoder, units: int) -> ResolvedConfig:
    """The config with batch, rows, rates and shares filled in, for `units` training rows (or whole
    examples)."""
    recipe = model.recipe(units)
    given: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    weight_decay = recipe.weight_decay if config.weight_decay is None else config.weight_decay
    given |= {
        "batch": config.batch or recipe.batch,
        "rows": config.rows or recipe.rows,
        "lr": config.lr or recipe.lr,
        "weight_decay": weight_decay,
        "decay": decay_share(config, model),
    }
    return ResolvedConfig(**given)


def memory_normalize(options: Mapping[str, Any]) -> Literal["center+scale", "none"]:
    """Of rows in memory, which may hold anything: the default rates suit values around 0 of size 1,
    except where the model's output is bounded, which gives values in [0, 1]."""
    return "center+scale" if options.get("output", "linear") == "linear" else "none"


def output_of(model: str, options: Mapping[str, Any], rows: Rows) -> str:
    """The activation function of a model's output on these rows."""
    if (chosen := options.get("output")) is not None:
        return chosen
    if issubclass(CATALOG[model].config, AdversarialConfig):
        return drawn_by_default(rows.spec.shape, rows.spec.d_in)
    return "linear"


def pick_backend(model: torch.nn.Module, asked: str, device: torch.device) -> Backend:
    """Kernels are for sparse codes: a model without a fused step runs on plain torch. Raises
    UsageError, BackendError."""
    if not isinstance(model, SAE):
        if asked == "triton":
            raise UsageError(
                f"{opt('backend', asked)}: this model has no sparse code", f"drop {opt('backend')}"
            )
        return Backend("torch", "the model has no sparse code")
    try:
        return resolve_backend(asked, device.type)
    except ValueError as error:  # of the variable that stands in for auto
        raise UsageError(str(error), option="backend") from None
    except RuntimeError as error:
        raise BackendError(f"{opt('backend', asked)}: {error}", opt("backend", "torch")) from None


def _with_target(rows: Rows, config: TrainConfig) -> tuple[Rows, int]:
    """(the rows with their target, or side by side with those of more stores; the target's width,
    0 without one)."""
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
    assert config.target_store is not None
    target = Store(Path(config.target_store))
    return PairedStore(rows, target), target.spec.d_in


def _check_applies(model: Autoencoder, config: TrainConfig) -> None:
    """Raise UsageError where ema or precision would do nothing, or harm."""
    closed = model.strategy == "closed_form"
    if closed and config.ema is not None:
        raise UsageError(
            f"{opt('ema', config.ema)}: {opt('model', config.model)} is fitted in one go, there are"
            " no steps to average",
            f"drop {opt('ema')}",
        )
    if config.precision == "float32":
        return
    why = f"{opt('model', config.model)} is fitted in fp64" if closed else ""
    if model.sparse_kernels:
        variant = opt("sparsity", model.config.sparsity)
        why = f"the kernels of {variant} choose their own precision (docs/kernels.md)"
    if why:
        raise UsageError(f"{opt('precision', config.precision)}: {why}", f"drop {opt('precision')}")

"""A model and rows -> tensors that act on raw rows. `train` adds folders, the estimator arrays."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from saekit_kernels import keep_freed_memory

from saekit.device import CPU
from saekit.models.autoencoder import Autoencoder
from saekit.models.metrics import Figures, RowSums
from saekit.models.normalizer import Normalizer
from saekit.rows import Rows
from saekit.training.config import TrainConfig
from saekit.training.health import generated_figures
from saekit.training.inputs import BatchNormalizer, checked, estimate, estimate_target
from saekit.training.loop import Trainer
from saekit.training.sinks import Sink
from saekit.types import ActivationBatch, ActivationSpec, Output, Progress, Split

# (mode, seed, device) -> (normalizer, sample)
Estimate = Callable[[str, int, torch.device], tuple[BatchNormalizer, torch.Tensor]]


@dataclass(frozen=True)
class Fitted:
    tensors: dict[str, torch.Tensor]
    """For `catalog.restore`; they act on raw rows."""
    normalize: Normalizer
    steps: int
    rows: int
    """Rows, or examples, trained on, counted with repetition."""
    done: int
    """Of these, in this process: a resumed run trained on the others before."""
    seconds: float
    figures: dict[str, float | None]
    """dead_train, if the model has sparse codes."""


def by_example(model: Autoencoder, source: Rows) -> bool:
    """Whether the model is given whole examples. In a flat store every row is one."""
    return model.takes != "rows" and source.spec.layout != "flat"


def training_units(model: Autoencoder, source: Rows) -> int:
    """The number of training rows, or of examples if the model takes these."""
    return source.count("train", by_example(model, source))


def fit(
    model: Autoencoder,
    source: Rows,
    config: TrainConfig,
    steps: int,
    device: torch.device,
    backend: str = "torch",
    out: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    sinks: Callable[[int], list[Sink]] = lambda _: [],
    estimated: Estimate | None = None,
) -> Fitted:
    """Train `model` for `steps` of a resolved config. With `out`, states are saved there, and the
    run continues from the last one, if there is one. `sinks` opens what the metrics go to besides a
    file; its argument is the step that the run continues from. `estimated` returns normalizer and
    sample as saekit.training.inputs.estimate does, if they do not come from a pass over `source`.

    Raises NumericsError (data, divergence), DataError (data that the model's output cannot give).
    """
    assert config.batch is not None, "the config is not resolved"
    keep_freed_memory()
    began = time.monotonic()
    # Normalization; a closed form is computed once, in fp64: on the CPU.
    closed = model.strategy == "closed_form"
    where = torch.device("cpu") if closed else device
    normalize, sample = (estimated or partial(estimate, source))(
        _mode(config, source.spec), config.order, where
    )
    # A closed form.
    if closed:
        batches = checked(source, _one_shuffled_pass(source, config.order))
        model.fit(normalize(batch).x for batch in batches)
        rows = source.count("train")
        return Fitted(
            _folded(model, normalize), normalize.inputs, 1, rows, rows, time.monotonic() - began, {}
        )
    # First weights, from a sample.
    target_sample = sample
    if source.target is not None:
        normalize, target_sample = estimate_target(
            normalize, source, _mode(config, source.target.spec), config.order
        )
    model.initialise_from(sample.cpu(), torch.Generator().manual_seed(config.seed))
    spread = normalize.spread
    assert spread is not None
    model.start_at(spread.mean_D.float(), spread.variance, target_sample.cpu(), sample.cpu())
    if advice := spread.advice:
        progress(Progress("train", 0, 0, message=advice))
    # The steps.
    trainer = Trainer(
        model.to(device),
        source,
        normalize,
        config,
        steps,
        out,
        sample,
        by_example(model, source),
        backend,
        # members of a sweep wait for one reader, and compute in turn
        reads_ahead=estimated is None,
    )
    trainer.restore()
    done = (steps - trainer.step) * config.batch
    # Reproducible, and fp32 where fp32 is set: by default convolutions and recurrent cells on a GPU
    # are neither.
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        seconds = trainer.run(progress, sinks)
    # after the last save: a resume continues from the weights, not from their average
    if trainer.average is not None:
        trainer.average.put_into(model)
    figures = {} if trainer.dead is None else {"dead_train": trainer.dead_share()}
    return Fitted(
        _folded(model, trainer.normalize),
        trainer.normalize.inputs,
        steps,
        steps * config.batch,
        done,
        seconds,
        figures,
    )


def _mode(config: TrainConfig, spec: ActivationSpec) -> str:
    return config.normalize or ("none" if spec.is_raw else "center+scale")


def _one_shuffled_pass(source: Rows, seed: int) -> Iterator[ActivationBatch]:
    """k-means starts from the first rows: they must represent all, and data may be sorted."""
    remaining = source.count("train")
    for batch in source.batches(min(8192, remaining), seed, split="train"):
        yield first_rows(batch, remaining)
        remaining -= len(batch.x)
        if remaining <= 0:
            return


def first_rows(batch: ActivationBatch, n: int) -> ActivationBatch:
    """The first n rows or examples of a batch."""
    first = {name: value[:n] for name, value in vars(batch).items() if value is not None}
    return dataclasses.replace(batch, **first)


def _folded(model: Autoencoder, normalize: BatchNormalizer) -> dict[str, torch.Tensor]:
    tensors = model.folded(normalize.inputs, normalize.targets)
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def holdout_figures(
    model: Autoencoder,
    source: Rows,
    split: Split = "holdout",
    rows: int | None = None,
    device: torch.device = CPU,
) -> Figures:
    """The metrics of a model that takes raw activations, on one side of a source, computed on a
    device. Raises NumericsError for a row that is not finite."""
    sums = RowSums(model.active_above)
    examples = by_example(model, source)
    model = on_device(model, device)
    if not model.encodes:
        return generated_figures(model, source, split, rows, examples)
    with torch.no_grad():
        for batch in checked(
            source, source.batches(256 if examples else 4096, split=split, examples=examples)
        ):
            if rows is not None and not examples:
                batch = first_rows(batch, rows - sums.rows)
            batch = batch.on(device)
            sums.add_output(
                (batch.x if batch.target is None else batch.target).float(),
                applied(model, batch),
                batch.mask,
            )
            if rows is not None and sums.rows >= rows:
                break
    return sums.figures()


def on_device(model: Autoencoder, device: torch.device) -> Autoencoder:
    """The model where its weights are on the device, else a copy that is."""
    places = {tensor.device for tensor in model.state_dict().values()}
    # cuda without a number is the current one
    there = all(p.type == device.type and device.index in (None, p.index) for p in places)
    return model if there else copy.deepcopy(model).to(device)


def applied(model: Autoencoder, batch: ActivationBatch) -> Output:
    """The model's output for one raw batch, with its mask if there is padding."""
    return model(batch.x.float()) if batch.mask is None else model(batch.x.float(), batch.mask)

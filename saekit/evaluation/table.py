"""Several checkpoints on one store, side by side: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from torch import nn

from saekit.device import pick_device
from saekit.display import TableList, brief
from saekit.errors import UsageError, check_choice, opt
from saekit.evaluation.models import EvaluatedModel, open_runs
from saekit.evaluation.norms import InputNorm, input_norm
from saekit.models.metrics import LOSS_METRICS, Figures, RowSums
from saekit.options import AnyStore, Device, Doc
from saekit.rows import Rows
from saekit.store.opening import RowsLike, open_rows
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import ModelLike, as_list
from saekit.training.fit import holdout_figures
from saekit.types import Progress, Split

CONTEXTS = 200


@dataclass(frozen=True)
class Recovery:
    """What the losses of an evaluation were measured on."""

    contexts: int
    """Contexts or images."""
    documents: int
    """The intervals are over these; for packed contexts, over the contexts."""
    rows: int
    """Rows that were replaced."""
    predictions: int
    targets: str
    """What the cross-entropies are against: next tokens | labels | clean predictions."""


@dataclass(frozen=True)
class Evaluation:
    checkpoint: str
    """Its folder; for a model in memory its class (with a number, where there are several)."""
    model: str
    """The catalog's name, with the sparsity of an SAE: `sae topk`."""
    params: int
    latents: int
    rows: int
    split: str
    """Which rows: holdout | train | all."""
    metrics: dict[str, Any]
    """Those of saekit.models.metrics on these rows; dead_train as training recorded it (null where
    it does not apply). The losses (LOSS_METRICS) are {"value", "low", "high"} with loss_recovered,
    with a 95 % interval over documents, else null. A crosscoder also has `parts`: {hook: fvu of
    only that hook's values}, in the order of the stores (where a hook is read twice, with the name
    of its model or folder)."""
    k: int | None = None
    """Active latents per row, where evaluate was called with k; None: as the model was trained."""
    input_norm: InputNorm | None = None
    """The size of the rows of the store and of training; None where one is not known, and on the
    store of the training."""
    recovery: Recovery | None = None
    """What the losses were measured on; None where they were not asked for."""

    def figures(self) -> dict[str, Any]:
        """Sizes and metrics in one flat dict (`Evaluations.figures`)."""
        flat: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("checkpoint", "model", "params", "latents", "k", "rows", "split")
        }
        for name, value in self.metrics.items():
            if name == "parts":
                flat |= {f"fvu {hook}": fvu for hook, fvu in value.items()}
            elif isinstance(value, dict):
                flat |= {name: value["value"]}
                flat |= {f"{name}_{bound}": value[bound] for bound in ("low", "high")}
            else:
                flat[name] = value
        return flat

    def __repr__(self) -> str:
        values = self.figures()
        lead = repr(values.pop("checkpoint"))
        return brief(self, {name: values[name] for name in values if name != "params"}, lead)


class Evaluations(TableList[Evaluation]):
    """What `evaluate` returns: a list that shows itself as a table."""

    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each evaluation: `checkpoint`, `model`, `k`, ..., then the metrics by
        name; a loss with an interval is `name`, `name_low`, `name_high`, a part of a crosscoder
        `fvu HOOK`."""
        return [evaluation.figures() for evaluation in self]

    def _shown(self) -> list[dict[str, Any]]:
        return [
            {name: v for name, v in row.items() if not name.endswith(("_low", "_high"))}
            for row in self.figures()
        ]


def evaluate(
    checkpoints: Annotated[
        Sequence[ModelLike] | ModelLike,
        Doc(
            "Checkpoints to evaluate: folders, or published dictionaries by their paths or names.",
            metavar="CKPT...",
            positional=True,
        ),
    ],
    store: Annotated[
        RowsLike,
        Doc(
            "Store folder. For a crosscoder, give the stores of its training, in the same order.",
            metavar="STORE...",
        ),
    ],
    *,
    rows: Annotated[int | None, Doc("Evaluate at most this many rows (default: all).")] = None,
    split: Annotated[
        Split | None,
        Doc("Rows to evaluate on (default: holdout on the store of the training, else all)."),
    ] = None,
    target_store: Annotated[
        str | Path | None,
        Doc("Folder of the target store (default: where it was during training).", metavar="STORE"),
    ] = None,
    any_store: AnyStore = False,
    k: Annotated[
        Sequence[int] | int | None,
        Doc(
            "Active latents per row, one result for each value, such as 8,16,32 (default: the k of"
            " the training).",
        ),
    ] = None,
    loss_recovered: Annotated[
        bool,
        Doc(
            "Also run the model that the rows came from with the reconstructions in their place:"
            " cross-entropy, KL and the share of the loss that is recovered."
        ),
    ] = False,
    contexts: Annotated[
        int | None,
        Doc(f"Contexts or images for the loss recovered, at most (default: {CONTEXTS})."),
    ] = None,
    device: Device = "auto",
    live: nn.Module | None = None,
    processor: Any = None,
    data: Iterable[Any] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Evaluations:
    """Evaluate checkpoints or models on the same rows of raw activations.

    >>> saekit.evaluate("runs/a", "acts/text")[0].metrics["fvu"]
    >>> saekit.evaluate([result.model, "runs/a"], x_ND, split="holdout")

    Parameters
        checkpoints: what `saekit.load` takes, models on any device too, or a list of these.
        store: what `saekit.train` takes: a path, a Store, a tensor or array (N,D) ..., blocks of
            these. Crosscoders take the stores of their training, in its order, as a list.
        split: holdout | train | all. None: the held-out rows for a checkpoint that was trained on
            these rows, all rows for other checkpoints and for models in memory, which do not record
            the rows of their training.
        rows: evaluate at most so many.
        target_store: the target of models that reconstruct another store's rows; None: where it was
            during training.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        k: evaluate every model with codes of so many values, one Evaluation for each model and k
            (saekit.load says for which models).
        loss_recovered: docs/evaluation.md defines these metrics. They are over the documents of
            the split: held-out ones for a checkpoint that was trained on these rows.
        device: where the figures are computed, and the model for the loss recovered, if it is
            loaded.
        live: for the loss recovered, the model itself, a transformers module with its head; None:
            it is loaded by the store's name for it. It stays on its device and in its mode.
        processor: the image processor of `live`; None: the one in the place that it came from.
        data: the texts or images themselves, for a store of data that were in memory.

    Returns one Evaluation for each model (and k), in their order, in a list that prints as a table
    and has `to_pandas()`. Raises UsageError, DataError
    (widths or shapes differ; other stores than a crosscoder was trained on, or in another order),
    MissingError.
    """
    if split is not None:
        check_choice("split", split, get_args(Split))
    if rows is not None and rows < 1:
        raise UsageError(f"{opt('rows', rows)} must be at least 1")
    if contexts is not None and contexts < 1:
        raise UsageError(f"{opt('contexts', contexts)} must be at least 1")
    given = {"contexts": contexts, "live": live, "processor": processor, "data": data}
    if not loss_recovered and (named := [name for name in given if given[name] is not None]):
        raise UsageError(
            f"{opt(named[0])} is for the loss recovered", f"add {opt('loss_recovered', True)}"
        )
    if processor is not None and live is None:
        raise UsageError(f"{opt('processor')} is for a model given as {opt('live')}")
    ks = [k] if k is None or isinstance(k, int) else list(k)
    if not ks:
        raise UsageError(f"{opt('k')} needs at least one value", opt("k", [8, 16, 32]))
    where = pick_device(device)
    source = open_rows(store)
    # every k is known to be possible before the first pass over the rows
    runs = open_runs(as_list(checkpoints), source, target_store, any_store)
    models = [(run.with_k(value), value) for run in runs for value in ks]
    splits: list[Split] = [split or _split(run, source) for run, _ in models]
    losses = None
    if loss_recovered:
        from saekit.evaluation.recovery import Source, losses_recovered

        if isinstance(data, Iterator):  # it may be read twice
            data = list(data)
        origin = Source(live, processor, data, device)
        judged = [run for run, _ in models]
        losses = losses_recovered(judged, splits, contexts or CONTEXTS, origin, progress)
    evaluations = [
        _evaluation(run, side, rows, value, where) for (run, value), side in zip(models, splits)
    ]
    for run in runs:
        norm = input_norm(run)
        if norm is not None and norm.apart:
            progress(Progress("evaluate", 0, 0, message=_other_scale(run, norm)))
    for (run, _), evaluation in zip(models, evaluations):
        if run.config is not None and "published" in run.config and evaluation.metrics["fvu"] > 1:
            progress(Progress("evaluate", 0, 0, message=WORSE_THAN_MEAN.format(run.name)))
    if losses is None:
        return Evaluations(evaluations)
    return Evaluations(
        replace(evaluation, metrics=evaluation.metrics | figures, recovery=recovery)
        for evaluation, (figures, recovery) in zip(evaluations, losses)
    )


# fvu above 1
WORSE_THAN_MEAN = (
    "{} reconstructs these rows worse than their mean does: a wrong model, hook, scale or scope is"
    " the usual reason"
)


def _other_scale(run: EvaluatedModel, norm: InputNorm) -> str:
    return (
        f"the rows have another size than those that {run.name} was trained on: {norm.line()};"
        " a wrong scale, hook or special tokens are the usual reasons"
    )


def _split(run: EvaluatedModel, source: Rows) -> Split:
    trained_here = run.config is not None and run.config["content"] == source.content
    return "holdout" if trained_here else "all"


def _evaluation(
    run: EvaluatedModel, split: Split, rows: int | None, k: int | None, device: torch.device
) -> Evaluation:
    figures, by_hook = _figures(run, split, rows, device)
    dead_train = None if run.config is None else run.config["result"]["metrics"].get("dead_train")
    losses = dict.fromkeys(metric.name for metric in LOSS_METRICS)
    metrics = figures.scalars() | {"dead_train": dead_train} | losses | by_hook
    name = run.checkpoint or run.name
    return Evaluation(
        name,
        run.kind,
        run.parameters,
        run.model.latents,
        figures.rows,
        split,
        metrics,
        k,
        input_norm(run),
    )


def _figures(
    run: EvaluatedModel, split: Split, rows: int | None, device: torch.device
) -> tuple[Figures, dict[str, Any]]:
    """The figures, and `parts` of a crosscoder, summed during the same pass: encoding is the
    expensive part."""
    if not isinstance(run.source, StackedStore):
        return holdout_figures(run.model, run.source, split, rows, device), {}
    widths = run.source.parts
    sums = {name: RowSums(None) for name in run.source.names}

    def add(_model, inputs, output) -> None:
        by_hook = zip(sums.values(), inputs[0].split(widths, 1), output.x_hat.split(widths, 1))
        for of_hook, x_Bd, x_hat_Bd in by_hook:
            of_hook.add(x_Bd, x_hat_Bd, output.code)

    handle = run.model.register_forward_hook(add)
    try:
        figures = holdout_figures(run.model, run.source, split, rows, device)
    finally:
        handle.remove()
    return figures, {"parts": {name: of_hook.figures()["fvu"] for name, of_hook in sums.items()}}

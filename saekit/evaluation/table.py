"""Several checkpoints on one store, side by side: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from saekit.errors import UsageError, check_choice, opt
from saekit.evaluation.models import EvaluatedModel, open_runs
from saekit.models.metrics import Figures, RowSums
from saekit.options import Doc
from saekit.rows import Rows
from saekit.store.opening import RowsLike, open_rows
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import ModelLike, as_list
from saekit.training.fit import holdout_figures
from saekit.types import Split


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
    it does not apply). A crosscoder also has `parts`: {hook: fvu of only that hook's values}, in
    the order of the stores (where a hook is read twice, with the name of its model or folder)."""
    k: int | None = None
    """Active latents per row, where evaluate was called with k; None: as the model was trained."""


def evaluate(
    checkpoints: Annotated[
        Sequence[ModelLike] | ModelLike,
        Doc("Checkpoint folders to evaluate.", metavar="CKPT...", positional=True),
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
    k: Annotated[
        Sequence[int] | int | None,
        Doc(
            "Active latents per row, one result for each value, such as 8,16,32 (default: the k of"
            " the training).",
        ),
    ] = None,
) -> list[Evaluation]:
    """Evaluate checkpoints or models on the same rows of raw activations.

    >>> saekit.evaluate("runs/a", "acts/text")[0].metrics["fvu"]
    >>> saekit.evaluate([result.model, "runs/a"], x_ND, split="holdout")

    Parameters
        checkpoints: a checkpoint folder, a model (on any device), what `saekit.train` returned, or
            a list of these.
        store: what `saekit.train` takes: a path, a Store, a tensor or array (N,D) ..., blocks of
            these. Crosscoders take the stores of their training, in its order, as a list.
        split: holdout | train | all. None: the held-out rows for a checkpoint that was trained on
            these rows, all rows for other checkpoints and for models in memory, which do not record
            the rows of their training.
        rows: evaluate at most so many.
        target_store: the target of models that reconstruct another store's rows; None: where it was
            during training.
        k: evaluate every model with codes of so many values, one Evaluation for each model and k
            (saekit.load says for which models).

    Returns one Evaluation for each model (and k), in their order. Raises UsageError, DataError
    (widths or shapes differ; other stores than a crosscoder was trained on, or in another order),
    MissingError.
    """
    if split is not None:
        check_choice("split", split, get_args(Split))
    if rows is not None and rows < 1:
        raise UsageError(f"{opt('rows', rows)} must be at least 1")
    ks = [k] if k is None or isinstance(k, int) else list(k)
    if not ks:
        raise UsageError(f"{opt('k')} needs at least one value", opt("k", [8, 16, 32]))
    source = open_rows(store)
    # every k is known to be possible before the first pass over the rows
    runs = open_runs(as_list(checkpoints), source, target_store)
    models = [(run.with_k(value), value) for run in runs for value in ks]
    return [_evaluation(model, source, split, rows, value) for model, value in models]


def _evaluation(
    run: EvaluatedModel, source: Rows, split: Split | None, rows: int | None, k: int | None
) -> Evaluation:
    trained_here = run.config is not None and run.config["content"] == source.content
    split = split or ("holdout" if trained_here else "all")
    figures, by_hook = _figures(run, split, rows)
    dead_train = None if run.config is None else run.config["result"]["metrics"].get("dead_train")
    metrics = figures.scalars() | {"dead_train": dead_train} | by_hook
    name = run.checkpoint or run.name
    return Evaluation(
        name, run.kind, run.parameters, run.model.latents, figures.rows, split, metrics, k
    )


def _figures(run: EvaluatedModel, split: Split, rows: int | None) -> tuple[Figures, dict[str, Any]]:
    """The figures, and `parts` of a crosscoder, summed during the same pass: encoding is the
    expensive part."""
    if not isinstance(run.source, StackedStore):
        return holdout_figures(run.model, run.source, split, rows), {}
    widths = run.source.parts
    sums = {name: RowSums(None) for name in run.source.names}

    def add(_model, inputs, output) -> None:
        by_hook = zip(sums.values(), inputs[0].split(widths, 1), output.x_hat.split(widths, 1))
        for of_hook, x_Bd, x_hat_Bd in by_hook:
            of_hook.add(x_Bd, x_hat_Bd, output.code)

    handle = run.model.register_forward_hook(add)
    try:
        figures = holdout_figures(run.model, run.source, split, rows)
    finally:
        handle.remove()
    return figures, {"parts": {name: of_hook.figures()["fvu"] for name, of_hook in sums.items()}}

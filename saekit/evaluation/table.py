"""Several checkpoints on one store, side by side: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import UsageError, check_choice, opt
from saekit.evaluation.subjects import Subject, open_runs
from saekit.models.metrics import Figures, RowSums
from saekit.store.reader import Store
from saekit.store.stack import Paths, StackedStore, open_stores
from saekit.training.fit import holdout_figures


@dataclass(frozen=True)
class Evaluation:
    checkpoint: str
    model: str
    """Name of the model, with the sparsity of an SAE: `sae topk`."""
    params: int
    latents: int
    rows: int
    split: str
    """Which rows: holdout | train | all."""
    metrics: dict[str, Any]
    """fvu, mse, cosine, l0, dead on these rows; dead_train as training left it (null where it does not apply). A crosscoder has `parts`
    besides: {hook: fvu of that hook's values alone}, in the order of the stores (where a hook is read twice, its model or folder is
    named too)."""
    k: int | None = None
    """The k that was asked for; None: as the model was trained."""


def evaluate(
    checkpoints: Sequence[str | Path] | str | Path,
    store: Paths,
    *,
    split: str | None = None,
    rows: int | None = None,
    target_store: str | Path | None = None,
    k: Sequence[int] | int | None = None,
) -> list[Evaluation]:
    """Judge checkpoints on the same rows of a store, raw activations in.

    `split` None: the held-out rows for a checkpoint that was trained on this store, all rows for another. `rows` caps their number.
    What was trained to give another store's rows is judged on these, read from `target_store` (None: where it lay at training).
    Crosscoders take the stores of their training, in its order, as a list. With `k` every checkpoint is judged with codes of so many
    values, one Evaluation a checkpoint and k (saekit.load says which models can).
    Raises UsageError, DataError (widths or shapes differ, more or fewer stores than a run reads, another order), MissingError.
    """
    checkpoints = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    if split is not None:
        check_choice("split", split, ("holdout", "train", "all"))
    if rows is not None and rows < 1:
        raise UsageError(f"{opt('rows', rows)} must be at least 1")
    ks = [k] if k is None or isinstance(k, int) else list(k)
    if not ks:
        raise UsageError(f"{opt('k')} needs at least one value", opt("k", [8, 16, 32]))
    opened = open_stores(store)
    # every k is known to be possible before the first pass over the rows
    subjects = [(at, run.with_k(at)) for run in open_runs(checkpoints, opened, target_store) for at in ks]
    return [_evaluation(subject, opened, split, rows, at) for at, subject in subjects]


def _evaluation(run: Subject, store: Store | StackedStore, split: str | None, rows: int | None, k: int | None) -> Evaluation:
    split = split or ("holdout" if run.config["content"] == store.manifest.content else "all")
    figures, by_hook = _figures(run, split, rows)
    metrics = figures.scalars() | {"dead_train": run.config["result"]["metrics"].get("dead_train")} | by_hook
    return Evaluation(run.checkpoint, run.kind, run.parameters, run.model.latents, figures.rows, split, metrics, k)


def _figures(run: Subject, split: str, rows: int | None) -> tuple[Figures, dict[str, Any]]:
    """The figures, and of a crosscoder `parts`, summed while the same pass goes by: encoding is what costs."""
    if not isinstance(run.source, StackedStore):
        return holdout_figures(run.model, run.source, split, rows), {}
    widths = run.source.parts
    sums = {name: RowSums(None) for name in run.source.names}

    def add(_model, inputs, output) -> None:
        for each, x_Bd, x_hat_Bd in zip(sums.values(), inputs[0].split(widths, 1), output.x_hat.split(widths, 1)):
            each.add(x_Bd, x_hat_Bd, None)

    watching = run.model.register_forward_hook(add)
    try:
        figures = holdout_figures(run.model, run.source, split, rows)
    finally:
        watching.remove()
    return figures, {"parts": {name: each.figures().fvu for name, each in sums.items()}}

"""Several checkpoints on one store, side by side: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import UsageError, check_choice
from saekit.evaluation.subjects import Subject, open_runs
from saekit.store.reader import Store
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
    metrics: dict[str, float | None]
    """fvu, mse, cosine, l0, dead on these rows; dead_train as training left it (null where it does not apply)."""


def evaluate(
    checkpoints: Sequence[str | Path] | str | Path,
    store: str | Path,
    *,
    split: str | None = None,
    rows: int | None = None,
    target_store: str | Path | None = None,
) -> list[Evaluation]:
    """Judge checkpoints on the same rows of a store, raw activations in.

    `split` None: the held-out rows for a checkpoint that was trained on this store, all rows for another. `rows` caps their number.
    What was trained to give another store's rows is judged on these, read from `target_store` (None: where it lay at training).
    Raises UsageError, DataError (widths or shapes differ), MissingError.
    """
    checkpoints = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    if split is not None:
        check_choice("--split", split, ("holdout", "train", "all"))
    if rows is not None and rows < 1:
        raise UsageError(f"--rows {rows} must be at least 1")
    opened = Store(Path(store))
    return [_evaluation(run, opened, split, rows) for run in open_runs(checkpoints, opened, target_store)]


def _evaluation(run: Subject, store: Store, split: str | None, rows: int | None) -> Evaluation:
    split = split or ("holdout" if run.config["content"] == store.manifest.content else "all")
    figures = holdout_figures(run.model, run.source, split, rows)
    metrics = figures.scalars() | {"dead_train": run.config["result"]["metrics"].get("dead_train")}
    return Evaluation(run.checkpoint, run.kind, run.parameters, run.model.latents, figures.rows, split, metrics)

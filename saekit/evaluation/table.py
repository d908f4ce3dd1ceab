"""Several checkpoints on one store, side by side: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import DataError, UsageError, check_choice
from saekit.store.checkpoint import read_checkpoint
from saekit.store.reader import Store
from saekit.training.checkpoints import load
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
    checkpoints: Sequence[str | Path] | str | Path, store: str | Path, *, split: str | None = None, rows: int | None = None
) -> list[Evaluation]:
    """Judge checkpoints on the same rows of a store, raw activations in.

    `split` None: the held-out rows for a checkpoint that was trained on this store, all rows for another. `rows` caps their number.
    Raises UsageError, DataError (widths differ), MissingError.
    """
    if isinstance(checkpoints, (str, Path)):
        checkpoints = [checkpoints]
    if split is not None:
        check_choice("--split", split, ("holdout", "train", "all"))
    if rows is not None and rows < 1:
        raise UsageError(f"--rows {rows} must be at least 1")
    opened = Store(Path(store))
    return [_evaluate(path, opened, split, rows) for path in checkpoints]


def _evaluate(path: str | Path, store: Store, split: str | None, rows: int | None) -> Evaluation:
    config = read_checkpoint(path).config
    if config["spec"]["d_in"] != store.spec.d_in:
        raise DataError(
            f"{path} takes {config['spec']['d_in']} values a row ({config['spec']['model']}, {config['spec']['hook']}), "
            f"{store.path} holds {store.spec.d_in} ({store.spec.model}, {store.spec.hook})",
            "--store with a store of the same hook",
        )
    model = load(path)
    split = split or ("holdout" if config["content"] == store.manifest.content else "all")
    figures = holdout_figures(model, store, split, rows)
    name = " ".join(filter(None, (config["model"], config["config"].get("sparsity"))))
    params = sum(tensor.numel() for tensor in model.state_dict().values())
    dead_train = config["result"]["metrics"].get("dead_train")
    metrics = figures.scalars() | {"dead_train": dead_train}
    return Evaluation(str(path), name, params, model.latents, figures.rows, split, metrics)

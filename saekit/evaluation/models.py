"""What evaluate and compare evaluate: a trained run or a control, and the rows that it reads.

A run that was trained to reconstruct another store's rows (`target_store`) reads pairs. Models that
take whole examples get them where the store has such a layout, so that their code encodes an
example rather than a row; `EvaluatedModel.unit` says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from saekit.errors import DataError, MissingError, UsageError, opt
from saekit.interop.fit import check_fit
from saekit.interop.opening import open_checkpoint
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import restore
from saekit.rows import Rows
from saekit.store.opening import RowsLike, open_rows
from saekit.store.pair import PairedStore
from saekit.store.reader import Store
from saekit.training.checkpoints import (
    ModelLike,
    check_rows,
    for_inference,
    kind_of,
    name_of,
    path_or_model,
    short_name,
    with_k,
)
from saekit.training.fit import by_example
from saekit.types import Output


@dataclass(frozen=True)
class EvaluatedModel:
    name: str
    """Short, and different from those of the other models of a comparison."""
    kind: str
    """The catalog's name, with the sparsity of an SAE: `sae topk`."""
    role: Literal["run", "control"]
    model: Autoencoder
    """Takes raw rows or examples, in eval mode, on the CPU."""
    source: Rows
    checkpoint: str | None = None
    config: dict[str, Any] | None = None
    """config.json of a run; None: a control, or a model in memory."""
    control_of: tuple[str, ...] = ()
    """Names of the runs that a control is compared with."""

    @property
    def examples(self) -> bool:
        """Whether a code encodes a whole example."""
        return by_example(self.model, self.source)

    @property
    def unit(self) -> str:
        return "example" if self.examples else "row"

    @property
    def target(self) -> Rows | None:
        return self.source.target

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.model.state_dict().values())

    def with_k(self, k: int | None) -> EvaluatedModel:
        """The same run with codes of the k largest values of a row; None: itself. Raises UsageError
        where it has no such codes."""
        if k is None:
            return self
        return replace(self, model=with_k(self.model, k, self.checkpoint or self.name))


class WholeExamples(Autoencoder):
    """A model of rows that gets examples (B, ...) as flat rows: what makes PCA comparable with a
    model of whole examples."""

    takes = "grid"  # not "rows": it gets examples of any layout

    def __init__(self, of_rows: Autoencoder) -> None:
        super().__init__()
        self.of_rows = of_rows
        self.latents, self.active_above = of_rows.latents, of_rows.active_above

    def encode(self, x: torch.Tensor) -> Any:
        return self.of_rows.encode(x.flatten(1))

    def forward(self, x: torch.Tensor) -> Output:
        output = self.of_rows(x.flatten(1))
        return Output(output.x_hat.reshape(x.shape), output.code)


def open_runs(
    checkpoints: Sequence[ModelLike],
    rows: Rows,
    target_store: str | Path | None,
    any_store: bool = False,
) -> list[EvaluatedModel]:
    """The runs, checkpoints or models in memory, known to fit the rows, or the stores of a
    crosscoder (saekit.interop.fit). Raises UsageError, DataError, MissingError."""
    sources = [path_or_model(checkpoint) for checkpoint in checkpoints]
    if not sources:
        raise UsageError("there is no run to compare", "give the folders that `saekit train` wrote")
    if twice := [source for source, count in Counter(sources).items() if count > 1]:
        raise UsageError(f"{name_of(twice[0])} is given twice")
    pairs: dict[str, PairedStore] = {}
    runs = [
        _open_run(source, name, rows, target_store, pairs, any_store)
        if isinstance(source, str)
        else _in_memory(source, name, rows, target_store, pairs)
        for source, name in zip(sources, _names(sources))
    ]
    if target_store is not None and not pairs:
        raise UsageError(
            f"{opt('target_store', target_store)}: none of the runs was trained on a target",
            f"drop {opt('target_store')}",
        )
    return runs


def open_anomalies(anomalies: RowsLike, rows: Rows) -> Rows:
    """Rows that the runs can read. Raises DataError where width or layout differ."""
    other = open_rows(anomalies)
    for name in ("d_in", "layout", "shape"):
        wanted, actual = getattr(rows.spec, name), getattr(other.spec, name)
        if wanted != actual:
            raise DataError(
                f"{opt('anomalies', other.path)}: {name} {actual}, that of {rows.path} is {wanted}",
                "rows of the same kind of data",
            )
    return other


def _names(sources: Sequence[str | Autoencoder]) -> list[str]:
    """One for each: the folder's name, or the model's class; where these are not distinct, the
    path, or the class with a number."""
    short = [
        short_name(source) if isinstance(source, str) else name_of(source) for source in sources
    ]
    if len(set(short)) == len(short):
        return short
    return [
        source if isinstance(source, str) else f"{name_of(source)} {number}"
        for number, source in enumerate(sources, 1)
    ]


def _in_memory(
    model: Autoencoder,
    name: str,
    rows: Rows,
    target_store: str | Path | None,
    pairs: dict[str, PairedStore],
) -> EvaluatedModel:
    check_rows(model, rows)
    source = rows
    if getattr(getattr(model, "config", None), "d_out", 0):  # set where a target was trained on
        if target_store is None:
            raise UsageError(
                f"{name} reconstructs the rows of another store",
                f"give it as {opt('target_store')}",
            )
        source = _paired(rows, name, str(target_store), pairs)
    return EvaluatedModel(name, kind_of(model), "run", for_inference(model), source)


def _open_run(
    path: str,
    name: str,
    rows: Rows,
    target_store: str | Path | None,
    pairs: dict[str, PairedStore],
    any_store: bool,
) -> EvaluatedModel:
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    # the whole command: compare takes one store
    check_fit(path, config, rows, any_store=any_store, command=f"saekit evaluate {path}")
    source = rows
    recorded = config["training"].get("target_store")
    if recorded is None and config["config"].get("d_out") and target_store is None:
        raise UsageError(
            f"{path} reconstructs the rows of another store, and does not say which",
            f"give it as {opt('target_store')}",
        )
    if recorded is not None or config["config"].get("d_out"):
        where = str(target_store or recorded)
        source = _paired(rows, path, where, pairs)
        width = config["config"].get("d_out") or config["spec"]["d_in"]
        if source.target.spec.d_in != width:
            raise DataError(
                f"{path} gives {width} values per row, the target store {where} holds"
                f" {source.target.spec.d_in}"
            )
    model = restore(config["model"], config["config"], checkpoint.tensors)
    return EvaluatedModel(name, kind_of(model), "run", model, source, path, config)


def _paired(rows: Rows, model: str, where: str, pairs: dict[str, PairedStore]) -> PairedStore:
    """The rows with those of the target store, opened once for all models."""
    if not isinstance(rows, Store):
        raise UsageError(
            f"{model} was trained on a target: rows in memory cannot be aligned with {where}",
            "give the path of a store",
        )
    if where not in pairs:
        pairs[where] = PairedStore(rows, _open_target(model, where))
    return pairs[where]


def _open_target(path: str, where: str) -> Store:
    try:
        return Store(Path(where))
    except MissingError as error:
        raise MissingError(
            f"{path} was trained on a target: {error.cause}",
            f"{opt('target_store')} with the folder where it is now",
        ) from None

"""What evaluate and compare judge: a trained run or a control, with the rows that it is given.

A run that was trained to give another store's rows (`target_store`) reads pairs. Models that take
whole examples get them where the store has such a layout, so a code of theirs stands for an
example, not for a row; `Subject.unit` says which.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from saekit.errors import DataError, MissingError, UsageError, opt
from saekit.models.catalog import restore
from saekit.rows import Rows
from saekit.store.checkpoint import read_checkpoint
from saekit.store.pair import PairedStore
from saekit.store.reader import Store
from saekit.store.stack import check_stores
from saekit.training.checkpoints import with_k
from saekit.training.fit import by_example
from saekit.types import Output


@dataclass(frozen=True)
class Subject:
    name: str
    """Short and unlike the others' of one comparison."""
    kind: str
    """The catalog's name, with the sparsity of an SAE: `sae topk`."""
    role: Literal["run", "control"]
    model: nn.Module
    """Takes raw rows or examples, in eval mode, on the CPU."""
    source: Rows
    checkpoint: str | None = None
    config: dict[str, Any] | None = None
    """config.json of a run."""
    control_of: tuple[str, ...] = ()
    """Names of the runs that a control stands beside."""

    @property
    def examples(self) -> bool:
        """Whether a code stands for a whole example."""
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

    def with_k(self, k: int | None) -> Subject:
        """The same run with codes of the k largest values of a row; None: itself. Raises UsageError
        where it has no such codes."""
        return (
            self
            if k is None
            else replace(self, model=with_k(self.model, k, self.checkpoint or self.name))
        )


class WholeExamples(nn.Module):
    """A model of rows, given examples (B, ...) as one flat row each: what makes PCA comparable with
    a model of whole examples."""

    takes = "grid"  # anything but rows: it is fed examples, of whichever layout

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.latents, self.active_above = inner.latents, inner.active_above

    def encode(self, x: torch.Tensor) -> Any:
        return self.inner.encode(x.flatten(1))

    def forward(self, x: torch.Tensor) -> Output:
        output = self.inner(x.flatten(1))
        return Output(output.x_hat.reshape(x.shape), output.code)


def open_runs(
    models: Sequence[str | Path | nn.Module], rows: Rows, target_store: str | Path | None
) -> list[Subject]:
    """The runs, checkpoints or models, known to fit the rows, or the stores of a crosscoder. Raises
    UsageError, DataError, MissingError."""
    given = [model if isinstance(model, nn.Module) else str(model) for model in models]
    if not given:
        raise UsageError("there is no run to compare", "give the folders that `saekit train` wrote")
    if twice := [model for model, count in Counter(given).items() if count > 1]:
        raise UsageError(f"{_long_name(twice[0])} is given twice")
    pairs: dict[str, PairedStore] = {}
    runs = [
        (
            _of_model(model, name, rows, target_store, pairs)
            if isinstance(model, nn.Module)
            else _open(model, name, rows, target_store, pairs)
        )
        for model, name in zip(given, _names(given))
    ]
    if target_store is not None and not pairs:
        raise UsageError(
            f"{opt('target_store', target_store)}: none of the runs was trained on a target",
            f"drop {opt('target_store')}",
        )
    return runs


def _long_name(model: str | nn.Module) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else model


def _names(models: Sequence[str | nn.Module]) -> list[str]:
    """One for each: the folder's name, or the model's class; where these are not distinct, the
    path, or the class with a number."""
    short = [
        _long_name(model) if isinstance(model, nn.Module) else Path(model).name for model in models
    ]
    if len(set(short)) == len(short):
        return short
    return [
        f"{_long_name(m)} {i}" if isinstance(m, nn.Module) else m for i, m in enumerate(models, 1)
    ]


def open_anomalies(path: str | Path, store: Store) -> Store:
    """A store whose rows the runs can be given. Raises DataError where width or layout differ."""
    other = Store(Path(path))
    for what in ("d_in", "layout", "shape"):
        ours, theirs = getattr(store.spec, what), getattr(other.spec, what)
        if ours != theirs:
            raise DataError(
                f"{opt('anomalies', path)}: {what} {theirs}, that of {store.path} is {ours}",
                "rows of the same kind of data",
            )
    return other


def _of_model(
    model: nn.Module,
    name: str,
    rows: Rows,
    target_store: str | Path | None,
    pairs: dict[str, PairedStore],
) -> Subject:
    if model.d_in != rows.spec.d_in:
        raise DataError(
            f"{name} takes {model.d_in} values per row, {rows.path} holds {rows.spec.d_in}"
        )
    source = rows if target_store is None else _paired(rows, name, str(target_store), pairs)
    weight = next(iter(model.state_dict().values()))
    if model.training or weight.device.type != "cpu":
        model = copy.deepcopy(model).cpu().eval()  # the caller's stays as it is
    return Subject(name, _long_name(model), "run", model, source)


def _open(
    path: str, name: str, rows: Rows, target_store: str | Path | None, pairs: dict[str, PairedStore]
) -> Subject:
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    _check_fit(path, config, rows)
    source = rows
    wanted = config["training"].get("target_store")
    if wanted is not None:
        where = str(target_store or wanted)
        source = _paired(rows, path, where, pairs)
        width = config["config"].get("d_out") or config["spec"]["d_in"]
        if source.target.spec.d_in != width:
            raise DataError(
                f"{path} gives {width} values per row, the target store {where} holds"
                f" {source.target.spec.d_in}"
            )
    kind = " ".join(
        filter(
            None,
            (
                config["model"],
                config["config"].get("sparsity") if config["model"] == "sae" else None,
            ),
        )
    )
    return Subject(
        name,
        kind,
        "run",
        restore(config["model"], config["config"], checkpoint.tensors),
        source,
        path,
        config,
    )


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


def _check_fit(path: str, config: dict[str, Any], store: Rows) -> None:
    # the whole command: compare takes one store
    check_stores(path, config, store, f"saekit evaluate {path}")
    spec, own = store.spec, config["spec"]
    if own["d_in"] != spec.d_in:
        raise DataError(
            f"{path} takes {own['d_in']} values per row ({own['model']}, {own['hook']}), "
            f"{store.path} holds {spec.d_in} ({spec.model}, {spec.hook})",
            f"{opt('store')} with a store of the same hook",
        )
    shape = config["config"].get("shape")
    if shape is not None and tuple(shape) != spec.shape:
        raise DataError(
            f"{path} takes examples of shape {tuple(shape)}, those of {store.path} have"
            f" {spec.shape}"
        )


def _open_target(path: str, where: str) -> Store:
    try:
        return Store(Path(where))
    except MissingError as error:
        raise MissingError(
            f"{path} was trained on a target: {error.cause}",
            f"{opt('target_store')} with the folder where it lies now",
        ) from None

"""Row-aligned stores side by side as one source, for a crosscoder. A row is the concatenation of
the rows of all hooks.

A crosscoder's weights identify a hook only by its position in the row, so the stores must come in
the order of training. `check_stores` checks what the files show: how many there are, their widths,
and whether they are the known ones in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.config import recorded
from saekit.display import brief, html_table
from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows, same_rows
from saekit.store.pair import check_aligned
from saekit.store.reader import Store
from saekit.types import ActivationBatch, ActivationSpec


class StackedStore(Adapter):
    """`parts` are the widths. Raises DataError when the stores are not row-aligned, or when two
    stores hold the same rows."""

    def __init__(self, stores: Sequence[Store]) -> None:
        seen: dict[str, Store] = {}
        for store in stores:
            check_aligned(stores[0], store)
            # Also the same bytes under two hooks: `blocks.3` is `blocks.4:in`. Half of such a
            # crosscoder would be a copy.
            if twin := seen.get(store.content):
                raise DataError(
                    f"{store.path} holds the same rows as {twin.path}", "give every hook once"
                )
            seen[store.content] = store
        super().__init__(*stores)
        self.stores = tuple(stores)

    @property
    def origin(self) -> Store:
        """The store that says where a row comes from: the first, since all have the same origin."""
        return self.stores[0]

    def __len__(self) -> int:
        return len(self.stores[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(N,D): rows, and the widths of all hooks together."""
        return len(self), sum(self.parts)

    def __repr__(self) -> str:
        values = {"shape": self.shape, "parts": self.parts, "hooks": tuple(self.names)}
        return brief(self, values)

    def _repr_html_(self) -> str:
        rows = [{"path": str(store.path), "shape": store.shape} for store in self.stores]
        named = [{"hook": name, **row} for name, row in zip(self.names, rows)]
        return html_table(named, f"{len(self.stores)} stores side by side")

    @property
    def parts(self) -> tuple[int, ...]:
        return tuple(store.spec.d_in for store in self.sources)

    @property
    def spec(self) -> ActivationSpec:
        """The first store's, with all hooks (`blocks.3+blocks.6`) and their width together."""
        hook = "+".join(store.spec.hook for store in self.sources)
        return dataclasses.replace(self.sources[0].spec, hook=hook, d_in=sum(self.parts))

    @property
    def names(self) -> list[str]:
        """A name per part: its hook; model and hook for two models with one hook; else folder."""
        hooks = [store.spec.hook for store in self.sources]
        models = [f"{store.spec.model} {store.spec.hook}" for store in self.sources]
        unique = [names for names in (hooks, models) if len(set(names)) == len(names)]
        return unique[0] if unique else [str(store.path) for store in self.sources]

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        """x fp32, the parts side by side."""
        assert same_rows(*batches)
        return dataclasses.replace(
            batches[0], x=torch.cat([batch.x.float() for batch in batches], -1)
        )

    def locate(self, row: int) -> str:
        """Names the store whose part of the row is not finite, else the last one."""
        index = np.array([row])
        bad = (store for store in self.sources[:-1] if not store.take(index).x.isfinite().all())
        return next(bad, self.sources[-1]).locate(row)


def stores_of(source: Rows) -> list[Rows]:
    """The stores that are side by side in `source`; [source] for other rows."""
    return list(source.sources) if isinstance(source, StackedStore) else [source]


def check_stores(
    checkpoint: str | Path, config: dict[str, Any], source: Rows, command: str = ""
) -> None:
    """Raise DataError unless `source` has as many stores as the run was trained on; for a
    crosscoder, with the widths of its parts and in the order of training. `config` is config.json
    of the run; `command` is the shell command that takes these stores, if it is not the caller."""
    stores, parts, spec = stores_of(source), config["config"].get("parts") or (), config["spec"]
    # A model of one hook.
    if not parts:
        if len(stores) > 1:
            raise DataError(
                f"{checkpoint} reads the rows of one store ({spec['model']}, {spec['hook']}), and"
                f" {len(stores)} are given",
                f"give one {opt('store')}; several are for crosscoders, which are trained with"
                f" {opt('stores')}",
            )
        return
    # A crosscoder: number, widths and order of the stores.
    # an import may not know the hooks
    hooks = spec["hook"].split("+") if spec["hook"] else ["an unknown hook"] * len(parts)
    hint = _as_trained(Path(checkpoint), config, command)
    if len(stores) != len(parts):
        count = "one is given" if len(stores) == 1 else f"{len(stores)} are given"
        raise DataError(
            f"{checkpoint} is a crosscoder, which reads {len(parts)} stores ({', '.join(hooks)}),"
            f" and {count}",
            hint,
        )
    for place, (store, width, hook) in enumerate(zip(stores, parts, hooks), 1):
        if store.spec.d_in != width:
            raise DataError(
                f"{checkpoint} takes {width} values per row of {hook} as part {place};"
                f" {store.path}, given as number {place}, holds {store.spec.d_in}"
                f" ({store.spec.model}, {store.spec.hook})",
                hint,
            )
    if _permuted(stores, hooks, config["content"]):
        paths = ", ".join(str(store.path) for store in stores)
        raise DataError(
            f"{checkpoint} was trained on these stores in another order than {paths}", hint
        )


def _permuted(stores: list[Rows], hooks: list[str], first_content: str) -> bool:
    """Whether the hooks are those of training in another order, or the first store of training
    comes later."""
    actual = [store.spec.hook for store in stores]
    contents = [store.content for store in stores]
    return (actual != hooks and sorted(actual) == sorted(hooks)) or first_content in contents[1:]


def _as_trained(checkpoint: Path, config: dict[str, Any], command: str) -> str:
    """The stores of training, in order. The folder of the first is only in config.toml, which a
    copied checkpoint may lack."""
    first = recorded(checkpoint, "store") or "STORE"
    paths = (first, *config["training"].get("stores", ()))
    return with_stores(command, paths) if command else opt("store", paths)


def with_stores(command: str, paths: Iterable[str]) -> str:
    """A shell command with these stores added."""
    for path in paths:
        command = f"{command} --store {path}"
    return command

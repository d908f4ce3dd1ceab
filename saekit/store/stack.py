"""Row-aligned stores side by side as one source: what a crosscoder reads. A row is the rows of all
hooks, one after another.

A crosscoder's weights know a hook by its place in the row alone, so the stores come in the order of
training. `check_stores` finds what can be told from the files: how many there are, their widths,
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
from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows
from saekit.store.pair import check_aligned
from saekit.store.reader import Store
from saekit.types import ActivationBatch, ActivationSpec


class StackedStore(Adapter):
    """`parts` are the widths. Raises DataError where rows of the stores come from other places, or
    where two stores hold the same."""

    def __init__(self, stores: Sequence[Store]) -> None:
        seen: dict[str, Store] = {}
        for store in stores:
            check_aligned(stores[0], store)
            # The same bytes under two hooks, too: `blocks.3` is `blocks.4:in`. Half of such a
            # crosscoder would be a copy.
            if twin := seen.get(store.content):
                raise DataError(
                    f"{store.path} holds the same rows as {twin.path}", "give every hook once"
                )
            seen[store.content] = store
        super().__init__(*stores)

    @property
    def origin(self) -> Store:
        """The store that says where a row comes from: the first, as it is the same for all."""
        return self.sources[0]

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
        """One for each part: its hook; where two models are read at the same hook, model and hook;
        else the folder."""
        hooks = [store.spec.hook for store in self.sources]
        models = [f"{store.spec.model} {store.spec.hook}" for store in self.sources]
        unlike = [names for names in (hooks, models) if len(set(names)) == len(names)]
        return unlike[0] if unlike else [str(store.path) for store in self.sources]

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        """x fp32, the parts side by side."""
        assert all(torch.equal(batch.rows, batches[0].rows) for batch in batches)
        return dataclasses.replace(
            batches[0], x=torch.cat([batch.x.float() for batch in batches], -1)
        )

    def locate(self, row: int) -> str:
        """Of the stores the one whose part of the row is not finite; else the last."""
        index = np.array([row])
        bad = (store for store in self.sources[:-1] if not store.take(index).x.isfinite().all())
        return next(bad, self.sources[-1]).locate(row)


def stores_of(source: Rows) -> list[Rows]:
    """The stores side by side; of all other rows themselves."""
    return list(source.sources) if isinstance(source, StackedStore) else [source]


def check_stores(
    checkpoint: str | Path, config: dict[str, Any], source: Rows, command: str = ""
) -> None:
    """Raise DataError unless a run reads as many stores as `source` has, in a crosscoder each of
    the width of its part, in the order of training. `config` is config.json of the run, `command`
    the shell command that takes these stores, where that is not the caller's."""
    stores, parts, spec = stores_of(source), config["config"].get("parts") or (), config["spec"]
    if not parts:
        if len(stores) > 1:
            cause = (
                f"{checkpoint} reads the rows of one store ({spec['model']}, {spec['hook']}), and"
                f" {len(stores)} are given"
            )
            raise DataError(
                cause,
                f"give one {opt('store')}; several are for crosscoders, which are trained with"
                f" {opt('stores')}",
            )
        return
    hooks, hint = spec["hook"].split("+"), _as_trained(Path(checkpoint), config, command)
    if len(stores) != len(parts):
        given = "one is given" if len(stores) == 1 else f"{len(stores)} are given"
        raise DataError(
            f"{checkpoint} is a crosscoder, which reads {len(parts)} stores ({', '.join(hooks)}),"
            f" and {given}",
            hint,
        )
    for place, (store, width, hook) in enumerate(zip(stores, parts, hooks), 1):
        if store.spec.d_in != width:
            held = (
                f"{store.path}, given as number {place}, holds {store.spec.d_in}"
                f" ({store.spec.model}, {store.spec.hook})"
            )
            raise DataError(
                f"{checkpoint} takes {width} values per row of {hook} as part {place}; {held}", hint
            )
    if _permuted(stores, hooks, config["content"]):
        given = ", ".join(str(store.path) for store in stores)
        raise DataError(
            f"{checkpoint} was trained on these stores in another order than {given}", hint
        )


def _permuted(stores: list[Rows], hooks: list[str], first_content: str) -> bool:
    """Whether the hooks are those of training in another order, or the first store of training
    stands further back."""
    given = [store.spec.hook for store in stores]
    contents = [store.content for store in stores]
    return (given != hooks and sorted(given) == sorted(hooks)) or first_content in contents[1:]


def _as_trained(checkpoint: Path, config: dict[str, Any], command: str) -> str:
    """The stores of training, in order. The first one's folder stands in config.toml alone, which a
    copied checkpoint may lack."""
    first = recorded(checkpoint, "store") or "STORE"
    paths = (first, *config["training"].get("stores", ()))
    return with_stores(command, paths) if command else opt("store", paths)


def with_stores(command: str, paths: Iterable[str]) -> str:
    """A shell command that takes these stores."""
    for path in paths:
        command = f"{command} --store {path}"
    return command

"""Row-aligned stores side by side as one source: what a crosscoder reads. A row is the rows of all hooks, one after another.

A crosscoder's weights know a hook by its place in the row alone, so the stores come in the order of training. `check_stores` finds what can
be told from the files: how many there are, their widths, and whether they are the known ones in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.config import recorded
from saekit.errors import DataError, UsageError, opt
from saekit.store.pair import check_aligned
from saekit.store.reader import Store
from saekit.types import ActivationBatch, ActivationSpec, Split

Paths = str | Path | Sequence[str | Path]


class StackedStore:
    """`parts` are the widths. Raises DataError where rows of the stores come from other places, or where two stores hold the same."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        seen: dict[str, Store] = {}
        for store in stores:
            check_aligned(stores[0], store)
            # The same bytes under two hooks, too: `blocks.3` is `blocks.4:in`. Half of such a crosscoder would be a copy.
            if twin := seen.get(store.manifest.content):
                raise DataError(f"{store.path} holds the same rows as {twin.path}", "give every hook once")
            seen[store.manifest.content] = store
        self.parts = tuple(store.spec.d_in for store in stores)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stores[0], name)  # what all of them share: split, path, locate ...

    def __len__(self) -> int:
        return len(self.stores[0])

    @property
    def spec(self) -> ActivationSpec:
        """The first store's, with all hooks (`blocks.3+blocks.6`) and their width together."""
        hook = "+".join(store.spec.hook for store in self.stores)
        return dataclasses.replace(self.stores[0].spec, hook=hook, d_in=sum(self.parts))

    @property
    def names(self) -> list[str]:
        """One for each part: its hook; where two models are read at the same hook, model and hook; else the folder."""
        hooks = [store.spec.hook for store in self.stores]
        models = [f"{store.spec.model} {store.spec.hook}" for store in self.stores]
        unlike = [names for names in (hooks, models) if len(set(names)) == len(names)]
        return unlike[0] if unlike else [str(store.path) for store in self.stores]

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """x (N,D) fp32 of the given rows, ascending."""
        return torch.cat([store.rows(index).float() for store in self.stores], -1)

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`; the stores share their order."""
        for batches in zip(*(store.batches(batch_size, seed, start, split, examples) for store in self.stores)):
            assert all(torch.equal(batch.rows, batches[0].rows) for batch in batches)
            yield dataclasses.replace(batches[0], x=torch.cat([batch.x.float() for batch in batches], -1))


def open_stores(paths: Paths) -> Store | StackedStore:
    """The store of a path, or of several the stack. Raises UsageError (none), DataError, MissingError."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise UsageError(f"{opt('store')} is missing", "give the folder that `saekit harvest` wrote")
    stores = [Store(Path(path)) for path in paths]
    return stores[0] if len(stores) == 1 else StackedStore(stores)


def stores_of(source: Store | StackedStore) -> list[Store]:
    return source.stores if isinstance(source, StackedStore) else [source]


def check_stores(checkpoint: str | Path, config: dict[str, Any], source: Store | StackedStore, command: str = "") -> None:
    """Raise DataError unless a run reads as many stores as `source` has, in a crosscoder each of the width of its part, in the order of
    training. `config` is config.json of the run, `command` the shell command that takes these stores, where that is not the caller's."""
    stores, parts, spec = stores_of(source), config["config"].get("parts") or (), config["spec"]
    if not parts:
        if len(stores) > 1:
            cause = f"{checkpoint} reads the rows of one store ({spec['model']}, {spec['hook']}), and {len(stores)} are given"
            raise DataError(cause, f"give one {opt('store')}; several are for crosscoders, which are trained with {opt('stores')}")
        return
    hooks, hint = spec["hook"].split("+"), _as_trained(Path(checkpoint), config, command)
    if len(stores) != len(parts):
        given = "one is given" if len(stores) == 1 else f"{len(stores)} are given"
        raise DataError(f"{checkpoint} is a crosscoder, which reads {len(parts)} stores ({', '.join(hooks)}), and {given}", hint)
    for place, (store, width, hook) in enumerate(zip(stores, parts, hooks), 1):
        if store.spec.d_in != width:
            held = f"{store.path}, given as number {place}, holds {store.spec.d_in} ({store.spec.model}, {store.spec.hook})"
            raise DataError(f"{checkpoint} takes {width} values a row of {hook} as part {place}; {held}", hint)
    if _permuted(stores, hooks, config["content"]):
        given = ", ".join(str(store.path) for store in stores)
        raise DataError(f"{checkpoint} was trained on these stores in another order than {given}", hint)


def _permuted(stores: list[Store], hooks: list[str], first_content: str) -> bool:
    """Whether the hooks are those of training in another order, or the first store of training stands further back."""
    given = [store.spec.hook for store in stores]
    contents = [store.manifest.content for store in stores]
    return (given != hooks and sorted(given) == sorted(hooks)) or first_content in contents[1:]


def _as_trained(checkpoint: Path, config: dict[str, Any], command: str) -> str:
    """The stores of training, in order. The first one's folder stands in config.toml alone, which a copied checkpoint may lack."""
    first = recorded(checkpoint, "store") or "STORE"
    paths = (first, *config["training"].get("stores", ()))
    return with_stores(command, paths) if command else opt("store", paths)


def with_stores(command: str, paths: Iterable[str]) -> str:
    """A shell command that takes these stores."""
    for path in paths:
        command = f"{command} --store {path}"
    return command

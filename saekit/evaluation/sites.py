"""Where a model reads its rows in a running transformer, and where its reconstructions go.

An SAE reads one hook and replaces its states. A transcoder reads a module's input and replaces the
module's output in the same pass. A crosscoder reads several hooks and replaces the states of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.evaluation.models import EvaluatedModel
from saekit.harvesting.models import LiveModel
from saekit.harvesting.parts import has_module
from saekit.harvesting.views import split_hook
from saekit.store.pair import PairedStore
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

ASKED = opt("loss_recovered", True)


@dataclass(frozen=True)
class Site:
    reads: tuple[Store, ...]
    """The stores of the hooks whose states, side by side, are a row."""
    writes: tuple[Store, ...]
    """The stores of the hooks whose states a reconstruction, cut at their widths, replaces."""

    @property
    def store(self) -> Store:
        """The one that says where a row comes from."""
        return self.reads[0]

    @property
    def hooks(self) -> list[str]:
        """Every hook, once."""
        return list(dict.fromkeys(store.spec.hook for store in (*self.reads, *self.writes)))

    @property
    def norm_limits(self) -> dict[str, float | None]:
        return {store.spec.hook: store.manifest.norm_limit for store in (*self.reads, *self.writes)}

    def check_order(self, fired: list[str]) -> None:
        """Raise DataError where a hook is replaced before a row is complete: `fired` are the hooks
        in the order of a pass."""
        last = max(fired.index(store.spec.hook) for store in self.reads)
        early = [s.spec.hook for s in self.writes if fired.index(s.spec.hook) < last]
        if self.reads != self.writes and early:
            raise DataError(
                f"{early[0]} runs before {fired[last]}, so its states cannot be replaced by what is"
                " reconstructed from there",
                f"drop {ASKED}",
            )

    def cut(self, rows_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        """hook -> its part of reconstructed rows."""
        widths = [store.spec.d_in for store in self.writes]
        return dict(zip((s.spec.hook for s in self.writes), rows_ND.split(widths, 1), strict=True))

    def mean(self) -> torch.Tensor:
        """(D,) fp64: the mean row of the stores that are replaced."""
        means = [torch.tensor(s.stats["mean"], dtype=torch.float64) for s in self.writes]
        return torch.cat(means)


def site_of(run: EvaluatedModel) -> Site:
    """Raises UsageError or DataError for models and rows without a place in a running model."""
    source = run.source
    # the stores
    if isinstance(source, StackedStore):
        site = Site(source.stores, source.stores)
    elif isinstance(source, PairedStore):
        site = Site((_need_store(source.sources[0], run),), (_need_store(source.target, run),))
    else:
        store = _need_store(source, run)
        site = Site((store,), (store,))
    # what they hold
    stores = (*site.reads, *site.writes)
    if any(store.spec.is_raw for store in stores):
        raise DataError(
            f"{site.store.path} holds {site.store.spec.hook} rows, not states of a model:"
            " there is no loss",
            f"drop {ASKED}",
        )
    if models := {s.spec.model for s in stores} - {site.store.spec.model}:
        raise DataError(
            f"{run.name} reads {site.store.spec.model} and {models.pop()}, which do not run in one"
            " pass",
            f"drop {ASKED}",
        )
    if run.examples:
        raise DataError(
            f"{run.name} ({run.kind}) reconstructs whole examples, not the rows at a hook",
            f"drop {ASKED}",
        )
    return site


def _need_store(rows: Any, run: EvaluatedModel) -> Store:
    if not isinstance(rows, Store):
        raise UsageError(
            f"{ASKED}: rows in memory do not say which model {run.name} reads",
            "give the path of a store",
        )
    return rows


def on_module(live: LiveModel, hook: str) -> str:
    """The hook's name on a model with a head, whose base model may lie one level deeper than in the
    model that was harvested."""
    path, _ = split_hook(hook)
    inner = f"{getattr(live.module, 'base_model_prefix', '')}.{hook}"
    deeper = not has_module(live.module, path) and has_module(live.module, split_hook(inner)[0])
    return inner if deeper else hook

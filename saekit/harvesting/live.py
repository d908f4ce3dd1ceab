"""Training rows directly from the running model, without a copy on disk.

A small store remains the reference: it defines model, data and hook, and has the held-out rows and
the statistics. The rows to train on come from a harvest that is not written to disk: the same
batches in the same order, so that a row that is also in the store has the same bits on the same
machine. Documents that the store holds out are run with their batch and discarded; documents after
the last stored one are training data. Instead of disk space, live rows cost time: every epoch and
every resume runs the model.

Rows pass through a shuffle buffer. It is filled, a random half of its slots is emptied in random
order, and these slots are filled again; so a row stays for a few fillings, and neighbors in a
context end up tens of thousands of rows apart. The first row comes when the buffer is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch

from saekit.device import pick_device
from saekit.errors import DataError, NumericsError, opt
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.models import LiveModel
from saekit.harvesting.run import ModelHarvest, origins, within_norm
from saekit.rows import Adapter, Columns, cut
from saekit.store.manifest import differences
from saekit.store.reader import Store
from saekit.store.writer import DTYPES
from saekit.types import ActivationBatch, Split

BUFFER_ROWS = 65_536  # as many as Store shuffles at once: 75 MB of 576 fp16 values


class LiveSource(Adapter):
    """The store's rows for all splits but "train"; training rows are hidden states of the model, as
    if the store's harvest continued.

    `live` avoids loading the model again. A harvest of several hooks with max_norm drops rows that
    are too long at any hook; here only the store's own hook counts.

    Raises DataError for a store of raw data, and when model or data are no longer those of the
    store (the held-out documents are known by number); MissingError when one of them is missing.
    """

    def __init__(
        self,
        store: Store,
        live: LiveModel | None = None,
        device: str = "auto",
        buffer_rows: int = BUFFER_ROWS,
    ) -> None:
        assert isinstance(store, Store) and buffer_rows > 1, (
            "one store; a buffer that can be halved"
        )
        super().__init__(store)
        self.store, self.buffer_rows = store, buffer_rows
        # called between forward passes; True raises KeyboardInterrupt
        self.stopped: Callable[[], bool] = lambda: False
        self._harvest = _harvest_of(store, live, device)
        self.live = self._harvest.live
        first_rows = store.split("holdout").starts.tolist()  # of each held-out document
        self._held_out = torch.tensor(store.documents_of(first_rows)).unique()

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`. For split "train": rows of the running model, x (B,D) in the store's
        dtype, `rows` None.

        The order is a function of only (seed, epoch), so `start`, in rows, continues exactly; the
        rows before it are computed again, which costs their forward passes. seed None: one pass in
        the order of the data. Raises DataError for examples=True and for shuffled data without any
        row, NumericsError (model, hook, place) for NaN, inf or an overflow of the dtype.
        """
        if split != "train":
            return super().batches(batch_size, seed, start, split, examples)
        if examples:
            raise DataError(
                f"live rows of {self.live.name} are single rows, not whole examples",
                "train this model on a store",
            )
        return (
            ActivationBatch(**columns) for columns in cut(self._windows(seed), batch_size, start)
        )

    def _windows(self, seed: int | None) -> Iterator[tuple[Columns, torch.Tensor]]:
        """(rows, order of those to use now). The next pair overwrites the rows."""
        if seed is None:
            for rows in self._epoch():
                yield rows, torch.arange(len(rows["x"]))
            return
        for epoch in count():
            yield from self._shuffled(np.random.Generator(np.random.PCG64([seed, epoch])))

    def _shuffled(self, rng: np.random.Generator) -> Iterator[tuple[Columns, torch.Tensor]]:
        """One epoch. The buffer is emptied at its end, so that an epoch has every row once."""
        n = self.buffer_rows
        buffer, free = self._empty(n), torch.arange(n)
        for rows in self._epoch():
            at, total = 0, len(rows["x"])
            while at < total:
                slots = free[: total - at]
                for name, values in buffer.items():
                    values[slots] = rows[name][at : at + len(slots)]
                at, free = at + len(slots), free[len(slots) :]
                if not len(free):
                    free = torch.from_numpy(rng.permutation(n))[: n - n // 2]
                    yield buffer, free
        filled = torch.ones(n, dtype=torch.bool)
        filled[free] = False
        remaining = filled.nonzero()[:, 0]
        if not len(remaining):  # otherwise at least half of the slots are still filled
            raise DataError(
                f"{self.spec.dataset} gives no row to train on",
                "the data has changed since it was harvested",
            )
        yield buffer, remaining[torch.from_numpy(rng.permutation(len(remaining)))]

    def _empty(self, rows: int) -> Columns:
        kinds = {"doc_id": torch.int64, "example_id": torch.int64, "position": torch.int32}
        x_ND = torch.empty(rows, self.spec.d_in, dtype=DTYPES[self.spec.dtype])
        return {"x": x_ND} | {name: torch.empty(rows, dtype=dtype) for name, dtype in kinds.items()}

    def _epoch(self) -> Iterator[Columns]:
        """The training rows of every model batch, in the order of the data."""
        (hook,), limit = self._harvest.hooks, self.store.manifest.norm_limit
        for batch, states in self._harvest.states():
            if self.stopped():
                raise KeyboardInterrupt
            keep_BT = within_norm(batch.rows_for_scope(self.spec.scope), states, {hook: limit})
            keep_BT = keep_BT & ~torch.isin(batch.doc_id_BT, self._held_out)
            x_ND = states[hook][keep_BT]
            rows = {"x": x_ND.to(DTYPES[self.spec.dtype]), **origins(batch, keep_BT)}
            self._check(x_ND, rows)
            yield rows

    def _check(self, x_ND: torch.Tensor, rows: Columns) -> None:
        """Raise NumericsError for a row that is not finite. Here and not after the loss: no shard
        has these rows, so their origin is only known now."""
        bad = (~rows["x"].isfinite().all(1)).nonzero()[:, 0]
        if not len(bad):
            return
        row, spec = bad[0], self.spec
        where = (
            f"{spec.model} at {spec.hook}, document {int(rows['doc_id'][row])}, position"
            f" {int(rows['position'][row])}"
        )
        if x_ND[row].isfinite().all():
            raise NumericsError(
                f"a value overflows {spec.dtype}: {where}",
                f"harvest the store with {opt('dtype', 'float32')} and {opt('overwrite', True)}",
            )
        raise NumericsError(
            f"the model's hidden state is NaN or inf: {where}", f"harvest another {opt('hook')}"
        )


def _harvest_of(store: Store, live: LiveModel | None, device: str) -> ModelHarvest:
    """The harvest that would write `store` without a limit of rows. It never opens OUT."""
    spec, plan = store.spec, store.manifest.plan
    if spec.is_raw:
        raise DataError(
            f"{store.path} holds {spec.model}, the data itself: there is no model to run",
            f"drop {opt('live')}",
        )
    # The same settings.
    settings = {
        name: getattr(spec, name)
        for name in ("scope", "layout", "dtype", "max_norm", "column", "pack", "seed")
    }
    config = HarvestConfig(
        hooks=(spec.hook,),
        ctx=spec.context or HarvestConfig.ctx,
        batch=plan["batch"],
        device=device,
        skip_broken="skipped" in store.stats,
        **settings,
    )
    harvest = ModelHarvest(
        live or load_model_of(spec, pick_device(device)), spec.dataset, store.path, config
    )
    harvest.padded = plan.get("padding") != "none"
    # The same model and data. Stores of earlier versions do not record a column that was not
    # chosen, nor a digest of hub data.
    unknown = {"column": spec.column} if spec.column is None else {}
    now = (
        harvest.spec(*harvest.hooks).to_json()
        | {"data": harvest.digest() if plan["data"] else None}
        | unknown
    )
    changed = differences(spec.to_json() | {"data": plan["data"]}, now)
    if changed:
        raise DataError(
            f"{store.path} was harvested from another model or data: {changed}",
            f"harvest it again with {opt('overwrite', True)}",
        )
    return harvest

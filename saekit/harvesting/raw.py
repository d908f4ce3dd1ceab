"""Raw data as a store: pixels, arrays of numbers, tf-idf vectors of texts; no model, no hook.

Then an autoencoder is trained on the data itself, and everything after the store is the same. MODEL
is one of three kinds: `raw:pixels` (images), `raw:array` (.npy, .npz), `raw:tfidf` (texts). An
image, array entry or text is a document of one example, and its id is the index in the source.
Examples are visited in the order of the source's documents (shuffled by the seed if they can be
listed), and example_id counts them. So two harvests of sources with the same names in the same
order, with the same seed, are row-aligned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.harvesting.base import Harvest, Writer
from saekit.harvesting.config import AUTO, HarvestConfig
from saekit.harvesting.rawdata import Array, Pixels, RawExample, TfIdf
from saekit.harvesting.sources import Data
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock
from saekit.types import ActivationSpec, Progress

KINDS = {"raw:pixels": Pixels, "raw:array": Array, "raw:tfidf": TfIdf}


class RawHarvest(Harvest):
    """Raw data into one store. A batch is `batch` examples in visiting order, also dropped ones."""

    dtype = "float32"

    def __init__(self, model: str, data: Data, out: Path | None, config: HarvestConfig) -> None:
        super().__init__(out, config)
        self.model = model
        self.data = KINDS[model](data, self.config)
        self.notes, self.widths = self.data.notes, {self.data.hook: self.data.d_in}
        if self.config.dtype == AUTO:
            self._choose_dtype(
                example.x_RD for example in self.data.examples(0) if example.x_RD is not None
            )
        if config.rows is not None and config.rows < self.data.rows_each:
            raise DataError(
                f"{opt('rows', config.rows)} is below the {self.data.rows_each} rows of one"
                " example",
                f"{opt('rows', self.data.rows_each)} or more",
            )

    def rows_expected(self) -> int | None:
        rows_each, count, limit = self.data.rows_each, self.data.count, self.config.rows
        if count is None:
            return limit
        return count * rows_each if limit is None else min(count, limit // rows_each) * rows_each

    def spec(self, hook: str) -> ActivationSpec:
        c, data = self.config, self.data
        return ActivationSpec(
            model=self.model,
            revision=None,
            hook=hook,
            modality=data.modality,
            d_in=data.d_in,
            dtype=self.stored_dtype,
            layout=data.layout,
            scope="content",
            grid=data.grid,
            dataset=data.dataset,
            context=None,
            seed=c.seed,
            column=self.data.column,
        )

    def digest(self) -> str | None:
        return self.data.digest()

    def skipped(self) -> Sequence[str]:
        return self.data.skipped

    def own_plan(self) -> dict[str, Any]:
        return {"vocabulary": self.config.vocabulary} if self.model == "raw:tfidf" else {}

    def settings(self) -> dict[str, Any]:
        c = self.config
        return {
            "model": self.model,
            "data": self.data.dataset,
            "layout": self.data.layout,
            **{n: getattr(c, n) for n in ("rows", "batch", "dtype", "shard_mb", "column", "seed")},
            "column": self.data.column,
            **({"skip_broken": True} if c.skip_broken else {}),
            **self.own_plan(),
        }

    def extras(self) -> dict[str, bytes]:
        return self.data.extras()

    def fill(self, writers: Mapping[str, Writer], progress: Callable[[Progress], None]) -> None:
        (writer,) = writers.values()
        started, first_rows, limit = time.monotonic(), writer.rows, self.config.rows
        number = writer.batches_done * self.config.batch
        source = self.data.examples(number)
        total = self.rows_expected() or 0
        while (limit is None or limit - writer.rows >= self.data.rows_each) and (
            first := next(source, None)
        ):
            batch = chain([first], islice(source, self.config.batch - 1))
            block, read = self._block(batch, number, None if limit is None else limit - writer.rows)
            writer.append(block)
            number += read
            rate = (writer.rows - first_rows) / max(time.monotonic() - started, 1e-9)
            progress(Progress("harvest", writer.rows, total, figures={"rows_per_s": rate}))

    def _block(
        self, batch: Iterator[RawExample], number: int, room: int | None
    ) -> tuple[RowBlock, int]:
        """(block, examples read): whole examples of a batch whose first has this number, at most
        `room` rows."""
        # Examples, until there is no room for another.
        examples, parts = [], [np.zeros((0, self.data.d_in), np.float32)]
        read = dropped = rows = 0
        for doc_id, ref, label, x_RD in batch:
            read += 1
            if x_RD is None:
                dropped += 1
                continue
            examples.append(
                StoredExample(number + read - 1, doc_id, rows, len(x_RD), None, ref, label)
            )
            parts.append(x_RD)
            rows += len(x_RD)
            if room is not None and room - rows < self.data.rows_each:
                break
        # Their rows, with the origin of each.
        owner = [example for example in examples for _ in range(example.rows)]
        block = RowBlock(
            x=torch.from_numpy(np.concatenate(parts)),
            doc_id=torch.tensor([example.doc_id for example in owner], dtype=torch.int64),
            example_id=torch.tensor([example.id for example in owner], dtype=torch.int64),
            position=torch.tensor(
                [row - example.first_row for row, example in enumerate(owner)], dtype=torch.int32
            ),
            examples=examples,
            dropped=dropped,
        )
        return block, read

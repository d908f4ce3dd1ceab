"""Raw data as a store: pixels, arrays of numbers, tf-idf vectors of texts; no model, no hook.

What an autoencoder is trained on then is the data itself, and everything behind the store is the
same. Three kinds stand where a MODEL
would: `raw:pixels` (images), `raw:array` (.npy, .npz), `raw:tfidf` (texts). An image, array entry
or text is a document of one example, its id the index in the source; examples are visited in the
order of the source's documents (shuffled by the seed where it can be listed) and example_id counts
them. So two harvests of sources with the same names in the same order, with the same seed, are
row-aligned.
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
    """Raw data into one store. A batch is `batch` examples of the visiting order, those left out
    included."""

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
            cause = (
                f"{opt('rows', config.rows)} is below the {self.data.rows_each} rows of one example"
            )
            raise DataError(cause, f"{opt('rows', self.data.rows_each)} or more")

    def rows_expected(self) -> int | None:
        each, count, asked = self.data.rows_each, self.data.count, self.config.rows
        if count is None:
            return asked
        return count * each if asked is None else min(count, asked // each) * each

    def spec(self, hook: str) -> ActivationSpec:
        c, data = self.config, self.data
        return ActivationSpec(
            model=self.model, revision=None, hook=hook, modality=data.modality, d_in=data.d_in,
            dtype=c.dtype, layout=data.layout,
            scope="content", grid=data.grid, dataset=data.dataset, context=None, seed=c.seed,
            column=self.data.column,
        )  # fmt: skip

    def digest(self) -> str | None:
        return self.data.digest()

    def skipped(self) -> Sequence[str]:
        return self.data.skipped

    def own_plan(self) -> dict[str, Any]:
        return {"vocabulary": self.config.vocabulary} if self.model == "raw:tfidf" else {}

    def settings(self) -> dict[str, Any]:
        c = self.config
        own = {
            "layout": self.data.layout,
            **{n: getattr(c, n) for n in ("rows", "batch", "dtype", "shard_mb", "column", "seed")},
        }
        chosen = {"column": self.data.column, **({"skip_broken": True} if c.skip_broken else {})}
        return {"model": self.model, "data": self.data.dataset, **own, **chosen, **self.own_plan()}

    def extras(self) -> dict[str, bytes]:
        return self.data.extras()

    def fill(self, writers: Mapping[str, Writer], progress: Callable[[Progress], None]) -> None:
        (writer,) = writers.values()
        began, first_rows, limit = time.monotonic(), writer.rows, self.config.rows
        number = writer.batches_done * self.config.batch
        source = self.data.examples(number)
        total = self.rows_expected() or 0
        while (limit is None or limit - writer.rows >= self.data.rows_each) and (
            first := next(source, None)
        ):
            batch = chain([first], islice(source, self.config.batch - 1))
            block, seen = self._block(batch, number, None if limit is None else limit - writer.rows)
            writer.append(block)
            number += seen
            rate = (writer.rows - first_rows) / max(time.monotonic() - began, 1e-9)
            progress(Progress("harvest", writer.rows, total, figures={"rows_per_s": rate}))

    def _block(
        self, batch: Iterator[RawExample], number: int, left: int | None
    ) -> tuple[RowBlock, int]:
        """(the block of a batch whose first example has this number, at most `left` rows of whole
        examples; examples looked at)."""
        examples, parts, dropped, rows = [], [np.zeros((0, self.data.d_in), np.float32)], 0, 0
        for seen, (doc_id, ref, label, x_RD) in enumerate(batch, 1):
            if x_RD is None:
                dropped += 1
                continue
            examples.append(
                StoredExample(number + seen - 1, doc_id, rows, len(x_RD), None, ref, label)
            )
            parts.append(x_RD)
            rows += len(x_RD)
            if left is not None and left - rows < self.data.rows_each:
                break
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
        return block, seen

"""The contexts for training and evaluating an intervention: documents of a store's data, with its
split.

Which documents are held out depends on their numbers of rows, so only the store can tell. Its other
documents, and those that it never reached, are for training.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np

from saekit.errors import DataError, opt
from saekit.harvesting.documents import Document, Documents
from saekit.harvesting.inputs import SORT_WINDOW, ContextBatch, batches
from saekit.harvesting.models import LiveModel
from saekit.harvesting.sources import Data, open_data, open_data_of
from saekit.store.reader import Store
from saekit.types import IN_MEMORY, Split

JUDGED_BATCH = 8  # contexts; fixed, so that every run on a store is judged on the same ones


class Chosen(Documents):
    """Those of `data` whose ids are in `ids`, or with `inside` False those whose ids are not, in
    the order of `data`."""

    def __init__(self, data: Documents, ids: frozenset[int], inside: bool) -> None:
        self.name, self.modality = data.name, data.modality
        self._data, self._ids, self._inside = data, ids, inside

    def documents(self, start: int = 0) -> Iterator[Document]:
        return islice(self._chosen(), start, None)

    def _chosen(self) -> Iterator[Document]:
        missing = len(self._ids)
        for document in self._data.documents():
            known = document.id in self._ids
            missing -= known
            if known == self._inside:
                yield document
            if self._inside and missing == 0:
                return  # the rest of a stream may be long

    def digest(self) -> str | None:
        return self._data.digest()

    def image(self, ref: str):
        return self._data.image(ref)


def document_ids(store: Store, split: Split) -> frozenset[int]:
    """The documents with rows on one side of the store's split."""
    rows = store.split(split).numbers()
    return frozenset(np.unique(store.column("doc_id")[rows]).tolist())


def own_data(store: Store, objects: Data | None = None) -> Documents:
    """The data that a store was harvested from. `objects`: these data themselves, for a store of
    texts or images that were in memory. Raises what `open_data` does, and DataError when the data
    has changed, so that the ids of its documents mean others."""
    known = store.manifest.plan.get("data")
    if store.spec.dataset.endswith(IN_MEMORY):
        data = open_data_of(store.spec, known, objects)
    else:
        data = _opened(store, store.spec.dataset, store.spec.seed)
    if known is not None and data.digest() != known:
        raise DataError(
            f"{store.spec.dataset} has changed since {store.path} was harvested",
            "harvest it again",
        )
    return data


def permuted(
    store: Store, live: LiveModel, data: Documents, seed: tuple[int, int], batch: int
) -> Iterator[ContextBatch]:
    """Batches of contexts, cut as the store's spec says. They are sorted by length within a window,
    and permuted here, so that a short run sees short and long contexts at every learning rate, and
    the first ones are a fair sample."""
    spec, rng = store.spec, np.random.Generator(np.random.PCG64(seed))
    padded = store.manifest.plan.get("padding") != "none"  # where rows depend on padding
    ctx = spec.context or 0  # images have none
    stream = batches(live, data, ctx=ctx, batch=batch, pack=spec.pack, padded=padded)
    while window := list(islice(stream, SORT_WINDOW)):
        yield from (window[number] for number in rng.permutation(len(window)))


def judged(store: Store, live: LiveModel, data: Documents) -> Iterator[ContextBatch]:
    """All contexts of `data`, the same ones in the same order for every run on the store."""
    return permuted(store, live, data, (0, 0), JUDGED_BATCH)


class Contexts:
    """Batches of `batch` contexts for a fine-tune.

    `data`: what to train on, a place or objects; None: the store's own data. A store of texts that
    were in memory needs these same texts, for its held-out documents. Raises what `own_data` does.
    """

    def __init__(self, store: Store, live: LiveModel, batch: int, data: Data | None = None) -> None:
        self.store, self.live, self.batch = store, live, batch
        self.held_out = document_ids(store, "holdout")
        if isinstance(data, Iterator):  # it is read once for each pass
            data = list(data)
        own = own_data(store, data)
        self.judged = Chosen(own, self.held_out, inside=True)
        self._source = store.spec.dataset if data is None else data
        chosen = own if data is None else _opened(store, data, 0)
        objects = not isinstance(self._source, (str, Path))
        self.data = chosen.name if objects else str(self._source)
        self.digest = chosen.digest() if objects else None
        """Of objects to train on; None where the name of a place says what they are."""
        self.same = chosen.name == own.name and self.digest in (
            None,
            store.manifest.plan.get("data"),
        )

    def holdout(self, most: int) -> Iterator[ContextBatch]:
        """About `most` contexts of the held-out documents, or all of them: the same ones for every
        batch size and seed."""
        return islice(judged(self.store, self.live, self.judged), max(most // JUDGED_BATCH, 1))

    def train(self, seed: int) -> Iterator[ContextBatch]:
        """Endless passes over the training documents, each in another order where the data can be
        listed."""
        for epoch in count():
            data = _opened(self.store, self._source, seed + epoch)
            empty = True
            allowed = Chosen(data, self.held_out, inside=False) if self.same else data
            for batch in permuted(self.store, self.live, allowed, (seed, epoch), self.batch):
                empty = False
                yield batch
            if empty:
                raise DataError(
                    f"{self.data} has no document to train on",
                    f"give other data with {opt('data')}",
                )


def _opened(store: Store, data: Data, seed: int) -> Documents:
    spec = store.spec
    # a table in memory is the store's own where that was in memory
    in_memory = spec.dataset.endswith(IN_MEMORY)
    same = str(data) == spec.dataset if isinstance(data, (str, Path)) else in_memory
    return open_data(
        data,
        modality="image" if spec.modality == "image" else "text",
        column=spec.column if same else None,
        seed=seed,
        skip_broken="skipped" in store.stats,
    )

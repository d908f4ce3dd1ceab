"""The text that was written, for vocabularies that do not keep it.

WordPiece loses where spaces were around punctuation, and, uncased, upper case and accents; a
vocabulary may map words that it does not have to one token. Where the data of a store can still be
read, its documents go through the tokenizer once more, and the offsets say what each token of a
context was. It is known to be the same text by its tokens: where they differ, the context is put
together from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from saekit.embedded import is_embedded
from saekit.errors import SaekitError
from saekit.inspection.tokens import TokenTexts, cut
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.stack import StackedStore

AROUND = 4  # special tokens that may stand before or behind a text


class WrittenTexts:
    """Texts of contexts by the documents that they come from."""

    def __init__(self, store: Store | StackedStore, texts: TokenTexts, data: Any = None) -> None:
        """`data`: the texts themselves, where the store's were in memory."""
        self._spec, self._texts, self._data = store.spec, texts, data
        self._known = store.origin.manifest.plan.get("data")
        # id -> text, its token ids, the end of each in the text
        self._documents: dict[int, tuple[str, bytes, list[int]]] = {}
        self.fault = (
            ""
            if data is not None or _is_here(self._spec.dataset)
            else f"{self._spec.dataset} is not on this machine"
        )

    def gather(self, doc_ids: Iterable[int]) -> None:
        """Read these documents, in place of those that were read before. Where that fails, `fault`
        says why."""
        from saekit.harvesting.sources import open_data_of

        wanted = set(doc_ids)
        self._documents = {
            number: found for number, found in self._documents.items() if number in wanted
        }
        wanted -= self._documents.keys()
        if self.fault or not wanted:
            return
        try:
            data = open_data_of(self._spec, self._known, self._data)
            for document in data.documents():
                if document.id in wanted:
                    wanted.remove(document.id)
                    if (read := self._texts.tokenized(document.text)) is not None:
                        self._documents[document.id] = document.text, _packed(read[0]), read[1]
                    if not wanted:
                        return
        except (SaekitError, OSError) as error:
            self.fault = str(error)

    def of(self, example: StoredExample) -> list[str]:
        """One string for each token of the example."""
        ids = list(example.tokens)
        text, whole, ends = self._documents.get(example.doc_id, ("", b"", []))
        for before in range(AROUND):
            for behind in range(AROUND):
                content = ids[before : len(ids) - behind]
                at = _place(whole, _packed(content))
                if content and at is not None:
                    begin, last = ends[at - 1] if at else 0, ends[at + len(content) - 1]
                    shown = cut(
                        text[begin:last], [end - begin for end in ends[at : at + len(content)]]
                    )
                    around = [
                        self._texts.alone(index)
                        for index in (*ids[:before], *ids[len(ids) - behind :])
                    ]
                    return [*around[:before], *shown, *around[before:]]
        return self._texts(ids)


def _is_here(dataset: str) -> bool:
    return is_embedded(dataset) or Path(dataset).expanduser().exists()


def _packed(ids: list[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


def _place(whole: bytes, some: bytes) -> int | None:
    """Where `some` ids stand in `whole`, None where they do not."""
    at = whole.find(some)
    while at > 0 and at % 4:
        at = whole.find(some, at + 1)
    return None if at < 0 else at // 4

"""The text as it was written, for vocabularies that do not keep it.

WordPiece loses the spaces around punctuation and, uncased, upper case and accents; a vocabulary may
map unknown words to one token. Where the data of a store can still be read, its documents go
through the tokenizer again, and the offsets give the text of each token of a context. Equal tokens
show that it is the same text; where they differ, the context is put together from its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from saekit.embedded import is_embedded
from saekit.errors import SaekitError, message_of
from saekit.inspection.tokens import TokenTexts, cut
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.stack import StackedStore

AROUND = 4  # special tokens that may be before or after a text


class WrittenTexts:
    """Texts of contexts, from the documents of the store's data."""

    def __init__(self, store: Store | StackedStore, texts: TokenTexts, data: Any = None) -> None:
        """`data`: the texts themselves, where the store's were in memory."""
        self._spec, self._texts, self._data = store.spec, texts, data
        self._known = store.origin.manifest.plan.get("data")
        # id -> text, its token ids, the end of each in the text
        self._documents: dict[int, tuple[str, bytes, list[int]]] = {}
        self.fault = ""
        if data is None and not _is_here(self._spec.dataset):
            self.fault = f"{self._spec.dataset} is not on this machine"

    def gather(self, doc_ids: Iterable[int]) -> None:
        """Read these documents, and forget those that were read before. Where that fails, `fault`
        says why."""
        from saekit.harvesting.sources import open_data_of

        missing = set(doc_ids)
        self._documents = {id: known for id, known in self._documents.items() if id in missing}
        missing -= self._documents.keys()
        if self.fault or not missing:
            return
        try:
            data = open_data_of(self._spec, self._known, self._data)
            for document in data.documents():
                if document.id in missing:
                    missing.remove(document.id)
                    text = document.text or ""
                    if (tokens := self._texts.tokenized(text)) is not None:
                        self._documents[document.id] = text, _packed(tokens[0]), tokens[1]
                    if not missing:
                        return
        except (SaekitError, OSError) as error:
            self.fault = message_of(error)

    def of(self, example: StoredExample) -> list[str]:
        """One string for each token of the example."""
        ids = list(example.tokens or ())
        text, tokens, ends = self._documents.get(example.doc_id, ("", b"", []))
        for before in range(AROUND):
            for after in range(AROUND):
                content = ids[before : len(ids) - after]
                at = _place(tokens, _packed(content))
                if content and at is not None:
                    # this stretch of the document, cut where its tokens end
                    begin, last = ends[at - 1] if at else 0, ends[at + len(content) - 1]
                    offsets = [end - begin for end in ends[at : at + len(content)]]
                    special = [*ids[:before], *ids[len(ids) - after :]]
                    around = [self._texts.alone(index) for index in special]
                    return [*around[:before], *cut(text[begin:last], offsets), *around[before:]]
        return self._texts(ids)


def _is_here(dataset: str) -> bool:
    return is_embedded(dataset) or Path(dataset).expanduser().exists()


def _packed(ids: list[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


def _place(document: bytes, content: bytes) -> int | None:
    """The first place of some ids in those of a document; None where they do not occur."""
    at = document.find(content)
    while at > 0 and at % 4:
        at = document.find(content, at + 1)
    return None if at < 0 else at // 4

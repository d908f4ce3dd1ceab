"""What a row of a store can mean, as one word of each kind: the token it is at, the token before or
after it, the label of its document or image. And as several: the words of its image's name, where
images are called "red heart #2", picture 2 of the red heart.

Words are numbers here, so that thousands of latents can be counted at once. Tokens that differ only
in case and surrounding spaces are one word (" Import", "import").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from saekit.inspection.tokens import TokenTexts
from saekit.store.reader import Store
from saekit.store.shards import ShardFile
from saekit.store.stack import StackedStore

NONE = -1
# kind -> the offset of the token that gives its word, in the order in which ties are settled
TOKEN_KINDS = {"token": 0, "next": 1, "previous": -1}
LABEL, NAME = "label", "name"
# the name of an image that is one of several, without its skin tone ("cook: dark skin tone #5")
NUMBERED = re.compile(r"(.+?)(?:: [^:]* skin tone)? #[0-9]+")
_SAY_NOTHING = frozenset("and for from in into of off on out over the to with".split())


class Meanings:
    """Words of the rows of a store. `kinds` are those that its data have: tokens of text, labels of
    either where there are any, and names of images."""

    def __init__(self, store: Store | StackedStore, texts: TokenTexts | None) -> None:
        """`texts`: how tokens are written; None for images."""
        self._shards, self.texts = store.origin.shards, texts
        self._words: dict[str, int] = {}
        self._names: list[str] = []
        self._of_token: dict[int, int] = {}
        self._labels = [self._numbers(shard.labels()) for shard in self._shards]
        has_labels = any((labels != NONE).any() for labels in self._labels)
        self.of_patches = texts is None and store.spec.grid is not None
        self.of_images = texts is None
        names = [] if texts else [_names_of(shard) for shard in self._shards]
        most = max((len(each) for of_shard in names for each in of_shard), default=0)
        self._named = [self._padded(of_shard, most) for of_shard in names]
        self.kinds = (
            *(TOKEN_KINDS if texts else ()),
            *((LABEL,) if has_labels else ()),
            *((NAME,) if most else ()),
        )

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """kind -> (N,W) int32: the words of each row (N,), NONE where it has none of this kind, or
        fewer. W is 1 for all kinds but names, and no row has a word twice."""
        width = {NAME: self._named[0].shape[1]} if NAME in self.kinds else {}
        found = {
            kind: np.full((len(rows), width.get(kind, 1)), NONE, np.int32) for kind in self.kinds
        }
        for number, which, local, shard in self._by_shard(rows):
            arrays = shard.arrays
            example = _example_of(arrays, local)
            if LABEL in found:
                found[LABEL][which, 0] = self._labels[number][example]
            if NAME in found:
                found[NAME][which] = self._named[number][example]
            if self.texts is None:
                continue
            first, stop = arrays["examples.token_ptr"][example], arrays["examples.token_ptr"][1:]
            at = first + arrays["position"][local]
            for kind, offset in TOKEN_KINDS.items():
                inside = (at + offset >= first) & (at + offset < stop[example])
                ids = arrays["examples.tokens"][(at + offset)[inside]]
                found[kind][which[inside], 0] = self._words_of_tokens(ids)
        return found

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """(N,) int64: doc_id of each row (N,)."""
        found = np.empty(len(rows), np.int64)
        for _, which, local, shard in self._by_shard(rows):
            found[which] = shard.arrays["doc_id"][local]
        return found

    def token_shares(self, words: np.ndarray) -> np.ndarray:
        """(N,): each word's share of all tokens of the store's contexts; 0 for NONE."""
        shares = self._shares_of_words
        known = (words >= 0) & (words < len(shares))
        return np.where(known, shares[np.where(known, words, 0)], 0.0)

    def shares(self, kind: str, words: np.ndarray) -> np.ndarray:
        """(N,): each word's share of all tokens, or of all images (contexts); 0 for NONE."""
        if kind in TOKEN_KINDS:
            return self.token_shares(words)
        of_words = np.zeros(len(self._names))
        lists = self._labels if kind == LABEL else self._named
        for shard, numbers in zip(self._shards, lists):
            of_rows = numbers[shard.arrays["examples.rows"] > 0]
            np.add.at(of_words, of_rows[of_rows != NONE], 1)
        of_words /= max(self._images, 1)
        return np.where(words >= 0, of_words[np.where(words >= 0, words, 0)], 0.0)

    @cached_property
    def _images(self) -> int:
        """Images (contexts) with rows."""
        return sum(int((s.arrays["examples.rows"] > 0).sum()) for s in self._shards)

    def images_with(self, text: str) -> np.ndarray:
        """Numbers of the images (contexts) that have this label, or this word in their name."""
        word = self._words.get(text.strip().casefold() or text, NONE - 1)
        found = [labels == word for labels in self._labels]
        if self._named:
            found = [of | (named == word).any(1) for of, named in zip(found, self._named)]
        return np.flatnonzero(np.concatenate(found))

    def names(self) -> np.ndarray | None:
        """(E,W) int32: the words of the name of each image with rows, NONE where there are fewer;
        None where images have no numbered names."""
        if NAME not in self.kinds:
            return None
        shown = [shard.arrays["examples.rows"] > 0 for shard in self._shards]
        return np.concatenate([named[of] for named, of in zip(self._named, shown)])

    @cached_property
    def _shares_of_words(self) -> np.ndarray:
        counts = np.zeros(1, np.int64)
        for shard in self._shards:
            ids, each = np.unique(shard.arrays["examples.tokens"], return_counts=True)
            of_words = np.bincount(self._words_of_tokens(ids), each, len(counts))
            of_words[: len(counts)] += counts
            counts = of_words
        return counts / max(counts.sum(), 1)

    def text(self, word: int) -> str:
        """As it was written where it was met first; a token with its space."""
        return self._names[word]

    def _by_shard(self, rows: np.ndarray):
        """(number of a shard, places in `rows`, their rows within the shard, shard)."""
        first = 0
        for number, shard in enumerate(self._shards):
            which = np.flatnonzero((rows >= first) & (rows < first + len(shard)))
            if len(which):
                yield number, which, rows[which] - first, shard
            first += len(shard)

    def _words_of_tokens(self, ids: np.ndarray) -> np.ndarray:
        unique, place = np.unique(ids, return_inverse=True)
        texts = self.texts
        assert texts is not None
        for index in unique.tolist():
            if index not in self._of_token:
                self._of_token[index] = self._number(texts.alone(index))
        return np.array([self._of_token[index] for index in unique.tolist()], np.int32)[place]

    def _numbers(self, labels: Iterable[str | None]) -> np.ndarray:
        return np.array([NONE if name is None else self._number(name) for name in labels], np.int32)

    def _padded(self, names: list[list[str]], most: int) -> np.ndarray:
        """(examples, most) int32."""
        words = np.full((len(names), most), NONE, np.int32)
        for row, each in zip(words, names):
            row[: len(each)] = [self._number(word) for word in each]
        return words

    def _number(self, text: str) -> int:
        word = self._words.setdefault(text.strip().casefold() or text, len(self._names))
        if word == len(self._names):
            self._names.append(text)
        return word


def _example_of(arrays: dict[str, np.ndarray], local: np.ndarray) -> np.ndarray:
    """The example (number in its shard) of each row; those without rows are passed over."""
    with_rows = np.flatnonzero(arrays["examples.rows"] > 0)
    firsts = arrays["examples.first_row"][with_rows]
    return with_rows[np.searchsorted(firsts, local, side="right") - 1]


def _names_of(shard: ShardFile) -> list[list[str]]:
    """Of every image of a shard the words of its name, each once; none without a numbered name."""
    images = range(len(shard.arrays["examples.rows"]))
    matches = [NUMBERED.fullmatch(shard.example(image).ref) for image in images]
    words = [re.findall(r"[^\W\d_]{3,}", match[1].lower()) if match else [] for match in matches]
    return [list(dict.fromkeys(w for w in each if w not in _SAY_NOTHING)) for each in words]

"""Tokens as they appear in a text.

A store keeps token ids. Readable text is put together from all tokens of a context, because a
single token does not say where spaces are: a WordPiece vocabulary marks what does not begin a word
(`##ing`), SentencePiece what does (`▁the`), and a character of a byte-level vocabulary may take
several tokens. In this order:

1. bytes: every token of a byte-level vocabulary is some bytes of the text;
2. offsets: the decoded text goes through the tokenizer again; where the same ids come back, its
   offsets locate each token;
3. growth: what the decoded text gains with each token, where neither is possible (a context may
   begin inside a word).

The first of several tokens of one character has the character and the others are '', so that the
joined tokens are the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from saekit.errors import DataError
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

CONTEXTS_KEPT = 4096
TAIL = 8  # tokens before one, on which its text may depend
_UNKNOWN = "\ufffd"  # what decoding gives for bytes that are not a character


class TokenTexts:
    """Texts of the tokens of a context, and of a token by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = _decoders(backend)
        self._of_bytes = "ByteLevel" in decoder
        self._escapes = "ByteFallback" in decoder
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = set(tokenizer.all_special_ids) | {
            index for index, token in added.items() if token.special
        }
        self._added = added.keys() - self._special  # spelled as in a text, whatever the vocabulary
        self._context = lru_cache(CONTEXTS_KEPT)(self._context_texts)
        self._alone = lru_cache(None)(self._text_alone)

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """One string for each token of a context; joined they are its text. The space before a word
        belongs to the word's first token."""
        return list(self._context(tuple(ids)))

    def alone(self, index: int) -> str:
        """A token by itself, as in a list of tokens: bytes that are not a character are written
        \\xE6."""
        return self._alone(index)

    def ids(self) -> list[int]:
        """The ids that mean a token, ascending."""
        return sorted(set(self._tokenizer.get_vocab().values()))

    def loses_text(self) -> bool:
        """Whether tokens may differ from what was written: neither bytes nor a mark tell where
        spaces were."""
        return not self._of_bytes and not any(
            str(piece).startswith("▁") for piece in self._tokenizer.get_vocab()
        )

    def tokenized(self, text: str) -> tuple[list[int], list[int]] | None:
        """(ids, the end of each token in the text); None where the tokenizer does not say, or fails
        on this text."""
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        try:
            encoded = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
        # a tokenizer without an unknown token raises its own exception for what it does not know
        except Exception:
            return None
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]

    # -- a token by itself
    # ----------------------------------------------------------------------------------------------

    def _text_alone(self, index: int) -> str:
        piece = self._piece(index)
        if piece is None:
            return f"<{index}>"
        if index in self._special:
            return piece
        raw = self._bytes(index, piece)
        if raw is not None:
            return _readable(raw)
        text = self._decode([index])
        return text if text[:1] == " " or not piece.startswith("▁") else " " + text

    def _piece(self, index: int) -> str | None:
        piece = self._tokenizer.convert_ids_to_tokens(index)
        return piece.decode(errors="backslashreplace") if isinstance(piece, bytes) else piece

    def _bytes(self, index: int, piece: str) -> bytes | None:
        """The bytes that a token stands for, None where it stands for characters."""
        if index in self._added:
            return piece.encode() if self._of_bytes else None
        if self._of_bytes and all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        if self._escapes and len(piece) == 6 and piece[:3] == "<0x" and piece[5] == ">":
            return bytes([int(piece[3:5], 16)])
        return None

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    # -- the tokens of a context
    # ----------------------------------------------------------------------------------------------

    def _context_texts(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        texts: list[str] = []
        special = lambda index: index in self._special or self._piece(index) is None
        for is_special, group in groupby(ids, key=special):
            run = list(group)
            texts += [self.alone(index) for index in run] if is_special else self._ordinary(run)
        return tuple(texts)

    def _ordinary(self, ids: list[int]) -> list[str]:
        """Texts of tokens that are not special and have a piece."""
        pieces = [self._piece(index) or "" for index in ids]
        raw = [self._bytes(index, piece) for index, piece in zip(ids, pieces)]
        known = [token for token in raw if token is not None]
        if len(known) == len(raw):
            return list(characters(known))
        texts = self._by_offsets(ids) or self._by_growth(ids, raw)
        if pieces[0].startswith("▁") and texts[0][:1] not in (" ", ""):
            texts[0] = " " + texts[0]
        return texts

    def _by_offsets(self, ids: list[int]) -> list[str] | None:
        for text in (self._decode(ids), "".join(map(self.alone, ids))):
            again = self.tokenized(text)
            if again is not None and again[0] == ids:
                return cut(text, again[1])
        return None

    def _by_growth(self, ids: list[int], raw: list[bytes | None]) -> list[str]:
        texts: list[str] = []
        for is_bytes, group in groupby(range(len(ids)), key=lambda at: raw[at] is not None):
            places = list(group)
            if is_bytes:
                texts += characters([token for at in places if (token := raw[at]) is not None])
            else:
                texts += [self._gain(ids, at) for at in places]
        return texts

    def _gain(self, ids: list[int], at: int) -> str:
        if at == 0:
            text = self._decode(ids[:1])
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            prefix = getattr(getattr(backend, "model", None), "continuing_subword_prefix", None)
            return text.removeprefix(prefix) if prefix and text != prefix else text
        tail = ids[max(at - TAIL, 0) : at]
        before, after = self._decode(tail), self._decode([*tail, ids[at]])
        if after.startswith(before):
            gain = after[len(before) :]
        else:
            # what came before has changed: a character is complete now, or a space before a
            # punctuation mark is gone
            same = next(
                (i for i, (a, b) in enumerate(zip(before, after)) if a != b),
                min(len(before), len(after)),
            )
            gain = after[same:]
        return "" if gain.endswith(_UNKNOWN) and at + 1 < len(ids) else gain


def cut(text: str, ends: list[int]) -> list[str]:
    """The text in as many parts as there are ends; what is between two tokens belongs to the later
    one."""
    parts, start = [], 0
    for end in ends:
        end = max(start, end)
        parts.append(text[start:end])
        start = end
    parts[-1] += text[start:]
    return parts


def characters(tokens: list[bytes]) -> Iterator[str]:
    """One string for each token's bytes. A character belongs to the token of its first byte; bytes
    that are not a character are written \\xE6."""
    whole = b"".join(tokens)
    owner = [i for i, token in enumerate(tokens) for _ in token]
    texts = [""] * len(tokens)
    at = 0
    while at < len(whole):
        length = _length(whole[at : at + 4])
        texts[owner[at]] += whole[at : at + length].decode() if length else f"\\x{whole[at]:02X}"
        at += max(length, 1)
    return iter(texts)


def _readable(raw: bytes) -> str:
    return next(characters([raw]))


def _length(head: bytes) -> int:
    """Bytes of the UTF-8 character that begins here, 0 where none does."""
    for length in range(1, len(head) + 1):
        try:
            head[:length].decode()
            return length
        except UnicodeDecodeError:
            continue
    return 0


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level vocabularies write each byte (GPT-2): itself where it can
    be seen, else one from 256 on."""
    seen = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {
        chr(256 + i): byte for i, byte in enumerate(unseen)
    }


_BYTES = _byte_alphabet()


def _decoders(backend: Any) -> set[str]:
    """Kinds of the decoders of a fast tokenizer."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in (state, *state.get("decoders", ()))}


def token_texts(store: Store | StackedStore) -> TokenTexts:
    """From the store's own tokenizer. Raises DataError where it has none."""
    from transformers import AutoTokenizer

    from saekit.harvesting.reading import model_reading

    folder = Path(store.path) / "tokenizer"
    if not folder.is_dir():
        raise DataError(
            f"{store.path} has no tokenizer folder, so its tokens cannot be shown",
            "harvest it again",
        )
    with model_reading("tokenizer", str(store.path), str(folder)):
        return TokenTexts(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))

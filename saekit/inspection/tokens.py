"""Token ids -> strings that put together give the text, as the tokenizer itself decodes them.

A token's string is what it adds to the decoded text of the token before it. So a word piece joins its word (`bird`, `ing`), a space is
where the tokenizer writes one, and no rule of any vocabulary is known here but one: tokens that hold part of a character. Their bytes are
collected; the token that completes the character has it, those before it have nothing, and what is never completed is written by its
bytes (`<0xE6>`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from saekit.errors import DataError
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (GPT-2's table): printable bytes are themselves, others follow from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


class TokenTexts:
    """Call it with consecutive token ids. `alone` is one token by itself, for a list of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pairs: dict[tuple[int | None, int], str] = {}
        self._bytes: dict[int, bytes | None] = {}

    def __call__(self, ids: Sequence[int], before: int | None = None) -> list[str]:
        """One string a token; `before` is the token that precedes the first."""
        texts: list[str] = []
        previous, pending, decoder = before, b"", _decoder()
        for token in ids:
            part = self._part_of_character(token)
            if part is None:
                if pending:
                    texts[-1] += _visible(pending)
                    pending, decoder = b"", _decoder()
                texts.append(self._joined(previous, token))
            else:
                texts.append(_visible(decoder.decode(part)))
                pending = decoder.getstate()[0]
            previous = token
        if pending:
            texts[-1] += _visible(pending)
        return texts

    def alone(self, token: int) -> str:
        """As it stands within a text: with the space before it, where it begins a word; parts of a character by their bytes."""
        part = self._part_of_character(token)
        if part is not None:
            return _visible(part)
        piece = self._tokenizer.convert_ids_to_tokens(token)
        text = self._decode([token])
        # decode() of a single token drops the space of a sentencepiece-like vocabulary.
        return " " + text if isinstance(piece, str) and piece[:1] in ("▁", "Ġ") and not text.startswith(" ") else text

    def _joined(self, previous: int | None, token: int) -> str:
        if previous is None:
            return self.alone(token)
        if (previous, token) not in self._pairs:
            first, both = self._decode([previous]), self._decode([previous, token])
            # A decoder may take back what it wrote (a space before a comma): then the token is shown alone.
            self._pairs[previous, token] = both[len(first) :] if both.startswith(first) else self.alone(token)
        return self._pairs[previous, token]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _part_of_character(self, token: int) -> bytes | None:
        """The bytes of a token that is no whole characters; None for every other."""
        if token not in self._bytes:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            self._bytes[token] = _bytes_of(piece) if isinstance(piece, str) and REPLACEMENT in self._decode([token]) else None
        return self._bytes[token]


def _bytes_of(piece: str) -> bytes | None:
    if found := BYTE_TOKEN.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return bytes(BYTE_LETTERS[letter] for letter in piece) if piece and all(letter in BYTE_LETTERS for letter in piece) else None


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("surrogateescape")


def _visible(text: str | bytes) -> str:
    """Whole characters as they are, bytes that are none (surrogates, where decoded) as `<0xE6>`."""
    text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def token_texts(store: Store | StackedStore) -> TokenTexts:
    """From the store's own tokenizer. Raises DataError where it has none."""
    from transformers import AutoTokenizer

    from saekit.harvesting.reading import model_reading

    folder = store.path / "tokenizer"
    if not folder.is_dir():
        raise DataError(f"{store.path} has no tokenizer folder, so its tokens cannot be shown", "harvest it again")
    with model_reading("tokenizer", str(store.path), str(folder)):
        return TokenTexts(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))

"""From a stored row back to what a person can look at: the token strings of a context, the thumbnail of an image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from saekit.errors import DataError
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

THUMBNAIL = 224  # pixels of the longer side; smaller images stay as they are and the page enlarges them


def token_texts(store: Store | StackedStore) -> Callable[[list[int]], list[str]]:
    """token ids -> one string a token, as it stands in the text (a leading space is kept), from the store's own tokenizer."""
    from transformers import AutoTokenizer

    from saekit.harvesting.reading import model_reading

    folder = store.path / "tokenizer"
    if not folder.is_dir():
        raise DataError(f"{store.path} has no tokenizer folder, so its tokens cannot be shown", "harvest it again")
    with model_reading("tokenizer", str(store.path), str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    known: dict[int, str] = {}

    def texts(ids: list[int]) -> list[str]:
        for i in ids:
            if i not in known:
                known[i] = _token_text(tokenizer, i)
        return [known[i] for i in ids]

    return texts


def _token_text(tokenizer, index: int) -> str:
    """decode() of one token drops a leading space in sentencepiece-like vocabularies; behind an anchor token it does not."""
    alone = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    piece = tokenizer.convert_ids_to_tokens(index)
    if piece is not None and piece[:1] in ("▁", "Ġ") and not alone.startswith(" "):
        return " " + alone
    return alone


class Thumbnails:
    """Encoded images by key (a hash of the pixels), made once however many latents show them."""

    def __init__(self, store: Store | StackedStore) -> None:
        from saekit.harvesting.sources import open_data

        self._data = open_data(store.spec.dataset, modality="image", column=store.spec.column, seed=store.spec.seed)
        self._keys: dict[str, str] = {}
        self.images: dict[str, bytes] = {}

    def key(self, ref: str) -> str:
        if ref not in self._keys:
            image = self._data.image(ref)
            image = image if image.mode in ("L", "RGB") else image.convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
            key = hashlib.sha256(encoded.getvalue()).hexdigest()[:16]
            self._keys[ref], self.images[key] = key, encoded.getvalue()
        return self._keys[ref]

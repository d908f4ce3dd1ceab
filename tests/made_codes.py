"""A store whose rows are the codes that a test wants, and a dictionary that passes them on: every
figure of an index can be worked out from the matrix itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from made_stores import make_spec
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import saekit
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter


class Planted(NamedTuple):
    store: Path
    run: Path


def planted(
    folder: Path,
    z_NF: torch.Tensor,
    tokens_N: torch.Tensor,
    context: int,
    labels: list[str] | None = None,
    words: list[str] | None = None,
    each_document: int = 2,
    **spec,
) -> Planted:
    """`z_NF` without negative values, N a multiple of `context`; labels are of contexts, of which
    `each_document` make a document. `words`: how tokens are written."""
    store = _store(folder / "store", z_NF, tokens_N, context, labels, each_document, spec)
    if words is not None:
        vocabulary = {word: n for n, word in enumerate(words)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(vocabulary, words[0]))
        )
        tokenizer.save_pretrained(store / "tokenizer")
    F = z_NF.shape[1]
    saekit.train(store, folder / "run", sparsity="l1", latents=F, batch=8, rows=16)
    identity = {"W_enc": torch.eye(F), "W_dec": torch.eye(F), "b_enc": torch.zeros(F)}
    save_file(identity | {"b_dec": torch.zeros(F)}, folder / "run" / "model.safetensors")
    return Planted(store, folder / "run")


def _store(
    path: Path,
    z_NF: torch.Tensor,
    tokens_N: torch.Tensor,
    context: int,
    labels: list[str] | None,
    each_document: int,
    spec: dict,
) -> Path:
    N, F = z_NF.shape
    settings = {"d_in": F, "dtype": "float32", "context": context, **spec}
    writer = StoreWriter(path, make_spec(**settings), {"rows": N}, shard_bytes=64 * F * 4)
    for first in range(0, N, 4 * context):
        part = slice(first, min(first + 4 * context, N))
        example = torch.arange(part.start, part.stop) // context
        examples = [
            StoredExample(
                e,
                e // each_document,
                e * context - first,
                context,
                tokens_N[e * context : (e + 1) * context].tolist(),
                f"document {e // each_document}",
                None if labels is None else labels[e],
            )
            for e in example.unique().tolist()
        ]
        position = torch.arange(len(example)).int() % context
        block = RowBlock(z_NF[part], example // each_document, example, position, examples)
        writer.append(block)
    writer.finish()
    return path

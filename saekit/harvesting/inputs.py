"""Documents to model batches, and what every position of a batch holds.

Which examples share a batch depends only on (data, seed, ctx, batch): a resumed run skips n batches
without a forward pass and continues with the same later ones. A document's contexts never mix with
another's unless `pack` is set.

Contexts of a window of 32 batches are sorted by length before they are cut into batches: documents
are short and uneven, and without it 22 % of the positions of embedded:pydocs would be padding
instead of 2 % (SmolLM2, batch 32, ctx 128). The sort is stable, so it is as deterministic as what
it sorts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from saekit.errors import DataError, SaekitError, opt
from saekit.harvesting.images import prepared
from saekit.harvesting.models import LiveModel
from saekit.harvesting.reading import first_line
from saekit.harvesting.sources import Document, Documents
from saekit.harvesting.tokens import (
    Frame,
    PositionKind,
    check_context,
    embedded_tokens,
    special_tokens,
)
from saekit.types import CLS_POSITION, FIRST_REGISTER_POSITION, Scope

__all__ = [
    "ContextBatch",
    "PositionKind",
    "batches",
    "check_context",
    "check_scope",
    "special_tokens",
]

SORT_WINDOW = 32  # batches
_TOKENIZE_AT_ONCE = 64  # documents; the tokenizer works on them in parallel


@dataclass
class ContextBatch:
    """One model input with the origin of every position. T counts all tokens, special ones and
    padding included."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask (B,T) int64 | pixel_values (B,C,h,w)
    # (B,) int64, a running number in the order of the source
    example_id: Tensor
    doc_id_BT: Tensor  # int64; one document per row unless packed; padding repeats the last one
    kind_BT: Tensor  # int8, PositionKind
    # int32: index into token_ids, or row-major patch index; image CLS -1, registers -2, -3, ...
    position_BT: Tensor
    # per example, special tokens included, padding not; empty lists for images
    token_ids: list[list[int]]
    refs: list[str]  # document names; `Documents.image` opens an image by its name
    labels: list[str | None]
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def doc_id(self) -> Tensor:
        """(B,) int64: the document of each example; the first one if packed."""
        return self.doc_id_BT[:, 0]

    def rows_for_scope(self, scope: Scope) -> Tensor:
        """bool (B,T): content is neither special token nor padding, cls only the class token, all
        everything but padding."""
        if scope == "content":
            return self.kind_BT == PositionKind.CONTENT
        if scope == "cls":
            return self.kind_BT == PositionKind.CLS
        return self.kind_BT != PositionKind.PADDING


def batches(
    live: LiveModel,
    data: Documents,
    *,
    ctx: int = 128,
    batch: int = 32,
    pack: bool = False,
    start_batch: int = 0,
    padded: bool = True,
) -> Iterator[ContextBatch]:
    """The stream of batches of `data` for `live`, from batch number `start_batch` on, in the order
    of `data` (which has the seed).

    ctx is the number of tokens in a context, special tokens included; images ignore it and pack.
    Skipping costs tokenization for text, nothing for images. padded=False puts contexts of one
    length into a batch. Raises UsageError for a ctx without room for a token, DataError for one
    that is too long for the model.
    """
    if live.modality == "image":
        return image_batches(live, data, batch=batch, start_batch=start_batch)
    return text_batches(
        live, data, ctx=ctx, batch=batch, pack=pack, start_batch=start_batch, padded=padded
    )


def check_scope(live: LiveModel, scope: Scope) -> None:
    """Raise DataError when `scope` can select nothing on this model."""
    if scope != "cls":
        return
    if live.image_tokens is not None:
        has_cls = live.image_tokens.has_cls
    else:
        has_cls = live.kind == "text_encoder" and live.tokenizer.cls_token_id is not None
    if not has_cls:
        raise DataError(
            f"{opt('scope', 'cls')}: {live.name} has no class token", opt("scope", "content", "all")
        )


# -- text ------------------------------------------------------------------------------------------


@dataclass
class _Context:
    number: int
    ids: list[int]
    kinds: list[int]
    doc_ids: list[int]
    name: str
    label: str | None


def text_batches(
    live: LiveModel,
    data: Documents,
    *,
    ctx: int,
    batch: int,
    pack: bool = False,
    start_batch: int = 0,
    padded: bool = True,
) -> Iterator[ContextBatch]:
    """See `batches`."""
    frame, room = check_context(live, ctx, pack)
    tokenized = _tokenized(live, data)
    contexts = _packed(tokenized, frame, room) if pack else _separate(tokenized, frame, room)
    pad = _padding(live)
    for number, group in enumerate(_grouped(contexts, batch, padded)):
        if number >= start_batch:
            yield _text_batch(group, pad)


def _padding(live: LiveModel) -> int:
    """The id of padding. It is masked, so it need not be the tokenizer's: 0 replaces a pad token
    that was added without an embedding."""
    pad, tokens = live.tokenizer.pad_token_id or 0, embedded_tokens(live)
    return pad if tokens is None or pad < tokens else 0


def _tokenized(live: LiveModel, data: Documents) -> Iterator[tuple[Document, list[int]]]:
    """Raises DataError for a text that the tokenizer cannot read, and for a token without an
    embedding in the model."""
    documents, tokens = data.documents(), embedded_tokens(live)
    while group := list(islice(documents, _TOKENIZE_AT_ONCE)):
        for document, ids in zip(group, _token_ids(live, group), strict=True):
            if tokens is not None and ids and max(ids) >= tokens:
                _refuse_token(live, document, max(ids), tokens)
            yield document, ids


def _token_ids(live: LiveModel, documents: list[Document]) -> list[list[int]]:
    try:
        return live.tokenizer(
            [document.text for document in documents], add_special_tokens=False, verbose=False
        )["input_ids"]
    except SaekitError:
        raise
    except Exception as error:
        names = (
            documents[0].name
            if len(documents) == 1
            else f"{documents[0].name} to {documents[-1].name}"
        )
        raise DataError(
            f"the tokenizer of {live.name} fails on {names}: {type(error).__name__}:"
            f" {first_line(error)}",
            "remove that text, or use the tokenizer that the model was trained with",
        ) from error


def _refuse_token(live: LiveModel, document: Document, token: int, tokens: int) -> None:
    text = live.tokenizer.convert_ids_to_tokens(token)
    raise DataError(
        f"{document.name} holds token {token} ({text!r}), and {live.name} has embeddings of tokens"
        f" 0 to {tokens - 1} only",
        "use the tokenizer that the model was trained with, or remove that token from the text",
    )


def _separate(
    tokenized: Iterator[tuple[Document, list[int]]], frame: Frame, room: int
) -> Iterator[_Context]:
    number = 0
    for document, ids in tokenized:
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            yield _context(number, part, [document.id] * len(part), document, frame)
            number += 1


def _packed(
    tokenized: Iterator[tuple[Document, list[int]]], frame: Frame, room: int
) -> Iterator[_Context]:
    number, ids, owners, first = 0, [], [], None
    assert frame.separator is not None, "check_context has refused a tokenizer without one"
    for document, document_ids in tokenized:
        for token in (*document_ids, frame.separator):
            first = first or document
            ids.append(token)
            owners.append(document.id)
            if len(ids) == room:
                yield _context(number, ids, owners, first, frame)
                number, ids, owners, first = number + 1, [], [], None
    if first is not None:
        yield _context(number, ids, owners, first, frame)


def _context(
    number: int, ids: list[int], owners: list[int], document: Document, frame: Frame
) -> _Context:
    return _Context(
        number=number,
        ids=frame.prefix + ids + frame.suffix,
        kinds=frame.kinds(ids),
        doc_ids=[owners[0]] * len(frame.prefix) + owners + [owners[-1]] * len(frame.suffix),
        name=document.name,
        label=document.label,
    )


def _grouped(contexts: Iterator[_Context], batch: int, padded: bool) -> Iterator[list[_Context]]:
    while window := list(islice(contexts, SORT_WINDOW * batch)):
        window.sort(key=lambda context: len(context.ids))
        groups = [window]
        if not padded:  # a group per length
            groups = [list(group) for _, group in groupby(window, key=lambda c: len(c.ids))]
        for group in groups:
            for start in range(0, len(group), batch):
                yield group[start : start + batch]


def _text_batch(group: list[_Context], pad: int) -> ContextBatch:
    longest = max(len(context.ids) for context in group)

    def padded(rows: list[list[int]], fill: int | None, dtype: torch.dtype) -> Tensor:
        return torch.tensor(
            [row + [row[-1] if fill is None else fill] * (longest - len(row)) for row in rows],
            dtype=dtype,
        )

    kind_BT = padded([context.kinds for context in group], PositionKind.PADDING, torch.int8)
    return ContextBatch(
        inputs={
            "input_ids": padded([context.ids for context in group], pad, torch.int64),
            "attention_mask": (kind_BT != PositionKind.PADDING).long(),
        },
        example_id=torch.tensor([context.number for context in group]),
        doc_id_BT=padded([context.doc_ids for context in group], None, torch.int64),
        kind_BT=kind_BT,
        position_BT=torch.arange(longest, dtype=torch.int32).expand(len(group), -1),
        token_ids=[context.ids for context in group],
        refs=[context.name for context in group],
        labels=[context.label for context in group],
    )


# -- images ----------------------------------------------------------------------------------------


def image_batches(
    live: LiveModel, data: Documents, *, batch: int, start_batch: int = 0
) -> Iterator[ContextBatch]:
    """See `batches`. Skipped images are not opened."""
    number = start_batch * batch
    documents = data.documents(start=number)
    while group := list(islice(documents, batch)):
        yield _image_batch(live, group, number)
        number += len(group)


def _image_batch(live: LiveModel, group: list[Document], number: int) -> ContextBatch:
    layout = live.image_tokens
    assert layout is not None, "an image model has an image layout"
    # Pixels, through the model's processor.
    mode = "L" if layout.channels == 1 else "RGB"
    images = [document.image for document in group if document.image is not None]
    assert len(images) == len(group), "an image document has an image"
    pixels_BChw = prepared([image.convert(mode) for image in images], live.processor)
    if tuple(pixels_BChw.shape[-2:]) != layout.size:
        raise DataError(
            f"image {group[0].name} is prepared to {tuple(pixels_BChw.shape[-2:])} pixels, not the"
            f" {layout.size} of {live.name}",
            "the image processor must resize to one size; crop or resize the images first",
        )
    # The layout, the same for all images.
    kinds = [PositionKind.CLS] * layout.has_cls + [PositionKind.REGISTER] * layout.registers
    positions = [CLS_POSITION] * layout.has_cls + [
        FIRST_REGISTER_POSITION - i for i in range(layout.registers)
    ]
    patches = layout.grid[0] * layout.grid[1]
    kinds += [PositionKind.CONTENT] * patches
    positions += range(patches)
    return ContextBatch(
        inputs={"pixel_values": pixels_BChw},
        example_id=torch.arange(number, number + len(group)),
        doc_id_BT=torch.tensor([document.id for document in group])[:, None].expand(
            -1, layout.count
        ),
        kind_BT=torch.tensor(kinds, dtype=torch.int8).expand(len(group), -1),
        position_BT=torch.tensor(positions, dtype=torch.int32).expand(len(group), -1),
        token_ids=[[] for _ in group],
        refs=[document.name for document in group],
        labels=[document.label for document in group],
        grid=layout.grid,
    )

"""The special tokens that a text model's tokenizer puts around a text, the length limit of the
model, and the size of its embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.models import LiveModel
from saekit.harvesting.reading import first_line, model_reading

_POSITION_TABLES = (
    "wpe",
    "position_embeddings",
    "position_embedding",
    "embed_positions",
    "positions_embed",
)
# Texts for finding special tokens; if they fail, tokens of the vocabulary.
_PROBES = ("a", "the", "1")
_TRIES = 64  # tokens of the vocabulary


class PositionKind(IntEnum):
    """What a position of a batch holds. Padding is determined by the attention mask, never by the
    token id: GPT-2 pads with its EOS."""

    CONTENT = 0
    BOS = 1
    EOS = 2  # also SEP
    CLS = 3
    REGISTER = 4
    PADDING = 5
    # any other token that the tokenizer adds around a text; also a pad token in the text itself
    SPECIAL = 6


@dataclass(frozen=True)
class Frame:
    """The special tokens around each context, and the one between packed documents."""

    prefix: list[int]
    suffix: list[int]
    separator: int | None
    opening: dict[int | None, PositionKind]  # token id -> kind before a text
    # the same inside and after it; they differ if BOS and EOS are one token (GPT-2)
    closing: dict[int | None, PositionKind]

    def kinds(self, ids: list[int]) -> list[int]:
        """PositionKind of every token of prefix + ids + suffix. A BOS or EOS in the text itself is
        not content."""
        before = [self.opening.get(token, PositionKind.SPECIAL) for token in self.prefix]
        inside = [self.closing.get(token, PositionKind.CONTENT) for token in ids]
        after = [self.closing.get(token, PositionKind.SPECIAL) for token in self.suffix]
        return [int(kind) for kind in before + inside + after]


def check_context(live: LiveModel, ctx: int, pack: bool) -> tuple[Frame, int]:
    """(special tokens, room for text in a context). Raises UsageError when there is no room,
    DataError beyond the model's length limit."""
    # Length.
    frame = special_tokens(live)
    room = ctx - len(frame.prefix) - len(frame.suffix)
    if room < 1:
        raise UsageError(
            f"{opt('ctx', ctx)} leaves no room for text beside {ctx - room} special tokens",
            opt("ctx", 128),
        )
    limit = position_limit(live)
    if limit is not None and ctx > limit:
        raise DataError(
            f"{opt('ctx', ctx)}: {live.name} takes at most {limit} tokens", opt("ctx", limit)
        )
    if pack and frame.separator is None:
        raise DataError(
            f"{opt('pack', True)}: the tokenizer of {live.name} has no end-of-text token",
            f"drop {opt('pack')}",
        )
    # Special tokens that the model knows.
    tokens = embedded_tokens(live)
    around = [*frame.prefix, *frame.suffix, *([frame.separator] if pack else [])]
    if tokens is not None and around and max(around) >= tokens:
        text = live.tokenizer.convert_ids_to_tokens(max(around))
        raise DataError(
            f"the tokenizer of {live.name} adds token {max(around)} ({text!r}), and the model knows"
            f" tokens 0 to {tokens - 1} only",
            "put the tokenizer that the model was trained with beside its weights",
        )
    return frame, room


def embedded_tokens(live: LiveModel) -> int | None:
    """Rows of the input embedding; None when the model does not have one."""
    tower: Any = live.module.get_submodule(live.tower)
    try:
        table = tower.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return _rows(table)


def _rows(table: Any) -> int | None:
    """The rows of an embedding. The weight of a quantized one has another shape than its
    num_embeddings."""
    weight = getattr(table, "weight", None)
    return getattr(table, "num_embeddings", None) or (None if weight is None else len(weight))


def position_limit(live: LiveModel) -> int | None:
    """The most tokens of a context: by the model's position tables and its config; None for no
    limit (-1 in some configs)."""
    tower = live.module.get_submodule(live.tower)
    config: Any = tower.config if hasattr(tower, "config") else live.module.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit] if isinstance(limit, int) and limit > 0 else []
    for path, table in tower.named_modules():
        if path.rsplit(".", 1)[-1] in _POSITION_TABLES and (rows := _rows(table)):
            # RoBERTa's positions start after the padding index (514 rows are for 512 tokens), those
            # of OPT and BART at `offset`.
            padding = getattr(table, "padding_idx", None)
            limits.append(
                rows - (getattr(table, "offset", 0) or (0 if padding is None else padding + 1))
            )
    return min(limits, default=None)


def special_tokens(live: LiveModel) -> Frame:
    """The tokens that the tokenizer puts around a text; for causal models also a BOS that it has
    but does not add.

    The first position of a decoder is an attention sink: in SmolLM2-135M its norm is 25,000 from
    block 11 on, 175 times the median, for any token. With a BOS there, it is not a content token.
    """
    tokenizer = live.tokenizer
    # Damaged settings raise when they are used.
    with model_reading("tokenizer", live.name, live.name):
        prefix, suffix = _around(tokenizer, live.name)
        if live.kind == "causal_lm" and tokenizer.bos_token_id is not None and not prefix:
            prefix = [tokenizer.bos_token_id]
        is_encoder = live.kind == "text_encoder"
        opening = (
            {tokenizer.cls_token_id: PositionKind.CLS}
            if is_encoder
            else {tokenizer.bos_token_id: PositionKind.BOS}
        )
        closing = {
            tokenizer.eos_token_id: PositionKind.EOS,
            tokenizer.sep_token_id: PositionKind.EOS,
        }
        separator = (
            tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        )
        # If a tokenizer pads with its unknown token, that token also stands for unknown words,
        # which are content.
        padding = (
            {}
            if tokenizer.pad_token_id == tokenizer.unk_token_id
            else {tokenizer.pad_token_id: PositionKind.SPECIAL}
        )
        return Frame(
            prefix,
            suffix,
            separator,
            opening=padding | closing | opening,
            closing=padding | opening | closing,
        )


def _around(tokenizer: Any, name: str) -> tuple[list[int], list[int]]:
    """(tokens before a text, tokens after it), from a text whose own tokens can be distinguished
    from them."""
    special, fault = set(tokenizer.all_special_ids), None
    for text in _probe_texts(tokenizer):
        try:
            alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            full = list(tokenizer(text)["input_ids"])
        # a tokenizer without an unknown token fails on words that it does not know
        except Exception as error:
            fault = error
            continue
        places = [i for i in range(len(full) - len(alone) + 1) if full[i : i + len(alone)] == alone]
        if alone and len(places) == 1 and not special & set(alone):
            return full[: places[0]], full[places[0] + len(alone) :]
    why = f": {type(fault).__name__}: {first_line(fault)}" if fault else ""
    raise DataError(
        f"the special tokens of the tokenizer of {name} cannot be determined{why}",
        "put the tokenizer that the model was trained with beside its weights",
    ) from fault


def _probe_texts(tokenizer: Any) -> Iterator[str]:
    yield from _PROBES
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    for i in ids[:: max(len(ids) // _TRIES, 1)]:
        token = tokenizer.convert_ids_to_tokens(i)
        if token is not None and (text := tokenizer.convert_tokens_to_string([token])).strip():
            yield text

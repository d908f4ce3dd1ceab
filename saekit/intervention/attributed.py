"""What an attribution explains: an input of a model, and a logit or a difference of two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.classifiers import class_names, class_number, load_classifier, no_head
from saekit.harvesting.models import LiveModel, assemble, load_model
from saekit.harvesting.named_pictures import named_picture
from saekit.interop.opening import open_checkpoint
from saekit.models.autoencoder import Autoencoder

Versus = str | tuple[str | int, str | int] | None
Where = str | int | slice
TEXT = "all, a token index, or FROM:TO of these"
IMAGE = "all, cls, patches"
_SLICE = re.compile(r"([0-9]{0,6}):([0-9]{0,6})")


@dataclass(frozen=True)
class Attributed:
    live: LiveModel
    inputs: Mapping[str, torch.Tensor]
    """Of one example."""
    tokens: list[str] | None
    """Of a text."""
    name: str
    outputs: tuple[int, ...]
    """The token or class whose logit is explained; of two, the second is subtracted."""

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) of the logits (B,T,V), of which the last position counts, or (B,V)."""
        logits_BV = logits[:, -1] if logits.ndim == 3 else logits
        first, *second = self.outputs
        return logits_BV[:, first] - sum(logits_BV[:, number] for number in second)

    def place(self, position: int) -> str | None:
        """The token of a text; the patch of an image in words, None for other tokens of it."""
        if self.tokens is not None:
            return self.tokens[position]
        layout = self.live.image_tokens
        if layout is None:
            return None
        if position == 0 and layout.has_cls:
            return "class token"
        patch = position - (layout.count - layout.grid[0] * layout.grid[1])
        if patch < 0:
            return None
        row, column = divmod(patch, layout.grid[1])
        return f"row {row}, column {column}"

    def chosen(self, where: Where, count: int) -> list[int]:
        """The positions, of `count`, that `where` names. Raises UsageError for what it cannot name,
        and where it names none."""
        names = TEXT if self.tokens is not None else IMAGE
        where = _as_slice(where) if self.tokens is not None and isinstance(where, str) else where
        positions: list[int] | None = None
        if where == "all":
            positions = list(range(count))
        elif self.tokens is None and (layout := self.live.image_tokens) is not None:
            first = count - layout.grid[0] * layout.grid[1]
            chosen = {"cls": range(int(layout.has_cls)), "patches": range(first, count)}
            positions = list(chosen.get(str(where), ())) or None
        elif isinstance(where, int) and not isinstance(where, bool):
            positions = list(range(count))[where : (where + 1) or None]
        elif isinstance(where, slice):
            positions = list(range(count))[where]
        if positions is None:
            raise UsageError(f"{opt('positions', where)} is not one of {names}")
        if not positions:
            raise UsageError(f"{opt('positions', where)}: the prompt has {count} tokens")
        return positions


def attributed_text(
    source: Any, live: Any, processor: Any, prompt: str, target: str | int | None, versus: Versus
) -> Attributed:
    """The next token after a prompt. Raises UsageError, DataError, MissingError."""
    model = _model(source, live, processor, "causal_lm", load_model)
    if model.output_head is None:
        raise DataError(f"{model.name} has no logits to explain", "give a causal language model")
    ids = model.tokenizer(prompt)["input_ids"]
    if not len(ids):
        raise DataError("the prompt holds no token", "give a longer one")
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    decode = model.tokenizer.decode

    def number(token: str | int) -> int:
        if isinstance(token, int):
            return token
        numbers = model.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(numbers) != 1:
            parts = ", ".join(repr(decode([part])) for part in numbers)
            raise DataError(
                f"{token!r} is {len(numbers)} tokens: {parts}",
                "give one token, most words with a leading space",
            )
        return numbers[0]

    outputs = _outputs(target, versus, number)
    names = [repr(decode([output])) for output in outputs]
    texts = [decode([token]) for token in ids]
    return Attributed(model, inputs, texts, f"logit of {' less '.join(names)}", outputs)


def attributed_image(
    source: Any,
    live: Any,
    processor: Any,
    image: str | Path,
    target: str | int | None,
    versus: Versus,
) -> Attributed:
    """The class of an image. Raises UsageError, DataError, MissingError."""
    model = _model(source, live, processor, "vision", load_classifier)
    if "ForImageClassification" not in type(model.module).__name__:
        raise no_head(model.name)
    if model.processor is None:
        raise UsageError(f"{model.name} has no image processor", f"give {opt('processor')}")
    picture = named_picture(image)
    pixels = model.processor(images=picture, return_tensors="pt")["pixel_values"]
    names = class_names(model)

    outputs = _outputs(target, versus, lambda label: class_number(label, model))
    name = f"logit of {' less '.join(repr(names[output]) for output in outputs)}"
    return Attributed(model, {"pixel_values": pixels}, None, name, outputs)


def _as_slice(where: str) -> Where:
    """ "3" and "1:5" as an index and a slice; other texts as they are."""
    if where.isdecimal():
        return int(where)
    match = _SLICE.fullmatch(where)
    return where if match is None else slice(*(int(end) if end else None for end in match.groups()))


def _outputs(
    target: str | int | None, versus: Versus, number: Callable[[str | int], int]
) -> tuple[int, ...]:
    if target is not None:
        return (number(target),)
    assert versus is not None
    pair = tuple(versus.split(",")) if isinstance(versus, str) else tuple(versus)
    if len(pair) != 2:
        raise UsageError(f"{opt('versus')} is two tokens with one comma between them")
    return number(pair[0]), number(pair[1])


def _model(
    source: Any, live: Any, processor: Any, kind: Any, load: Callable[[str], LiveModel]
) -> LiveModel:
    """The caller's model, or that of a checkpoint's training."""
    if isinstance(live, LiveModel):
        return live
    if live is not None:
        return assemble(live, kind, type(live).__name__, None, processor)
    name = None
    if not isinstance(source, Autoencoder):
        name = open_checkpoint(source).config["spec"].get("model")
    if not name:
        raise UsageError(
            "the checkpoint does not say which model it belongs to", f"give {opt('live')}"
        )
    return load(name)

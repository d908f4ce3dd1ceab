"""Which positions of a forward pass an edit applies to.

A pass sees columns: column c of a text is its c-th token including padding, counted over the whole
sequence, so that with a KV cache a decoded token has the column that it would have without one.
Selections are True (every position), False (none) or a mask (B,T), so that the ordinary cases need
no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from saekit.errors import DataError, UsageError, check_choice, opt

Name = Literal["all", "prompt", "generated", "last", "cls", "patches"]
Positions = Name | int | slice | torch.Tensor
Examples = int | slice | Sequence[int] | torch.Tensor
Selection = bool | torch.Tensor

TEXT_NAMES = ("all", "prompt", "generated", "last")
IMAGE_NAMES = ("all", "cls", "patches")


@dataclass(eq=False)
class Frame:
    """What is known about one forward pass: B rows of `batch`, T `tokens`; 0 where only the states
    at the hook say it."""

    batch: int
    tokens: int
    past: int = 0
    """Columns before this pass."""
    prompt: int = 0
    """Columns of the prompt; later ones were generated."""
    examples: int = 0
    """Examples that the caller gave; `batch` is a multiple of it in beam search."""
    real_BT: torch.Tensor | None = None
    """bool, False at padding; None: there is none."""
    mask: torch.Tensor | None = None
    """The attention mask (B, past+T) where the pass has one of this form."""
    position_ids: torch.Tensor | None = None
    is_image: bool = False
    has_cls: bool = False
    """Whether the first token of an image is its class token."""
    grid: tuple[int, int] | None = None
    """Patches (H, W) of an image."""

    @property
    def end(self) -> int:
        return self.past + self.tokens

    def columns(self, device: torch.device) -> torch.Tensor:
        """(T,)."""
        return torch.arange(self.past, self.end, device=device)

    def token_indices(self, device: torch.device) -> torch.Tensor:
        """(B or 1,T): the number of real tokens before each token."""
        if self.mask is not None:
            return (self.mask.to(device).long().cumsum(1) - 1)[:, self.past : self.end]
        ids = self.position_ids
        if ids is not None and ids.ndim == 2 and ids.shape[1] == self.tokens:
            return ids.to(device)
        return self.columns(device)[None]


def checked(positions: Positions, is_image: bool) -> Positions:
    """The same. Raises UsageError for what cannot be positions of this kind of model."""
    if isinstance(positions, str):
        check_choice("positions", positions, IMAGE_NAMES if is_image else TEXT_NAMES)
    elif isinstance(positions, torch.Tensor):
        if positions.dtype != torch.bool or positions.ndim not in (2, 3):
            raise UsageError(
                f"{opt('positions')} is a tensor {tuple(positions.shape)} of {positions.dtype}, not"
                " a mask",
                "give a bool tensor (B,T), or for images (H,W) or (B,H,W)",
            )
    elif is_image or isinstance(positions, bool) or not isinstance(positions, int | slice):
        names = ", ".join(IMAGE_NAMES if is_image else TEXT_NAMES)
        raise UsageError(
            f"{opt('positions')} is {type(positions).__name__}",
            f"give one of {names}, or a mask" + ("" if is_image else ", a token index or a slice"),
        )
    return positions


def select(frame: Frame, positions: Positions, device: torch.device) -> Selection:
    """The selected positions of a pass, padding included. Raises DataError where the mask does not
    fit the pass, or the image has no class token or no grid."""
    if isinstance(positions, torch.Tensor):
        return _masked(frame, positions.to(device))
    if isinstance(positions, int | slice):
        return _indexed(frame, positions, device)
    if positions == "all":
        return True
    if frame.is_image:
        return _image_tokens(frame, positions, device)
    # Texts: most passes lie on one side of the prompt's end.
    if positions == "prompt":
        if frame.end <= frame.prompt or frame.past >= frame.prompt:
            return frame.end <= frame.prompt
        return _rows(frame, frame.columns(device) < frame.prompt)
    if positions == "generated":
        if frame.end <= frame.prompt or frame.past >= frame.prompt:
            return frame.past >= frame.prompt
        return _rows(frame, frame.columns(device) >= frame.prompt)
    return _last(frame, device)


def select_examples(frame: Frame, examples: Examples | None, device: torch.device) -> Selection:
    """True, or a mask (B,1). Raises DataError for an example that the batch does not have."""
    if examples is None:
        return True
    chosen = torch.zeros(frame.examples, dtype=torch.bool, device=device)
    index = torch.as_tensor(examples) if isinstance(examples, Sequence) else examples
    try:
        chosen[index.to(device) if isinstance(index, torch.Tensor) else index] = True
    except IndexError as error:
        raise DataError(
            f"{opt('examples')}: the batch has {frame.examples} examples ({error})"
        ) from None
    return expanded(chosen, frame.batch, "examples")[:, None]


def expanded(value: torch.Tensor, batch: int, what: str) -> torch.Tensor:
    """A value per example (n, ...) for the rows of the pass (B, ...): each example is repeated, as
    generation expands it for beams and several returned sequences. Raises DataError."""
    if len(value) == batch:
        return value
    if len(value) == 0 or batch % len(value):
        raise DataError(f"{what} is for {len(value)} examples, and the pass has {batch} rows")
    return value.repeat_interleave(batch // len(value), 0)


def both(a: Selection, b: Selection) -> Selection:
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return a & b


def either(a: Selection, b: Selection) -> Selection:
    if isinstance(a, bool):
        return True if a else b
    if isinstance(b, bool):
        return True if b else a
    return a | b


def _rows(frame: Frame, chosen: torch.Tensor) -> torch.Tensor:
    """(T,) or (1,T) or (B,T) -> (B,T)."""
    return chosen.expand(frame.batch, frame.tokens)


def _masked(frame: Frame, mask: torch.Tensor) -> torch.Tensor:
    if frame.is_image and (mask.ndim == 3 or mask.shape == frame.grid):
        grid_BHW = mask[None] if mask.ndim == 2 else mask
        if frame.grid is None or grid_BHW.shape[1:] != frame.grid:
            raise DataError(
                f"the mask is for a grid of {tuple(grid_BHW.shape[1:])} patches, and the image has"
                f" {frame.grid}"
            )
        chosen = mask.new_zeros(len(grid_BHW), frame.tokens)
        chosen[:, _first_patch(frame) :] = grid_BHW.flatten(1)
        return expanded(chosen, frame.batch, "the mask")
    if mask.ndim != 2 or (frame.is_image and mask.shape[1] != frame.tokens):
        raise DataError(
            f"the mask has the shape {tuple(mask.shape)}, and the pass has {frame.tokens} tokens"
        )
    # a sequence that grows past the mask is not selected there
    part = mask[:, frame.past : frame.end]
    missing = frame.tokens - part.shape[1]
    part = torch.nn.functional.pad(part, (0, missing)) if missing else part
    return expanded(part, frame.batch, "the mask")


def _indexed(frame: Frame, positions: int | slice, device: torch.device) -> Selection:
    index = frame.token_indices(device)
    if isinstance(positions, int):
        return _rows(frame, index == positions)
    start, stop, step = positions.start or 0, positions.stop, positions.step or 1
    if min(start, step - 1, 0 if stop is None else stop) < 0:
        raise UsageError(
            f"{opt('positions')}: {positions} counts from an end that a growing text does not have",
            'give a slice from the beginning, or "last"',
        )
    chosen = (index >= start) & ((index - start) % step == 0)
    return _rows(frame, chosen if stop is None else chosen & (index < stop))


def _last(frame: Frame, device: torch.device) -> Selection:
    """The last token of the prompt, and every token after it."""
    if frame.past >= frame.prompt:
        return True
    columns = frame.columns(device)
    in_prompt = columns < frame.prompt
    if frame.real_BT is not None:
        place = torch.where(frame.real_BT.to(device) & in_prompt, columns, -1)
        last = (place == place.amax(1, keepdim=True)) & (place >= 0)
    else:
        last = columns == frame.prompt - 1
    return _rows(frame, last | ~in_prompt)


def _image_tokens(frame: Frame, positions: str, device: torch.device) -> torch.Tensor:
    chosen = torch.zeros(frame.tokens, dtype=torch.bool, device=device)
    if positions == "cls":
        if not frame.has_cls:
            raise DataError("the model has no class token", f"{opt('positions', 'patches')}")
        chosen[0] = True
    else:
        chosen[_first_patch(frame) :] = True
    return _rows(frame, chosen)


def _first_patch(frame: Frame) -> int:
    """Class token and registers come first."""
    patches = 0 if frame.grid is None else frame.grid[0] * frame.grid[1]
    if not 0 < patches <= frame.tokens:
        raise DataError(
            f"the {frame.tokens} tokens at this hook are not one per patch of a grid {frame.grid}",
            "give a mask (B,T)",
        )
    return frame.tokens - patches

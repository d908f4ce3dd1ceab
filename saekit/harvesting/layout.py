"""That an image model's tokens are what its parameters say: seen from which tokens change with
which pixels, at the first block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.errors import DataError
from saekit.harvesting.hooks import block_list, capture

if TYPE_CHECKING:
    from saekit.harvesting.models import LiveModel


def check_layout(live: LiveModel) -> None:
    """One forward pass of three images to the first block: raise DataError unless class token and
    registers stand in front and see no pixel, all patches see theirs, and a changed patch changes
    most at its place, row by row.

    A model without a list of blocks, or one whose first block gives another number of tokens, is
    left to the check of the hook itself.
    """
    tokens, blocks = live.image_tokens, block_list(live.module)
    if tokens is None or blocks is None:
        return
    (height, width), (_, columns) = tokens.size, tokens.grid
    first = torch.randn(tokens.channels, height, width, generator=torch.Generator().manual_seed(0))
    one = first.clone()
    # the last patch of the first row
    one[:, : height // tokens.grid[0], (columns - 1) * (width // columns) :] += 4.0
    hook = f"{blocks}.0:in"
    with torch.inference_mode(), capture(live.module, hook, stop=True) as states:
        live.forward({"pixel_values": torch.stack([first, -first, one])})
    state_BTD = states[hook].float()
    if state_BTD.shape[1] != tokens.count:
        return
    front = int(tokens.has_cls) + tokens.registers
    seen_T = (state_BTD[0] - state_BTD[1]).abs().amax(1) > 0
    place = int((state_BTD[0] - state_BTD[2]).abs().sum(1).argmax())
    if seen_T[:front].any() or not seen_T[front:].all() or place != front + columns - 1:
        raise DataError(
            f"the tokens of {live.name} are not {tokens.account()} in this order:"
            f" {int(seen_T.sum())} of {tokens.count} tokens depend on the image, and patch"
            f" {columns - 1} is token {place}",
            "choose a ViT, CLIP, SigLIP or DINO model, whose patches follow the class token row"
            " by row",
        )

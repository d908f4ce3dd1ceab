"""Check the layout of an image model's tokens: which tokens depend on which pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.errors import DataError
from saekit.harvesting.hooks import block_list, capture

if TYPE_CHECKING:
    from saekit.harvesting.models import LiveModel


def check_layout(live: LiveModel) -> None:
    """One forward pass of three images to the first block: raise DataError unless class token and
    registers come first and depend on no pixel, all patches depend on their pixels, and a changed
    patch changes most at its own token, row by row.

    Models without a list of blocks, or whose first block has another number of tokens, are left to
    the check of the hook.
    """
    tokens, blocks = live.image_tokens, block_list(live.module)
    if tokens is None or blocks is None:
        return
    (height, width), (_, columns) = tokens.size, tokens.grid
    # An image, its negative, and the image with another last patch in the first row of patches.
    image = torch.randn(tokens.channels, height, width, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[:, : height // tokens.grid[0], (columns - 1) * (width // columns) :] += 4.0
    hook = f"{blocks}.0:in"
    with torch.inference_mode(), capture(live.module, hook, stop=True) as states:
        live.forward({"pixel_values": torch.stack([image, -image, changed])})
    state_BTD = states[hook].float()
    if state_BTD.shape[1] != tokens.count:
        return
    # Which tokens differ.
    front = int(tokens.has_cls) + tokens.registers
    depends_T = (state_BTD[0] - state_BTD[1]).abs().amax(1) > 0
    place = int((state_BTD[0] - state_BTD[2]).abs().sum(1).argmax())
    if depends_T[:front].any() or not depends_T[front:].all() or place != front + columns - 1:
        raise DataError(
            f"the tokens of {live.name} are not {tokens.account()} in this order:"
            f" {int(depends_T.sum())} of {tokens.count} tokens depend on the image, and patch"
            f" {columns - 1} is token {place}",
            "choose a ViT, CLIP, SigLIP or DINO model, whose patches follow the class token row"
            " by row",
        )

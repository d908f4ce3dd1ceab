"""Where the parts of a drawing are, learned from pictures of which only the parts are known.

    places = Places()                    # (B,3,72,72) -> (B,T,P), log-probabilities
    loss = places.loss(x_BCHW, emoji)    # of learning them
    p_BTP = places.targets(x_BCHW, emoji)

A small convolutional network sees 17x17 pixels around each patch and says which part is there, one
or none. A picture shows a part when any patch does (multiple instances, by noisy or: Maron and
Lozano-Perez 1998). As a patch says one part at most, the mouth of a face cannot stand for its eyes,
nor the window of a car for its wheels. The ViT's patches then learn to say the same, which they see
at once and in the whole picture (train.Names).

No one marked a place: only saekit.embedded.openmoji.parts is known.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from saekit.embedded.openmoji.parts import UNCLEAR, VISIBLE, parts
from saekit.embedded.openmoji.table import table

CHANNELS = (32, 64, 96, 96)
PATCH = 8
RATE = 2e-3
BLANK = 0.02  # a patch whose pixels differ less shows nothing
IMPOSSIBLE = -20.0  # log-probability
LEAST, MOST = 0.05, 0.95  # of the targets: see `targets`


@functools.lru_cache(maxsize=1)
def shown() -> tuple[Tensor, Tensor]:
    """Whether an emoji's drawing shows each part, and whether that is clear (E,P), 0 or 1."""
    known = [[parts()[part].get(emoji.name) for part in parts()] for emoji in table()]
    visible = [[seen == VISIBLE for seen in each] for each in known]
    clear = [[seen != UNCLEAR for seen in each] for each in known]
    return torch.tensor(visible).float(), torch.tensor(clear).float()


def with_parts(emoji: list[int], count: int, generator: torch.Generator) -> list[int]:
    """`count` of these emoji: a part each at random, then one of the emoji that show it. Of all
    emoji, 3 % show a wheel and 2 % a leaf."""
    visible_EP = shown()[0][emoji]
    drawn = []
    for part in torch.randint(visible_EP.shape[1], (count,), generator=generator).tolist():
        having = visible_EP[:, part].nonzero().flatten()
        if len(having):
            chosen = int(torch.randint(len(having), (1,), generator=generator))
            drawn.append(emoji[int(having[chosen])])
    return drawn


def other_colors(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Every second picture with its red, green and blue in another order, every second mirrored:
    a wheel has any color."""
    x_BCHW = x_BCHW.clone()
    colored, mirrored = torch.rand(2, len(x_BCHW), generator=generator) < 0.5
    for picture in colored.nonzero().flatten().tolist():
        x_BCHW[picture] = x_BCHW[picture][torch.randperm(3, generator=generator)]
    x_BCHW[mirrored] = x_BCHW[mirrored].flip(-1)
    return x_BCHW


def log_odds(logp_BTP: Tensor) -> Tensor:
    """Of some patch showing a part, when patches are independent (B,P)."""
    none_BP = torch.log1p(-logp_BTP.exp().clamp(max=1 - 1e-6)).sum(1)
    return torch.log(-torch.expm1(none_BP) + 1e-9) - none_BP


class Places(nn.Module):
    """(B,3,72,72) to the log-probability that a patch shows each part (B,T,P)."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = CHANNELS
        self.net = nn.Sequential(
            nn.Conv2d(3, first, 5, 2, 2), nn.GELU(),
            nn.Conv2d(first, second, 3, 2, 1), nn.GELU(),
            nn.Conv2d(second, third, 1), nn.GELU(),
            nn.Conv2d(third, fourth, 3, 2, 1), nn.GELU(),
            nn.Conv2d(fourth, len(parts()) + 1, 1),
        )  # fmt: skip
        bias = self.net[-1].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias, 0.0)
        nn.init.constant_(bias[-1:], 7.0)  # at first, no part

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pixels_BTCP = rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) c (p q)", p=PATCH, q=PATCH)
        blank_BT = (pixels_BTCP.amax(-1) - pixels_BTCP.amin(-1)).amax(-1) < BLANK
        # Strides put an output on a patch's first pixel; moved by half a patch, on its middle.
        half = PATCH // 2
        z_BTP = rearrange(self.net(x_BCHW.roll((-half, -half), (2, 3))), "b p h w -> b (h w) p")
        logp_BTP = z_BTP.float().log_softmax(-1)[..., :-1]
        return logp_BTP.masked_fill(blank_BT[..., None], IMPOSSIBLE)

    def loss(self, x_BCHW: Tensor, emoji: list[int]) -> Tensor:
        """Whether the picture shows a part, over the parts of which that is clear."""
        visible_EP, clear_EP = shown()
        loss_BP = nnf.binary_cross_entropy_with_logits(
            log_odds(self(x_BCHW)), visible_EP[emoji], reduction="none"
        )
        return (loss_BP * clear_EP[emoji]).sum() / len(emoji)

    @torch.no_grad()
    def targets(self, x_BCHW: Tensor, emoji: list[int]) -> Tensor:
        """Probabilities (B,T,P): none of a part that the emoji does not show; of one that it shows,
        scaled so that the most likely patch has MOST (from LEAST up)."""
        p_BTP = self(x_BCHW).exp()
        scaled_BTP = p_BTP / p_BTP.amax(1, keepdim=True).clamp(min=LEAST) * MOST
        return scaled_BTP * shown()[0][emoji][:, None]

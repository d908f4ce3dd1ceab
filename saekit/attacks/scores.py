"""What an attack raises: the loss of a classifier at a class, or the activation of a latent.

Shapes: B images, C channels, h w pixels, T positions in the scope, D width, F latents, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from saekit.attacks.pixels import PixelScale
from saekit.errors import UsageError, opt
from saekit.harvesting.hooks import capture
from saekit.harvesting.models import LiveModel
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_rows
from saekit.models.sae.dictionary import Dictionary
from saekit.types import Scope

Logits = Callable[[torch.Tensor], torch.Tensor]
"""x (B,C,h,w) -> (B,V); an nn.Module is one."""
Direction = Literal["raise", "silence"]


@dataclass(frozen=True)
class ClassScore:
    """The cross-entropy of a class, in nats: an untargeted attack raises that of the true class; a
    targeted one lowers that of another, so its score is the negative."""

    logits: Logits
    classes_B: torch.Tensor
    """int64: the true class, or the target."""
    targeted: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        loss_B = cross_entropy(self.logits(x), self.classes_B, reduction="none")
        return -loss_B if self.targeted else loss_B


class LatentScore:
    """The pre-activation of a latent: the largest over the positions is raised; the sum of those
    above 0 is lowered, so that the latent falls silent everywhere.

    A latent that is not active has no gradient through the code, whose competition or threshold is
    a step. So the gradient is that of the encoder's value before it; `activations` are the code's.
    Where the code is the k largest values of a row, what the latent lacks to be one of them counts
    once more, and what it has above the next one is silenced: others count too. A model with a
    dense code has no value before it, and its code is differentiated.
    """

    def __init__(
        self,
        live: LiveModel,
        scale: PixelScale,
        model: Autoencoder,
        hook: str,
        latent: int,
        scope: Scope = "content",
        direction: Direction = "raise",
    ) -> None:
        """Raises UsageError for a latent that the dictionary does not have."""
        if not 0 <= latent < model.latents:
            raise UsageError(
                f"{opt('latent', latent)} is not one of the {model.latents:,} latents",
                "latents count from 0",
            )
        self.model, self.latent, self.direction = model, latent, direction
        self.states = States(live, scale, hook, scope)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x_BTD = self.states(x)
        pre_BT = self._values(x_BTD, self.latent)
        if isinstance(self.model, Dictionary) and self.model.largest_of_rows:
            rank = self.model.config.k + (self.direction == "silence")
            every_BTF = self._values(x_BTD, slice(None))
            rival_BT = every_BTF.topk(min(rank, self.model.latents)).values[..., -1]
            if self.direction == "raise":
                pre_BT = pre_BT + (pre_BT - rival_BT).clamp_max(0)
            else:
                pre_BT = torch.minimum(pre_BT, pre_BT - rival_BT)
        return pre_BT.amax(1) if self.direction == "raise" else -pre_BT.relu().sum(1)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """(B,T)."""
        return self._values(self.states(x), self.latent)

    def _values(self, x_BTD: torch.Tensor, latents: int | slice) -> torch.Tensor:
        """(B,T) or (B,T,F): before competition and threshold."""
        model = self.model
        if not isinstance(model, Dictionary):
            return model.encode(x_BTD).to_dense()[..., latents]
        rows_ND = model.encoder_input(as_rows(x_BTD, model.d_in, model.W_enc))
        pre = rows_ND @ model.W_enc[latents].t() + model.b_enc[latents]
        if model.config.rescale_by_decoder_norm:
            pre = pre * model.decoder_norms()[latents]
        return pre.view(*x_BTD.shape[:-1], *pre.shape[1:])

    @torch.no_grad()
    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """(B,T): the values in the code."""
        code = self.model.encode(self.states(x))
        return code.to_dense()[..., self.latent]


class States:
    """The hidden states (B,T,D) of pictures at a hook, at the positions of a scope."""

    def __init__(self, live: LiveModel, scale: PixelScale, hook: str, scope: Scope) -> None:
        layout = live.image_tokens
        assert layout is not None, "a vision model"
        if scope == "cls" and not layout.has_cls:
            raise UsageError(f"{live.name} has no class token", "use a dictionary of patches")
        self.live, self.scale, self.hook = live, scale, hook
        patches = layout.grid[0] * layout.grid[1]
        first = {"content": layout.count - patches, "cls": 0, "all": 0}[scope]
        self.positions = slice(first, 1 if scope == "cls" else layout.count)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        inputs = {"pixel_values": self.scale.to_model(x)}
        with capture(self.live, self.hook, stop=True) as states:
            self.live.forward(inputs)
        return states[self.hook][:, self.positions]

"""`contextual`: a state is split into what attention predicts from the earlier states of its
context and a novel part, which a sparse code describes (Lubana et al. 2025, "Priors in Time", arXiv
2511.01836; SAELens calls it temporal).

With s = 1 / (4 D), E the encoder (W_dec^T where it is tied), r the input, and for each layer of
attention in turn

    q_t = relu(s r_t E),  c_t = q_(t-1), c_0 = 0,  p = relu(attention of q to c),
    a_t = <p_t W_dec, r_t> / (||p_t W_dec|| + 1e-6)^2,  pred += a p,  r -= a p W_dec;

then z = the k largest of relu(s r E) (all of them without k), x_hat = (z + pred) W_dec + b_dec. The
code is z. Such models are opened, not trained.

Shapes: B contexts, T positions, D width of a state, F latents, H heads, A key width of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as nnF
from einops import rearrange
from torch import nn

from saekit.errors import UsageError
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_examples
from saekit.models.codes import Code, decoded
from saekit.models.sae.input_norm import InputNorm, denormalized, normalized
from saekit.types import Output, Takes

EPS = 1e-6


@dataclass(frozen=True)
class ContextualConfig:
    d_in: int
    latents: int
    key_width: int
    """A."""
    heads: int = 8
    layers: int = 1
    """Of attention."""
    k: int = 0
    """Latents per state; 0: all that are positive."""
    tied: bool = True
    """The encoder is the decoder's transpose."""
    subtract_b_dec: bool = True
    """Of the input; where neither it is nor the encoder free, x_hat is without b_dec too."""
    input_norm: InputNorm = "none"
    """Undone on x_hat (saekit.models.sae.input_norm)."""
    input_factor: float = 1.0
    """The input is multiplied by it, and x_hat divided."""
    shape: tuple[int | None, ...] = ()
    """(T,D) of a context, with T None: it may have any length."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (None, self.d_in))
        if self.heads < 1 or self.latents % self.heads or self.key_width % self.heads:
            raise UsageError(
                f"latents = {self.latents} and key_width = {self.key_width} are not multiples of"
                f" heads = {self.heads}"
            )
        if not 0 <= self.k <= self.latents or not self.input_factor > 0:
            raise UsageError("k must be between 0 and latents, input_factor above 0")


class Attention(nn.Module):
    """Causal attention over codes (B,T,F)."""

    def __init__(self, latents: int, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = (nn.Linear(latents, key_width) for _ in range(2))
        self.value, self.out = (nn.Linear(latents, latents) for _ in range(2))

    def forward(self, target_BTF: torch.Tensor, context_BTF: torch.Tensor) -> torch.Tensor:
        projected = self.query(target_BTF), self.key(context_BTF), self.value(context_BTF)
        q, k, v = (rearrange(a, "B T (H W) -> B H T W", H=self.heads) for a in projected)
        mixed = nnF.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(rearrange(mixed, "B H T W -> B T (H W)"))


class Contextual(Autoencoder):
    takes: ClassVar[Takes] = "sequence"
    active_above: float | None = 0.0

    def __init__(self, config: ContextualConfig) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_out, self.latents = config.d_in, config.d_in, config.latents
        self.W_dec = nn.Parameter(torch.zeros(self.latents, self.d_in))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        self.W_enc = None if config.tied else nn.Parameter(torch.zeros(self.latents, self.d_in))
        self.attention = nn.ModuleList(
            Attention(self.latents, config.key_width, config.heads) for _ in range(config.layers)
        )

    def encode(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The code (..., T, F) of contexts x (..., T, D), each from its first position. Padding
        after a context, where `mask` (..., T) is False, changes nothing before it. Raises DataError
        for other shapes, dtypes or devices."""
        return self.split(x)[0]

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(novel, predicted), both (..., T, F): the code, and what attention adds to it."""
        x_BTD = as_examples(x, (None, self.d_in), self.W_dec)
        r = normalized(self.config.input_norm, x_BTD) * self.config.input_factor
        r = r - self.b_dec if self.config.subtract_b_dec else r
        # what earlier positions predict is taken out of r, layer by layer
        predicted_BTF = r.new_zeros(*r.shape[:-1], self.latents)
        for layer in self.attention:
            z = self._positive(r)
            earlier = nnF.pad(z[:, :-1], (0, 0, 1, 0))
            p = layer(z, earlier).relu()
            p_BTD = p @ self.W_dec
            length = p_BTD.norm(dim=-1, keepdim=True) + EPS
            share = (p_BTD * r).sum(-1, keepdim=True) / length.square()
            predicted_BTF = predicted_BTF + p * share
            r = r - share * p_BTD
        # the sparse code of the rest
        z = self._positive(r)
        if self.config.k:
            kept = z.topk(self.config.k, dim=-1).indices
            z = torch.zeros_like(z).scatter(-1, kept, z.gather(-1, kept))
        shape = (*x.shape[:-1], self.latents)
        return z.view(shape), predicted_BTF.view(shape)

    def _positive(self, r_BTD: torch.Tensor) -> torch.Tensor:
        W_enc_FD = self.W_dec if self.W_enc is None else self.W_enc
        return (r_BTD / (4 * self.d_in) @ W_enc_FD.T).relu()

    def decode(self, code: Code) -> torch.Tensor:
        """What a code (..., F) adds to x_hat, and b_dec: without the part that is predicted, and
        with an `input_norm` in normalized units."""
        has_bias = self.config.subtract_b_dec or not self.config.tied
        b_dec = self.b_dec if has_bias else torch.zeros_like(self.b_dec)
        return decoded(code, self.W_dec, b_dec) / self.config.input_factor

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Output:
        """x_hat (..., T, D) and the code (..., T, F) of x (..., T, D), as `encode`."""
        novel, predicted = self.split(x)
        x_hat = self.decode(novel + predicted)
        return Output(denormalized(self.config.input_norm, x_hat, x.to(x_hat.dtype)), novel)

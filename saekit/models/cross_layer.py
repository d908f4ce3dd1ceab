"""The cross-layer transcoder: one encoder per layer, whose latents write to the outputs of their
own and of every later layer (Ameisen et al. 2025, "Circuit Tracing").

    z_i = sparsity(x_i W_enc_i^T + b_enc_i),   x_hat_j = b_dec_j + sum over i <= j of z_i W_dec_ij

With a skip, x_j W_skip_j^T is added to x_hat_j. Such models are opened, not trained: published ones
hold 10,000 latents and more per layer of a whole language model.

Shapes: L layers of width D, F latents per layer; rows hold the L inputs side by side (L*D values),
codes those of the layers (L*F), x_hat the L outputs (L*D).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from saekit.errors import UsageError
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_rows
from saekit.models.codes import Code
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sparsity import VARIANTS
from saekit.types import Output


@dataclass(frozen=True)
class CrossLayerConfig:
    d_in: int
    """L*D."""
    latents: int
    """L*F."""
    layers: int
    """L."""
    sparsity: Literal["l1", "jumprelu"]
    """l1: codes are ReLU(pre); jumprelu: pre where it is above a threshold."""
    skip: bool = False
    causal: bool = True
    """Each layer writes to itself and later layers; False: to all layers."""

    def __post_init__(self) -> None:
        if self.layers < 1 or self.d_in % self.layers or self.latents % self.layers:
            raise UsageError(
                f"d_in = {self.d_in} and latents = {self.latents} are not multiples of"
                f" layers = {self.layers}"
            )

    @property
    def width(self) -> int:
        """D."""
        return self.d_in // self.layers

    def first_target(self, layer: int) -> int:
        """The first layer that this one writes to; it writes to all after that."""
        return layer if self.causal else 0

    def of_layer(self, layer: int) -> SAEConfig:
        """The config of one layer: a transcoder from its input (D) to the outputs that it writes
        to, side by side."""
        return (
            VARIANTS[self.sparsity]
            .config_class(
                d_in=self.width,
                d_out=(self.layers - self.first_target(layer)) * self.width,
                latents=self.latents // self.layers,
                sparsity=self.sparsity,
                skip=self.skip,
                decoder_norm="free",
                revive="none",
            )
            .resolved()
        )


class CrossLayerTranscoder(Autoencoder):
    """`layers[i]` is a transcoder on its own: what layer i adds to the outputs that it writes to.
    Its b_dec and W_skip are 0 but for its own output, so that x_hat is the sum of all."""

    active_above: float | None = 0.0
    layers: Sequence[SAE]

    def __init__(self, config: CrossLayerConfig) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_out, self.latents = config.d_in, config.d_in, config.latents
        layers = [SAE.for_weights(config.of_layer(layer)) for layer in range(config.layers)]
        self.layers = nn.ModuleList(layers)  # pyright: ignore[reportAttributeAccessIssue]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The codes (..., L*F) of all layers, of x (..., L*D). Raises DataError as an SAE does."""
        inputs = self._split(x, self.d_in)
        codes = [layer.encode(x_i).to_dense() for layer, x_i in zip(self.layers, inputs)]
        return torch.cat(codes, -1)

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., L*D) of codes (..., L*F), without the skip. Raises DataError for another
        width, dtype or device."""
        codes = self._split(code.to_dense(), self.latents, "the code")
        return self._summed(layer.decode(z_i) for layer, z_i in zip(self.layers, codes))

    def forward(self, x: torch.Tensor) -> Output:
        """x_hat (..., L*D) and the codes (..., L*F) of x (..., L*D)."""
        inputs = self._split(x, self.d_in)
        outputs = [layer(x_i) for layer, x_i in zip(self.layers, inputs)]
        code = torch.cat([output.code.to_dense() for output in outputs], -1)
        return Output(self._summed(output.x_hat for output in outputs), code)

    def _split(self, x: torch.Tensor, width: int, what: str = "x") -> tuple[torch.Tensor, ...]:
        """Each layer's values of rows that hold those of all layers."""
        rows = as_rows(x, width, next(self.parameters()), what).view(x.shape)
        return rows.split(width // self.config.layers, -1)

    def _summed(self, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """x_hat (..., L*D): each layer's part added to the outputs that it writes to."""
        x_hat, *later = parts  # the first layer writes to all outputs
        for layer, part in enumerate(later, 1):
            x_hat[..., self.config.first_target(layer) * self.config.width :] += part
        return x_hat

"""The pre-activations of a batch that may become active: a few entries of each row, or all of them
where that is cheaper.

Both forms have the same interface, so that a variant's formula is written once. `values` are (B,K),
ragged (n,) or (B,F); `of(p_F)` is the value of a per-latent quantity at each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from saekit_kernels import Codes, decode_entries, most_active, nested_error, preactivations
from saekit_kernels.operations import OPERATIONS, Encoded

from saekit.types import Step

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE


class SparsePre:
    def __init__(
        self, codes: Codes, values: torch.Tensor, backend: str, encoded: Encoded | None = None
    ) -> None:
        self.codes, self.values, self.backend, self.encoded = codes, values, backend, encoded
        self.rows, self.latents = len(codes), codes.F

    def of(self, p_F: torch.Tensor) -> torch.Tensor:
        return p_F[self.codes.idx.long()]

    def decode(
        self, z: torch.Tensor, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor
    ) -> torch.Tensor:
        return decode_entries(self.codes, z, W_dec_FD, b_dec_D, self.backend)

    def nested_error(
        self,
        z: torch.Tensor,
        W_dec_FD: torch.Tensor,
        b_dec_D: torch.Tensor,
        target_BD: torch.Tensor,
        level: torch.Tensor,
        levels: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_hat (B,D), constant; mean over rows and levels of the squared error of the entries up
        to each level); `level` (F,), or in the shape of values."""
        level = self.of(level) if level.shape == (self.latents,) else level
        return nested_error(
            self.codes, z, W_dec_FD, b_dec_D, target_BD, level, levels, self.backend
        )

    def sums(self, z: torch.Tensor) -> torch.Tensor:
        """(F,): z summed over the rows."""
        return OPERATIONS[self.backend].latent_sums(self.codes, z)

    def fired(self, z: torch.Tensor) -> torch.Tensor:
        """(F,): the number of rows in which each latent is active."""
        return self.sums((z != 0).to(torch.float32)).long()

    def dense(self, z: torch.Tensor) -> torch.Tensor:
        """(B,F)."""
        rows = self.codes.row_of(torch.arange(z.numel(), dtype=torch.int32, device=z.device)).long()
        flat = rows * self.latents + self.codes.idx.flatten().long()
        z = self.codes.without_padding(z).flatten()
        return (
            z.new_zeros(self.rows * self.latents)
            .index_add(0, flat, z)
            .view(self.rows, self.latents)
        )

    def metrics(self) -> dict[str, torch.Tensor]:
        return {} if self.encoded is None else encoder_metrics(self.encoded)


class DensePre:
    def __init__(self, values_BF: torch.Tensor, backend: str = "torch") -> None:
        self.values, self.backend = values_BF, backend
        self.rows, self.latents = values_BF.shape

    def of(self, p_F: torch.Tensor) -> torch.Tensor:
        return p_F.expand_as(self.values)

    def decode(
        self, z: torch.Tensor, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor
    ) -> torch.Tensor:
        return OPERATIONS[self.backend].dense_products(z, W_dec_FD.T, b_dec_D)

    def nested_error(
        self,
        z: torch.Tensor,
        W_dec_FD: torch.Tensor,
        b_dec_D: torch.Tensor,
        target_BD: torch.Tensor,
        level: torch.Tensor,
        levels: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of the sparse form; `level` (F,) does not fall from latent to latent, so levels are
        slices, which cost one product together."""
        sizes, no_bias = level.bincount(minlength=levels).tolist(), torch.zeros_like(b_dec_D)
        product = OPERATIONS[self.backend].dense_products
        slices = zip(z.split(sizes, 1), W_dec_FD.split(sizes))
        parts = [product(z_BL, W_LD.T, no_bias) for z_BL, W_LD in slices]
        x_hat_BGD = torch.stack(parts, 1).cumsum(1) + b_dec_D
        error = (x_hat_BGD - target_BD[:, None]).square().sum(2).mean()
        return x_hat_BGD[:, -1].detach(), error

    def sums(self, z: torch.Tensor) -> torch.Tensor:
        return z.sum(0)

    def fired(self, z: torch.Tensor) -> torch.Tensor:
        return z.count_nonzero(0)

    def dense(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def metrics(self) -> dict[str, torch.Tensor]:
        return {}


Pre = SparsePre | DensePre


def largest_of_rows(sae: SAE, x_BD: torch.Tensor, k: int, step: Step) -> SparsePre:
    """The k largest positive pre-activations of each row."""
    encoded = OPERATIONS[step.backend].encode_topk(
        x_BD, sae.W_enc, sae.b_enc, k, sae.workspace, step.encoder_plan
    )
    return _entries(sae, x_BD, encoded, step)


def largest_of_batch(
    sae: SAE, x_BD: torch.Tensor, k: int, bound: torch.Tensor, step: Step
) -> tuple[SparsePre, torch.Tensor]:
    """(the B k largest positive pre-activations of the batch, the smallest of them); `bound`: a
    guess that is below the smallest."""
    operations = OPERATIONS[step.backend]
    encoded, smallest = operations.encode_batchtopk(
        x_BD, sae.W_enc, sae.b_enc, k, sae.workspace, step.encoder_plan, bound
    )
    return _entries(sae, x_BD, encoded, step), smallest


def above(sae: SAE, x_BD: torch.Tensor, step: Step, floor_F: torch.Tensor | None = None) -> Pre:
    """All pre-activations above `floor` (default 0): as entries if there are few, else the whole
    matrix."""
    # The Triton path is told which form to use; the torch path tries entries, up to a limit.
    encoded, most = Encoded(None), None
    if step.backend == "triton":
        tries_sparse = sae.path == "sparse"
    else:
        most = most_active(x_BD, sae.latents)
        tries_sparse = most >= 1
    if tries_sparse:
        bias = sae.b_enc if floor_F is None else sae.b_enc - floor_F.detach()
        encoded = OPERATIONS[step.backend].encode_relu(
            x_BD, sae.W_enc, bias, sae.workspace, step.encoder_plan, most
        )
        if encoded.codes is None and step.backend == "triton":
            sae.path = "dense"  # until the next poll, which may try entries again
    if encoded.codes is None:
        values = OPERATIONS[step.backend].dense_products(x_BD, sae.W_enc, sae.b_enc)
        return DensePre(values, step.backend)
    return _entries(sae, x_BD, encoded, step, floor_F)


def _entries(
    sae: SAE, x_BD: torch.Tensor, encoded: Encoded, step: Step, floor_F: torch.Tensor | None = None
) -> SparsePre:
    assert encoded.codes is not None
    values = preactivations(encoded.codes, x_BD, sae.W_enc, sae.b_enc, step.backend)
    if floor_F is not None:
        values = values + floor_F.detach()[encoded.codes.idx.long()]
    return SparsePre(encoded.codes, values, step.backend, encoded)


def encoder_metrics(encoded: Any) -> dict[str, torch.Tensor]:
    """What an encoder (or a Reconstruction) reports about itself."""
    return {} if encoded.redone is None else {"redone_rows": encoded.redone}

"""SparseCodes: the few active latents of each row, the one format between encoder, decoder and gradients.

Rows are stored ELL: column-ascending (value, index) pairs, padded with value 0 at index 0 behind the last active latent. ELL because
a TopK code has exact width and the decoder wants a fixed width; the transpose (CSC) is made on demand because gradients that sum
over rows in a fixed order, without atomics, need the rows of each latent side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Transpose:
    """The codes by latent. Slots `pos[ptr[j]:ptr[j+1]]` are latent j's entries as flat positions b*K + t, rows ascending.

    `pos` is as long as the codes are wide, since its used length, ptr[F], is known to the device alone; the rest is padding.
    """

    ptr: torch.Tensor  # (F+1,) int32
    pos: torch.Tensor  # (B*K,) int32


@dataclass
class SparseCodes:
    """vals (B,K) fp32 (fp64 for fp64 input), idx (B,K) int32, nnz (B,) int32; F latents."""

    vals: torch.Tensor
    idx: torch.Tensor
    nnz: torch.Tensor
    F: int
    _transpose: Transpose | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.vals.shape[0]

    @property
    def capacity(self) -> int:
        return self.vals.shape[1]

    def detach(self) -> SparseCodes:
        return SparseCodes(self.vals.detach(), self.idx, self.nnz, self.F, self._transpose)

    def to_dense(self) -> torch.Tensor:
        """z (B,F). Padding adds 0 to column 0, so it needs no mask."""
        dense = self.vals.new_zeros(len(self), self.F)
        return dense.scatter_add_(1, self.idx.long(), self.vals)

    def active(self) -> torch.Tensor:
        """(B,K) bool: which entries are codes rather than padding."""
        return torch.arange(self.capacity, device=self.nnz.device)[None, :] < self.nnz[:, None]

    def transpose(self) -> Transpose:
        """Made once, by a stable sort: the same codes give the same order, whatever the device."""
        if self._transpose is None:
            self._transpose = _transpose(self)
        return self._transpose


def from_selected(vals_BK: torch.Tensor, idx_BK: torch.Tensor, F: int) -> SparseCodes:
    """Selected pre-activations -> codes: ReLU, drop what is not positive, sort columns.

    NaN counts as active, so that it reaches the reconstruction and the loss instead of vanishing in the ReLU.
    """
    active = ~(vals_BK <= 0)
    key = torch.where(active, idx_BK, F)
    key, order = key.sort(dim=1)
    vals = torch.where(active, vals_BK, 0).gather(1, order)
    idx = torch.where(key == F, 0, key).to(torch.int32)
    return SparseCodes(vals, idx, active.sum(1, dtype=torch.int32), F)


def from_dense(z_BF: torch.Tensor, above: float = 0.0) -> SparseCodes:
    """The entries of a dense code that are above `above`, as wide as the fullest row needs."""
    active = z_BF > above
    nnz = active.sum(1, dtype=torch.int32)
    width = int(nnz.max()) if len(z_BF) else 0
    key = torch.where(active, torch.arange(z_BF.shape[1], device=z_BF.device), z_BF.shape[1])
    key = key.topk(width, dim=1, largest=False, sorted=True).values
    padding = key == z_BF.shape[1]
    idx = torch.where(padding, 0, key)
    vals = torch.where(padding, 0, z_BF.gather(1, idx))
    return SparseCodes(vals, idx.to(torch.int32), nnz, z_BF.shape[1])


def _transpose(codes: SparseCodes) -> Transpose:
    # Padding sorts behind every latent, as latent F. int32 keys sort several times faster than int64 ones.
    key = torch.where(codes.active(), codes.idx, codes.F).flatten()
    key, pos = torch.sort(key, stable=True)
    ptr = torch.searchsorted(key, torch.arange(codes.F + 1, dtype=torch.int32, device=key.device), out_int32=True)
    return Transpose(ptr, pos.to(torch.int32))

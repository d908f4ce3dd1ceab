"""The few active latents of each row: the format between encoder, decoder and gradients.

SparseCodes stores rows in ELL format: (value, index) pairs with ascending columns, padded with
value 0 at index 0 after the last active latent. ELL because a TopK code has an exact width and the
decoder wants a fixed width. RaggedCodes stores rows end to end (CSR), for thresholds: an outlier
row of a language model can have fifty times as many active latents as the mean row, and ELL would
be as wide as that row.

Both build their transpose (CSC) on demand: gradients that sum over rows in a fixed order, without
atomics, need the rows of each latent side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch


@dataclass
class Transpose:
    """The codes by latent: `pos[ptr[j]:ptr[j+1]]` are the positions of latent j's entries in the
    flattened codes, rows ascending.

    `pos` is as long as the storage of the codes, since only the device knows its used length,
    ptr[F]; the rest is padding.
    """

    ptr: torch.Tensor  # (F+1,) int32
    pos: torch.Tensor  # (entries,) int32
    row: torch.Tensor | None = (
        None  # (entries,) int32: the row of each, of ragged codes on a device
    )

    def counts(self) -> torch.Tensor:
        """(F,): in how many rows each latent is active."""
        return self.ptr.diff()


@dataclass(repr=False)
class SparseCodes:
    """vals (B,K) fp32 (fp64 for fp64 input), idx (B,K) int32, nnz (B,) int32; F latents.

    Like a dense code, a tensor (..., F), it has `shape`, `view`, `detach`, `to_dense`, indexing and
    `is_sparse`. `leading`: the dimensions of the dense code before the last, with B as their
    product; None: (B,).
    """

    vals: torch.Tensor
    idx: torch.Tensor
    nnz: torch.Tensor
    F: int
    _transpose: Transpose | None = field(default=None, repr=False, compare=False)
    leading: tuple[int, ...] | None = None

    is_sparse: ClassVar[bool] = True
    """As torch.Tensor.is_sparse, which is False for a dense code."""

    def __len__(self) -> int:
        return self.vals.shape[0]

    def __repr__(self) -> str:
        return (
            f"SparseCodes({tuple(self.shape)}, at most {self.capacity} active per row,"
            f" {self.vals.dtype})"
        )

    @property
    def shape(self) -> torch.Size:
        """That of the dense code: (B,F), or (*leading, F)."""
        return torch.Size((*((len(self),) if self.leading is None else self.leading), self.F))

    def __getitem__(self, index: Any) -> SparseCodes | torch.Tensor:
        """Indexes like the dense code, without building it: `codes[rows]` gives the codes of some
        rows (a slice, a mask or row numbers; a single row is dense), `codes[rows, latents]` the
        values there."""
        # Index the row numbers, to see which rows are meant.
        number = torch.arange(len(self), device=self.idx.device).view(self.shape[:-1])
        index = index if isinstance(index, tuple) else (index,)
        rows, latents = index[: number.ndim], index[number.ndim :]
        chosen = number[rows]
        # With an index of latents: values. Else the codes of these rows.
        if latents:
            return self._values(
                chosen,
                torch.as_tensor(latents[0], device=self.idx.device),
                any(isinstance(part, slice) for part in rows),
            )
        flat = chosen.flatten()
        codes = SparseCodes(self.vals[flat], self.idx[flat], self.nnz[flat], self.F)
        codes = codes.view(*chosen.shape, self.F)
        return codes if chosen.ndim else codes.to_dense()

    def view(self, *shape: int) -> SparseCodes:
        """The same codes in the shape (..., F), as Tensor.view."""
        *leading, width = shape
        assert width == self.F and math.prod(leading) == len(self), (shape, self.shape)
        return replace(self, leading=None if len(leading) == 1 else tuple(leading))

    def _values(self, rows: torch.Tensor, latents: torch.Tensor, crossed: bool) -> torch.Tensor:
        """The values at pairs of row and latent, or of every row at every latent."""
        if crossed:
            rows = rows.reshape(*rows.shape, *[1] * latents.ndim)
        rows, latents = torch.broadcast_tensors(rows, latents % self.F)
        hit = (self.idx[rows] == latents[..., None]) & self.active()[rows]
        return torch.where(hit, self.vals[rows], 0).sum(-1)

    @property
    def capacity(self) -> int:
        return self.vals.shape[1]

    def detach(self) -> SparseCodes:
        return SparseCodes(
            self.vals.detach(), self.idx, self.nnz, self.F, self._transpose, self.leading
        )

    def to_dense(self) -> torch.Tensor:
        """z (..., F). Padding adds 0 to column 0, so it needs no mask."""
        dense = self.vals.new_zeros(len(self), self.F)
        dense.scatter_add_(1, self.idx.long(), self.vals)
        return dense.view(self.shape)

    def entries(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(row, latent, value), each (N,), of the active entries in row-major order."""
        row, slot = self.active().nonzero(as_tuple=True)
        return row, self.idx[row, slot].long(), self.vals[row, slot]

    def active(self) -> torch.Tensor:
        """(B,K) bool: which entries are codes rather than padding."""
        return torch.arange(self.capacity, device=self.nnz.device)[None, :] < self.nnz[:, None]

    def offsets(self) -> torch.Tensor:
        """(B+1,) int32: where each row begins in the flattened codes."""
        B, K = self.vals.shape
        return torch.arange(B + 1, dtype=torch.int32, device=self.idx.device) * K

    def row_of(self, pos: torch.Tensor) -> torch.Tensor:
        """The row of each position in the flattened codes."""
        return torch.div(pos, max(self.capacity, 1), rounding_mode="floor")

    def row_sum(self, values: torch.Tensor) -> torch.Tensor:
        """(B,) sums of `values`, in the shape of vals."""
        return values.sum(1)

    def without_padding(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, in the shape of vals, with zeros on padding."""
        return values.masked_fill(~self.active(), 0.0)

    def transpose(self) -> Transpose:
        """Built once, by a stable sort: the same codes give the same order on every device."""
        if self._transpose is None:
            # Padding sorts after every latent, as latent F.
            self._transpose = _transpose(
                torch.where(self.active(), self.idx, self.F).flatten(), self.F
            )
        return self._transpose


@dataclass
class RaggedCodes:
    """Rows end to end: entries ptr[b]:ptr[b+1] of vals (n,) and idx (n,) int32 are row b's, columns
    ascending; F latents."""

    ptr: torch.Tensor  # (B+1,) int32
    vals: torch.Tensor
    idx: torch.Tensor
    F: int
    _transpose: Transpose | None = field(default=None, repr=False, compare=False)

    is_sparse: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def nnz(self) -> torch.Tensor:
        return self.ptr.diff()

    def offsets(self) -> torch.Tensor:
        return self.ptr

    def row_of(self, pos: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(self), dtype=torch.int32, device=self.idx.device)
        return rows.repeat_interleave(self.nnz, output_size=len(self.idx))[pos]

    def row_sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(values, "sum", offsets=self.ptr.long())

    def without_padding(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def to_dense(self) -> torch.Tensor:
        dense = self.vals.new_zeros(len(self), self.F)
        row, latent, value = self.entries()
        dense[row, latent] = value
        return dense

    def entries(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(row, latent, value), each (N,), in row-major order."""
        row = self.row_of(torch.arange(len(self.idx), device=self.idx.device))
        return row.long(), self.idx.long(), self.vals

    def transpose(self) -> Transpose:
        if self._transpose is None:
            self._transpose = _transpose(self.idx, self.F)
        return self._transpose


Codes = SparseCodes | RaggedCodes


def from_selected(
    vals_BK: torch.Tensor, idx_BK: torch.Tensor, F: int, keep_negative: bool = False
) -> SparseCodes:
    """Selected pre-activations -> codes: ReLU, drop what is not positive, sort the columns. With
    keep_negative only zeros are dropped.

    NaN counts as active, so that it reaches the reconstruction and the loss instead of vanishing in
    the ReLU.
    """
    active = vals_BK != 0 if keep_negative else ~(vals_BK <= 0)
    key = torch.where(active, idx_BK, F)
    key, order = key.sort(dim=1)
    vals = torch.where(active, vals_BK, 0).gather(1, order)
    idx = torch.where(key == F, 0, key).to(torch.int32)
    return SparseCodes(vals, idx, active.sum(1, dtype=torch.int32), F)


def from_entries(
    row: torch.Tensor, column: torch.Tensor, vals: torch.Tensor, B: int, F: int
) -> RaggedCodes:
    """Codes from (row, column, value) entries in row-major order, columns ascending."""
    ptr = torch.nn.functional.pad(torch.bincount(row, minlength=B).cumsum(0), (1, 0))
    return RaggedCodes(ptr.to(torch.int32), vals, column.to(torch.int32), F)


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


def _transpose(key: torch.Tensor, F: int) -> Transpose:
    # int32 keys sort several times faster than int64 ones.
    key, pos = torch.sort(key, stable=True)
    ptr = torch.searchsorted(
        key, torch.arange(F + 1, dtype=torch.int32, device=key.device), out_int32=True
    )
    return Transpose(ptr, pos.to(torch.int32))

"""Dot products at chosen places of a matrix product."""

from __future__ import annotations

import warnings

import torch


def row_products(row: torch.Tensor, column: torch.Tensor, A_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """(n,): <A[row], W[column]> for n entries in row-major order; a sampled dense-dense product."""
    count = torch.bincount(row, minlength=len(A_BD))
    return csr_products(torch.nn.functional.pad(count.cumsum(0), (1, 0)), column, A_BD, W_FD)


def csr_products(ptr: torch.Tensor, column: torch.Tensor, A_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """The same with the entries of row b at ptr[b]:ptr[b+1]."""
    with warnings.catch_warnings():
        # torch says once that CSR tensors are in beta; only sampled_addmm is used, and the tests compare it with the dense product.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        zeros = A_BD.new_zeros(len(column))
        shape = (len(A_BD), len(W_FD))
        pattern = torch.sparse_csr_tensor(ptr.to(torch.int32), column.to(torch.int32), zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, A_BD, W_FD.T, beta=0.0).values()

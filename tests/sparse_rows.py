"""Random sparse codes on the device under test, and their dense values."""

from __future__ import annotations

import torch
from saekit_kernels.codes import RaggedCodes, SparseCodes, from_entries

device = "cuda" if torch.cuda.is_available() else "cpu"


def random_codes(B: int, F: int, K: int, seed: int = 0, full: bool = False) -> SparseCodes:
    """Rows of random width, or of the largest: distinct columns, ascending, value 0 at index 0
    after the last."""
    gen = torch.Generator().manual_seed(seed)
    vals = torch.zeros(B, K)
    idx, nnz = torch.zeros(B, K, dtype=torch.int32), torch.zeros(B, dtype=torch.int32)
    for b in range(B):
        n = min(K, F) if full else int(torch.randint(0, min(K, F) + 1, (1,), generator=gen))
        idx[b, :n] = torch.randperm(F, generator=gen)[:n].sort().values.int()
        vals[b, :n] = torch.rand(n, generator=gen) + 0.1
        nnz[b] = n
    return SparseCodes(vals.to(device), idx.to(device), nnz.to(device), F)


def end_to_end(codes: SparseCodes) -> RaggedCodes:
    """The same codes, ragged."""
    row, latent, value = codes.entries()
    return from_entries(row, latent, value, len(codes), codes.F)


def dense(codes: SparseCodes, coef: torch.Tensor) -> torch.Tensor:
    """(B,F) fp64: `coef` (B,K) in the places of the codes; what stands on padding does not
    count."""
    z = torch.zeros(len(codes), codes.F, dtype=torch.float64, device=device)
    return z.scatter_add_(1, codes.idx.long(), coef.double().where(codes.active(), 0.0))


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(device=device, dtype=dtype)


def close(actual: torch.Tensor, expected: torch.Tensor, terms: int) -> None:
    """Sums of `terms` products in fp32, against the same rounded inputs in fp64: the error grows
    like sqrt(terms) units of roundoff."""
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    finite = expected.abs().nan_to_num(0, 0, 0)
    scale = finite.max().clamp_min(1.0).item() if expected.numel() else 1.0
    atol = 5e-7 * max(terms, 4) ** 0.5 * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)

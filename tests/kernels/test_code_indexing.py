"""Sparse codes are indexed as the dense ones are."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels import SparseCodes
from saekit_kernels.codes import from_dense


def codes_of(*shape: int) -> tuple[SparseCodes, torch.Tensor]:
    z = torch.rand(*shape, 9, generator=torch.Generator().manual_seed(0))
    z = torch.where(z > 0.6, z, 0.0)
    codes = from_dense(z.view(-1, 9))
    return SparseCodes(
        codes.vals, codes.idx, codes.nnz, 9, leading=None if len(shape) == 1 else shape
    ), z


ROWS = [
    slice(1, 4),
    slice(None, None, 2),
    torch.tensor([3, 0, 3]),
    torch.arange(6) % 2 == 0,
    [1, 5],
    -1,
    2,
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_those_of_the_dense_code(rows):
    codes, z = codes_of(6)
    assert codes.shape == z.shape and torch.equal(codes[rows].to_dense(), z[rows])


@pytest.mark.parametrize("latents", [0, 7, -2, torch.tensor([0, 4, 8]), [8, 1]], ids=str)
@pytest.mark.parametrize("rows", [slice(None), slice(2, 5), 3], ids=str)
def test_values_are_those_of_the_dense_code(rows, latents):
    codes, z = codes_of(6)
    assert torch.equal(codes[rows, latents], z[rows, latents])
    pairs = torch.tensor([0, 5, 5]), torch.tensor([8, 0, 3])
    assert torch.equal(codes[pairs[0], pairs[1]], z[pairs[0], pairs[1]])


def test_leading_dimensions_are_kept():
    codes, z = codes_of(2, 3)
    assert codes.shape == (2, 3, 9) and torch.equal(codes[1].to_dense(), z[1])
    assert torch.equal(codes[1, :, 4], z[1, :, 4]) and torch.equal(
        codes[0, 2, [3, 8]], z[0, 2, [3, 8]]
    )
    assert codes[1].shape == (3, 9) and torch.equal(codes[:1].to_dense(), z[:1])


def test_a_short_repr():
    assert repr(codes_of(6)[0]) == "SparseCodes((6, 9), at most 5 active per row, torch.float32)"

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from saekit.errors import DataError, NumericsError
from saekit.measures.stability import matched, stability


def test_a_permuted_dictionary_of_other_norms_is_the_same_one():
    W = torch.randn(50, 8)
    order = torch.randperm(50)
    V = W[order] * torch.linspace(0.1, 30, 50)[:, None]
    pairs, cosines = matched(W, V)
    assert torch.equal(order[pairs[:, 1]], pairs[:, 0]) and torch.equal(
        pairs[:, 0], torch.arange(50)
    )
    torch.testing.assert_close(cosines, torch.ones(50).double(), rtol=0, atol=1e-12)
    assert stability(W, V) == pytest.approx(1.0, abs=1e-12)


def test_the_sum_decides_not_each_atoms_nearest():
    # Cosines [[.96, .6], [.936, 0]]: both atoms of W are nearest to the first of V, which goes to
    # the one that has nothing else.
    W, V = np.array([[0.8, 0.6], [1.0, 0.0]]), np.array([[0.936, 0.352], [0.0, 1.0]])
    pairs, cosines = matched(W, V)
    assert pairs.tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(
        cosines, torch.tensor([0.6, 0.936], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert stability(W, V) == pytest.approx(0.768, abs=1e-12)


def test_no_other_assignment_has_a_larger_sum():
    W, V = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    cosines = torch.nn.functional.cosine_similarity(W[:, None], V[None], dim=2)
    best = max(
        sum(cosines[i, j].item() for i, j in enumerate(order)) for order in permutations(range(6))
    )
    assert stability(W, V) == pytest.approx(best / 6, abs=1e-12)


def test_opposite_atoms_are_not_alike_and_an_empty_atom_is_like_none():
    W = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert stability(W, torch.tensor([[-2.0, 0.0], [-3.0, 0.0]])) == -0.5


def test_the_smaller_dictionary_is_paired_and_has_no_stability():
    W = torch.eye(4)[[2, 0]]
    pairs, cosines = matched(W, np.eye(4))
    assert pairs.tolist() == [[0, 2], [1, 0]] and cosines.tolist() == [1.0, 1.0]
    assert matched(np.eye(4), W)[0].tolist() == [[0, 1], [2, 0]]
    with pytest.raises(DataError, match="2 and 4 atoms"):
        stability(W, torch.eye(4))


def test_what_has_no_cosines_is_refused():
    with pytest.raises(DataError, match="atoms of 3 and of 4 values"):
        matched(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(NumericsError, match="second dictionary: row 1"):
        matched(torch.ones(2, 2), torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]))

"""Every model's code has one interface, and what is counted in it does not depend on its form."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels import RaggedCodes, from_dense

from saekit.models.catalog import build
from saekit.models.codes import decoded, entries, firing_counts, row_count
from saekit.models.sparsity import VARIANTS

D, F = 6, 9


def dense_code() -> torch.Tensor:
    """(4, F) with 0 to 3 active latents per row."""
    z = torch.zeros(4, F)
    z[0, [1, 4]], z[1, 8], z[3, [0, 1, 2]] = torch.tensor([2.0, 0.5]), 3.0, 1.5
    return z


def forms():
    z = dense_code()
    ell = from_dense(z)
    ragged = RaggedCodes(
        torch.tensor([0, 2, 3, 3, 6], dtype=torch.int32),
        z[z != 0],
        z.nonzero()[:, 1].int(),
        F,
    )
    return {"dense": z, "sparse": ell, "ragged": ragged}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_code_of_every_variant_has_a_shape_an_index_and_a_dense_form(name):
    k = {"k": 3} if "k" in VARIANTS[name].config_class.__dataclass_fields__ else {}
    sae = VARIANTS[name](d_in=D, latents=20, folded=True, **k).eval().requires_grad_(False)
    x = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))
    code = sae.encode(x)
    z = code.to_dense()
    assert code.shape == z.shape == (2, 3, 20) and row_count(code) == 6
    assert torch.equal(code[1].to_dense(), z[1]) and torch.equal(code[0, :, 4], z[0, :, 4])
    assert torch.equal(code.view(6, 20).to_dense(), z.view(6, 20))
    assert code.is_sparse != isinstance(code, torch.Tensor)


@pytest.mark.parametrize("form", ["sparse", "ragged"])
def test_entries_of_a_sparse_code_are_those_of_the_dense_one(form):
    code, z = forms()[form], dense_code()
    assert code.is_sparse and not z.is_sparse
    for above in (None, 0.0, 1.0):
        for got, wanted in zip(entries(code, above), entries(z, above)):
            assert torch.equal(got, wanted)
    row, latent, value = entries(z, 1.0)
    assert row.tolist() == [0, 1, 3, 3, 3] and latent.tolist() == [1, 8, 0, 1, 2]
    assert value.tolist() == [2.0, 3.0, 1.5, 1.5, 1.5]


def test_firing_counts_of_any_leading_shape():
    z, codes = dense_code(), forms()["sparse"]
    wanted = [1, 2, 1, 0, 1, 0, 0, 0, 1]
    for code in (z, z.view(2, 2, F), codes, codes.view(2, 2, F)):
        assert firing_counts(code, 0.0).tolist() == wanted


def test_a_code_is_decoded_alike_in_both_forms():
    generator = torch.Generator().manual_seed(1)
    W, b = torch.randn(F, D, generator=generator), torch.randn(D, generator=generator)
    z, codes = dense_code(), forms()["sparse"]
    wanted = (z.double() @ W.double() + b.double()).float()
    for code in (z, codes):
        torch.testing.assert_close(decoded(code, W, b), wanted)
        torch.testing.assert_close(decoded(code.view(2, 2, F), W, b), wanted.view(2, 2, D))


def test_kmeans_decodes_a_sparse_code_of_any_capacity():
    model = build("kmeans", D, {"latents": F})
    model.centroids.copy_(torch.arange(F * D).view(F, D))
    z = dense_code()
    torch.testing.assert_close(model.decode(from_dense(z)), z @ model.centroids)

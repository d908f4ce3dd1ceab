"""The dense reference is the same autoencoder: its losses and gradients are those of the sparse
step."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from batches import batch_with_previous

from saekit.bench.reference import dense, dense_copy, largest_of_batch, largest_of_rows
from saekit.bench.shapes import active_options
from saekit.models.catalog import build
from saekit.models.sparsity import VARIANTS
from saekit.types import Step

D, F, K = 12, 64, 6


def made(name):
    options = {"sparsity": name, "latents": F, **active_options(name, K)}
    options |= {"k": K} if name == "matching-pursuit" else {}
    sae = build("sae", D, options)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, D, generator=generator)
    sae.initialise_from(x, generator)
    sae = sae.double()
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
        sae.after_step()  # unit rows, thresholds above 0
    return sae, batch_with_previous(x.double())


def loss_and_gradients(sae, batch, step):
    terms = sae.loss(batch, step)
    terms.total.backward()
    gradients = {name: parameter.grad for name, parameter in sae.named_parameters()}
    return terms, {name: grad for name, grad in gradients.items() if grad is not None}


@pytest.mark.parametrize("dead", [None, torch.tensor([3, 17, 40])])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_sparse_step(name, dead):
    variant, step, results = VARIANTS[name], Step(8, 10, dead=dead), []
    for reference in (nullcontext(), dense(name)):
        with reference:
            sae, batch = made(name)
        results.append(loss_and_gradients(sae, batch, step))
    assert VARIANTS[name] is variant
    (ours, our_gradients), (theirs, their_gradients) = results
    assert ours.terms.keys() == theirs.terms.keys() and len(our_gradients) >= 2
    for key, term in ours.terms.items():
        weighted, expected = ours.weights[key] * term, theirs.weights[key] * theirs.terms[key]
        torch.testing.assert_close(weighted, expected, msg=lambda m, key=key: key + m)
    torch.testing.assert_close(ours.total, theirs.total)
    torch.testing.assert_close(ours.fired, theirs.fired, check_dtype=False)
    assert 0 < ours.fired.sum() < 50 * F
    assert our_gradients.keys() == their_gradients.keys()
    for key, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[key], msg=lambda m, key=key: key + m)


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu", "p-anneal"])
def test_a_dense_copy_has_what_the_model_has_learned(name):
    sae, batch = made(name)
    sae.control.coef, sae.unit = 0.7, 1.3
    twin = dense_copy(sae)
    assert type(twin) is not type(sae) and twin.state_dict().keys() == sae.state_dict().keys()
    ours, theirs = sae.loss(batch, Step(8, 10)), twin.loss(batch, Step(8, 10))
    torch.testing.assert_close(ours.total, theirs.total)
    assert ours.weights == theirs.weights


def test_dense_codes_by_hand():
    pre = torch.tensor([[3.0, -4.0, 1.0], [0.5, 2.0, -1.0]])
    assert largest_of_rows(pre, 1).tolist() == [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    assert largest_of_rows(-pre.abs(), 1).tolist() == [[0.0] * 3] * 2
    z, smallest = largest_of_batch(pre + torch.tensor([[0.0], [-2.0]]), 1)
    assert z.tolist() == [[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]] and smallest == 1
    assert largest_of_batch(-pre.abs(), 1)[1] == 0

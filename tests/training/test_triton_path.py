"""Training on the Triton kernels: the same runs as on the torch path. Interpreted without a GPU, so
everything is tiny."""

from __future__ import annotations

import pytest
import torch
from made_stores import make_rows
from saekit_kernels import resolve_backend

from saekit.models.catalog import build
from saekit.models.sae import SAE
from saekit.training.optim import make_adam
from saekit.training.step import _view, take_step
from saekit.types import ActivationBatch, Step

D, F, B = 12, 40, 17
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(seed: int) -> ActivationBatch:
    x = make_rows(B, D, seed).float()
    index = torch.arange(B)
    return ActivationBatch((x - x.mean(0)).to(DEVICE), index, index, index)


def at(step: int, backend: str = "triton", dead: torch.Tensor | None = None) -> Step:
    return Step(step, 10, dead=dead if dead is None else dead.to(DEVICE), backend=backend)


def make_sae(sparsity: str, **options) -> SAE:
    sae = build("sae", D, {"latents": F, "sparsity": sparsity, **options})
    sae.initialise_from(batch(0).x.cpu(), torch.Generator().manual_seed(0))
    return sae.to(DEVICE)


def trained(
    backend: str, sparsity: str, steps: int = 2, dead=None, arm: str = "dense", clip=None, **options
):
    sae = make_sae(sparsity, **options)
    sae.path = arm
    optimizer = make_adam(sae, 1e-2)
    terms = [
        take_step(sae, optimizer, batch(step + 1), at(step, backend, dead), clip)
        for step in range(steps)
    ]
    return sae, optimizer, terms


@pytest.mark.parametrize(
    "sparsity,settings",
    [
        ("topk", {"k": 5}),
        # the auxiliary loss: not fused
        ("topk", {"k": 5, "revive": "aux", "dead": torch.tensor([3, 7]), "steps": 1}),
        # revived between steps: fused
        ("topk", {"k": 5, "revive": "nudge", "dead": torch.tensor([3, 7]), "steps": 1}),
        ("topk", {"k": 5, "clip": 0.5, "steps": 1}),
        ("topk", {"k": 5, "decoder_norm": "free", "steps": 1}),
        ("l1", {"arm": "sparse", "coef": 0.3}),
        ("l1", {"arm": "sparse", "coef": 0.3, "decoder_norm": "free"}),
        ("l1", {"arm": "dense", "coef": 0.3, "steps": 1}),
        ("kl-sigmoid", {"coef": 0.3, "steps": 1}),
    ],
)
def test_a_step_on_triton_is_the_step_on_torch(sparsity, settings):
    expect_the_same(trained("triton", sparsity, **settings), trained("torch", sparsity, **settings))


def expect_the_same(on_triton, on_torch):
    """Two results of `trained`: losses, moments, parameters up to what Adam makes of rounding."""
    ours, our_adam, terms = on_triton
    theirs, their_adam, reference = on_torch
    tolerance = 1e-5 if DEVICE == "cpu" else 2e-2
    for made, expected in zip(terms, reference):
        torch.testing.assert_close(made.total, expected.total, rtol=tolerance, atol=tolerance)
        assert made.terms.keys() == expected.terms.keys() and made.weights == expected.weights
        assert torch.equal(made.fired, expected.fired) or DEVICE == "cuda"
        assert made.metrics.get("redone_rows", 0) == 0
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert a in our_adam.state or b not in their_adam.state, name
        if a not in our_adam.state:
            continue
        # Adam turns a gradient near 0 into a step of either sign; such entries differ by at most
        # the rate.
        assert ((a - b).abs() > 10 * tolerance).float().mean() < 0.01, name
        assert (
            our_adam.state[a]["exp_avg"] - their_adam.state[b]["exp_avg"]
        ).abs().max() <= 10 * tolerance, name
        assert our_adam.state[a]["step"] == their_adam.state[b]["step"]


def uneven(seed: int, rows: int = 20) -> ActivationBatch:
    """Rows of which one is as long as in a language model: there, one in forty is."""
    x = make_rows(rows, D, seed).float()
    x = (x - x.mean(0)) / x.std()
    x[7] *= 30.0
    index = torch.arange(rows)
    return ActivationBatch(x.to(DEVICE), index, index, index)


@pytest.mark.parametrize(
    "sparsity,settings",
    [
        ("topk", {"k": 4}),
        ("batchtopk", {"k": 4, "k_start": 4}),
        ("matryoshka", {"k": 4, "k_start": 4}),
        ("matryoshka-topk", {"k": 4}),
        ("hierarchical", {"k": 8}),
        ("matryoshka-jumprelu", {"target_l0": 8, "start_l0": 8}),
        ("jumprelu", {"target_l0": 8, "start_l0": 8}),
        ("jumprelu", {"start_l0": 8, "freq_coef": 0.1}),
        ("gated", {"start_l0": 8}),
        ("l1", {"start_l0": 8, "coef": 0.3}),
        ("tanh", {"start_l0": 8}),
        ("log", {"start_l0": 8, "decoder_norm": "free"}),
        ("p-anneal", {"start_l0": 8}),
        ("kl-rates", {"start_l0": 8}),
    ],
)
def test_rows_of_large_norm_train_on_triton_as_on_torch(sparsity, settings):
    """Such a row holds many times the entries of the others: no code is cut, no step refused."""
    results = []
    for backend in ("triton", "torch"):
        sae = build("sae", D, {"latents": 48, "sparsity": sparsity, **settings})
        sae.initialise_from(uneven(0).x.cpu(), torch.Generator().manual_seed(0))
        sae.to(DEVICE).path = "sparse"
        optimizer = make_adam(sae, 1e-2)
        terms = [take_step(sae, optimizer, uneven(1), at(0, backend))]
        results.append((sae, optimizer, terms))
    expect_the_same(*results)


@pytest.mark.parametrize("sparsity", ["batchtopk", "l1"])
def test_one_row_may_hold_most_entries_of_a_batch(sparsity):
    options = {"batchtopk": {"k": 2, "k_start": 2}, "l1": {"start_l0": 1}}[sparsity]
    sae = build("sae", D, {"latents": 48, "sparsity": sparsity, **options})
    sae.initialise_from(uneven(0).x.cpu(), torch.Generator().manual_seed(0))
    sae.to(DEVICE).path = "sparse"
    nnz = sae.preactivations(uneven(1).x, at(0)).codes.nnz
    assert nnz.argmax() == 7 and nnz[7] > 8 * nnz.float().median() and nnz[7] > 16


def test_too_many_entries_are_a_dense_step(monkeypatch):
    """Where the sparse path has no room: the same step by dense products, not an error."""
    monkeypatch.setattr("saekit_kernels.operations.LEAST_ROOM", 1)
    for sparsity in ("l1", "tanh"):
        ours = trained("triton", sparsity, arm="sparse", steps=1)
        expect_the_same(ours, trained("torch", sparsity, arm="sparse", steps=1))
        assert ours[0].path == "dense"  # the next steps do not try again before a poll
        ours[0].observe(0.1, at(1))
        assert ours[0].path == "sparse"


def test_the_same_fused_steps_give_the_same_bits():
    first, second = (trained("triton", "topk", k=5, steps=2)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_low_precision_copies_follow_the_parameters_through_every_kind_of_step():
    sae = make_sae("topk", k=5, revive="aux")
    sae.shadows.devices = ("cpu", "cuda")
    optimizer = make_adam(sae, 1e-2)

    def copies_are_current() -> bool:
        # A device rounds to bf16, the interpreter cuts off.
        parameters = {"W_enc": sae.W_enc, "W_dec": sae.W_dec}
        return all(
            torch.allclose(copy.float(), parameters[name].detach(), rtol=2**-7, atol=1e-6)
            for name, copy in sae.shadows.copies.items()
        )

    take_step(sae, optimizer, batch(1), at(0))
    assert set(sae.shadows.copies) == {"W_enc", "W_dec"} and copies_are_current()
    # the auxiliary loss takes the ordinary step
    take_step(sae, optimizer, batch(2), at(1, dead=torch.tensor([3, 7])))
    assert not sae.shadows.copies
    take_step(sae, optimizer, batch(3), at(2))
    assert copies_are_current() and set(sae.shadows.copies) == {"W_enc", "W_dec"}


def test_fused_steps_apply_only_where_they_can():
    topk, l1, kl = make_sae("topk", revive="aux"), make_sae("l1"), make_sae("kl-sigmoid")
    assert (
        kl.fused_step(batch(1), at(0), None) is None
        and l1.fused_step(batch(1), at(0), None) is None
    )
    assert topk.fused_step(batch(1), at(0, dead=torch.tensor([1])), None) is None
    # The default revival acts between steps, and a step with dead latents stays fused.
    nudged = make_sae("topk", k=5)
    view = _view(nudged, make_adam(nudged, 1e-2), 0)
    assert nudged.fused_step(batch(1), at(0, dead=torch.tensor([1])), view) is not None
    assert topk.fused_step(batch(1), at(0, "torch"), None) is None


def test_the_arm_follows_the_l0_that_was_seen():
    sae = make_sae("l1")
    sae.observe(0.1, at(1))
    assert sae.path == "sparse"
    sae.observe(float(F), at(2))
    assert sae.path == "dense"


def test_which_backend_runs_is_said_with_its_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert (
        resolve_backend("auto", "cpu").name == "torch"
        and resolve_backend("auto", "cuda").name == "triton"
    )
    assert resolve_backend("triton", "cpu").name == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="need a CUDA device, not cpu"):
        resolve_backend("triton", "cpu")
    monkeypatch.setenv("SAEKIT_KERNELS", "torch")
    assert (
        resolve_backend("auto", "cuda").name == "torch"
        and "SAEKIT_KERNELS" in resolve_backend("auto", "cuda").reason
    )
    with pytest.raises(ValueError, match="choose auto, triton, torch"):
        resolve_backend("cuda", "cpu")

"""Replaced hidden states: nothing else changes, and gradients come back to what was put in."""

from __future__ import annotations

import pytest
import tiny
import torch

import saekit
from saekit.errors import DataError
from saekit.harvesting.hooks import capture
from saekit.intervention.splice import splice
from saekit.models.catalog import restore

FAMILIES = ("llama", "gpt2", "bloom")
HOOKS = ("blocks.1", "blocks.1.mlp", "blocks.1:in", "blocks.2.attn:in")


def mask(*positions: tuple[int, int]) -> torch.Tensor:
    chosen = torch.zeros(2, 7, dtype=torch.bool)
    for position in positions:
        chosen[position] = True
    return chosen


def logits(model, ids=None) -> torch.Tensor:
    return model(input_ids=tiny.ids() if ids is None else ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hook", HOOKS)
@torch.no_grad()
def test_the_identity_changes_no_bit_of_the_logits(family, hook):
    model = tiny.random_model(family)
    plain = logits(model)
    for chosen in (None, mask((0, 3), (1, 0), (1, 6)), mask()):
        with splice(model, hook, lambda x: x, chosen):
            assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("hook", HOOKS)
@torch.no_grad()
def test_chosen_positions_alone_are_replaced_in_order(hook):
    model = tiny.random_model("llama")
    with capture(model, hook) as states:
        plain = logits(model)
    before, chosen, given = states[hook].clone(), mask((0, 5), (1, 3), (1, 6)), []
    new = torch.randn(3, tiny.WIDTH)

    def change(x: torch.Tensor) -> torch.Tensor:
        given.append(x.clone())
        return new.double()  # any float dtype: the model's own comes back

    with splice(model, hook, change, chosen), capture(model, hook) as states:
        spliced = logits(model)
    after = states[hook]
    assert torch.equal(given[0], before[chosen]) and len(given) == 1
    assert torch.equal(after[chosen], new) and torch.equal(after[~chosen], before[~chosen])
    # Causal attention: positions before the first change know nothing of it.
    assert torch.equal(spliced[0, :5], plain[0, :5]) and torch.equal(spliced[1, :3], plain[1, :3])
    assert not torch.allclose(spliced[0, 5], plain[0, 5]) and not torch.allclose(
        spliced[1, 4], plain[1, 4]
    )


@torch.no_grad()
def test_without_a_mask_all_positions_of_any_length_are_changed():
    model = tiny.random_model("llama")
    with (
        splice(model, "blocks.0", lambda x: torch.zeros_like(x)),
        capture(model, "blocks.0") as states,
    ):
        for length in (3, 7):
            logits(model, tiny.ids(length=length))
            assert (
                states["blocks.0"].shape == (2, length, tiny.WIDTH) and not states["blocks.0"].any()
            )


@torch.no_grad()
def test_a_bias_at_the_hook_equals_the_same_bias_in_the_module():
    model, shift = tiny.random_model("llama"), torch.randn(tiny.WIDTH)
    with splice(model, "blocks.1.mlp", lambda x: x + shift):
        spliced = logits(model)
    last = model.model.layers[1].mlp.down_proj
    last.bias = torch.nn.Parameter(shift)
    torch.testing.assert_close(spliced, logits(model), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_kl_by_the_replaced_rows_matches_finite_differences():
    # GPT-2, since Llama's norms compute in fp32 whatever the weights are in.
    model, chosen = (
        tiny.random_model("gpt2").double().requires_grad_(False),
        mask((0, 1), (0, 4), (1, 2)),
    )
    with torch.no_grad():
        p = logits(model).softmax(-1)
    rows = torch.randn(
        3, tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )

    def kl(rows: torch.Tensor) -> torch.Tensor:
        with splice(model, "blocks.1", lambda _: rows, chosen):
            q = logits(model).log_softmax(-1)
        return (p * (p.log() - q)).sum(-1)[chosen].mean()

    leaf = rows.clone().requires_grad_(True)
    kl(leaf).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    step = 1e-5
    for n, d in ((0, 0), (0, 17), (1, 3), (1, 31), (2, 8), (2, 20)):
        moved = torch.zeros_like(rows)
        moved[n, d] = step
        with torch.no_grad():
            slope = (kl(rows + moved) - kl(rows - moved)) / (2 * step)
        assert leaf.grad[n, d].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-10)


@torch.no_grad()
def test_the_hook_is_gone_after_the_body_whatever_happened():
    model = tiny.random_model("llama")
    plain = logits(model)
    with pytest.raises(ZeroDivisionError), splice(model, "blocks.1", lambda x: x + 1):
        logits(model)
        raise ZeroDivisionError
    assert torch.equal(logits(model), plain)


def test_unknown_and_silent_hooks_are_refused():
    model = tiny.random_model("llama")
    with (
        pytest.raises(DataError, match=r"blocks.9 is not a module"),
        splice(model, "blocks.9", lambda x: x),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"blocks.1 did not run"),
        splice(model, "blocks.1", lambda x: x),
    ):
        pass
    with (
        pytest.raises(DataError, match="does not give hidden states"),
        splice(model, "model.embed_tokens:in", lambda x: x),
    ):
        logits(model)


@torch.no_grad()
def test_several_hooks_are_changed_in_one_pass_as_one_inside_the_other():
    model = tiny.random_model("llama")
    double, shift = (lambda x: 2 * x), (lambda x: x + 1)
    with saekit.splice(model, "blocks.0", double), saekit.splice(model, "blocks.2", shift):
        nested = logits(model)
    with saekit.splice(model, {"blocks.0": double, "blocks.2": shift}):
        assert torch.equal(logits(model), nested)
    assert not torch.equal(logits(model), nested), "nothing stays on the model"
    with (
        pytest.raises(DataError, match=r"blocks\.7"),
        saekit.splice(model, {"blocks.0": double, "blocks.7": shift}),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_an_sae_stands_in_with_its_reconstruction_in_its_own_dtype():
    model = tiny.random_model("llama").bfloat16()
    sae = restore(
        "sae", {"d_in": tiny.WIDTH, "latents": 64, "sparsity": "topk", "k": 4}, sae_tensors()
    )
    with saekit.capture(model, "blocks.1") as states:
        logits(model)
    want = (
        sae(states["blocks.1"].flatten(0, 1).float()).x_hat.bfloat16().view_as(states["blocks.1"])
    )
    with saekit.splice(model, "blocks.1", sae), saekit.capture(model, "blocks.1") as states:
        logits(model)
    assert torch.equal(states["blocks.1"], want)


def test_a_change_of_another_shape_and_half_a_call_are_refused():
    model = tiny.random_model("llama")
    with pytest.raises(DataError, match=r"returned \(14, 5\) for rows of shape \(14, 32\)"):
        with saekit.splice(model, "blocks.1", lambda x: x[:, :5]):
            logits(model)
    for given in (("blocks.1",), ({"blocks.1": abs}, abs)):
        with pytest.raises(TypeError, match="a hook and a change"), saekit.splice(model, *given):
            pass


def sae_tensors() -> dict[str, torch.Tensor]:
    W_dec = torch.nn.functional.normalize(torch.randn(64, tiny.WIDTH), dim=1)
    return {
        "W_enc": W_dec.clone(),
        "b_enc": torch.zeros(64),
        "W_dec": W_dec,
        "b_dec": torch.zeros(tiny.WIDTH),
    }

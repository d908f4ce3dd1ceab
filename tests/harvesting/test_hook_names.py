"""Hooks by TransformerLens' and nnsight's names, and the states inside attention, against attention
that is written out here."""

from __future__ import annotations

import math

import families as fam
import pytest
import tiny
import torch
import torch.nn.functional as nnF

from saekit.errors import DataError
from saekit.harvesting.hook_names import names_of
from saekit.harvesting.hooks import capture, list_hooks, resolve_hook, stream_hooks
from saekit.interop.hook_spellings import portable, translated
from saekit.intervention.splice import splice

QKVZ = [f"blocks.1.attn.{name}" for name in "qkvz"]


def states_of(model, hooks):
    with torch.no_grad(), capture(model, hooks) as states:
        model(tiny.ids())
    return states


def attended(q_BTE, k_BTE, v_BTE, heads):
    """z (B,T,E) of causal attention without position embeddings."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BTE, k_BTE, v_BTE))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    after = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(after, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_gpt2s_columns_are_its_queries_keys_and_values():
    model = tiny.random_model("gpt2")
    states = states_of(model, [*QKVZ, "blocks.1.attn"])
    q, k, v, z = (states[hook] for hook in QKVZ)
    torch.testing.assert_close(z, attended(q, k, v, heads=4))
    projection = model.transformer.h[1].attn.c_proj
    torch.testing.assert_close(states["blocks.1.attn"], projection(z).detach())
    assert resolve_hook(model, "blocks.1.attn.k") == "transformer.h.1.attn.c_attn:k"
    assert resolve_hook(model, "transformer.h.1.attn.c_attn:k") == "transformer.h.1.attn.c_attn:k"
    assert resolve_hook(model, "blocks.1.attn.z") == "transformer.h.1.attn.c_proj:in"


def test_interleaved_heads_are_put_side_by_side():
    """GPT-NeoX: the projection gives q, k and v head by head; its rotary embeddings are turned
    here, on a quarter of each head."""
    model = tiny.random_model("gpt_neox")
    q, k, v, z = (states_of(model, QKVZ)[hook] for hook in QKVZ)
    heads = 4
    positions = torch.arange(q.shape[1])[None]
    cos, sin = model.gpt_neox.rotary_emb(q, positions)
    turned = []
    for x in (q, k):
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        size = cos.shape[-1]
        part, rest = x[..., :size], x[..., size:]
        first, second = part.chunk(2, -1)
        part = part * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
        turned.append(torch.cat([part, rest], -1).transpose(1, 2).flatten(2))
    torch.testing.assert_close(z, attended(*turned, v, heads).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("llama", "self_attn.q_proj"),
        ("gemma2", "self_attn.q_proj"),
        ("phi3", "self_attn.qkv_proj:q"),
        ("falcon", "self_attention.query_key_value:q"),
        ("falcon, new", "self_attention.query_key_value:q"),
        ("mpt", "attn.Wqkv:q"),
        ("gpt_bigcode", "attn.c_attn:q"),
    ],
)
def test_queries_are_where_the_architecture_has_them(family, path):
    model = fam.model_of(fam.CAUSAL[family])
    assert resolve_hook(model, "blocks.1.attn.hook_q").endswith(f".1.{path}")


def test_another_order_of_the_projection_is_refused():
    """CodeGen's is query, value, key of four slices: v is proven, and nothing is guessed."""
    model = fam.model_of(fam.CAUSAL["codegen"])
    with pytest.raises(DataError, match=r"blocks.1.attn.q is not available on .*cannot be proven"):
        resolve_hook(model, "blocks.1.attn.q")
    assert resolve_hook(model, "blocks.1.attn.hook_z").endswith("1.attn.out_proj:in")


NAMES = {
    "hook_resid_post": "blocks.1",
    "hook_out": "blocks.1",
    "hook_resid_pre": "blocks.1:in",
    "hook_in": "blocks.1:in",
    "hook_mlp_out": "blocks.1.mlp",
    "hook_attn_out": "blocks.1.attn",
    "attn.hook_z": "blocks.1.attn.z",
    "attn.q.hook_out": "blocks.1.attn.q",
    "mlp.hook_in": "blocks.1.mlp:in",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_name_of_transformer_lens_is_one_of_ours(family, name):
    model = tiny.random_model(family)
    assert resolve_hook(model, f"blocks.1.{name}") == resolve_hook(model, NAMES[name])


def test_the_state_in_the_middle_of_a_block():
    model, mid = tiny.random_model("llama"), "blocks.1.hook_resid_mid"
    states = states_of(model, [mid, "blocks.1:in", "blocks.1.attn", "blocks.1.mlp", "blocks.1"])
    assert torch.equal(states[mid], states["blocks.1:in"] + states["blocks.1.attn"])
    assert torch.equal(states[mid] + states["blocks.1.mlp"], states["blocks.1"])
    # changed, it goes on in the stream, and is what the MLP reads
    with splice(model, mid, lambda x: 2 * x):
        changed = states_of(model, ["blocks.1.mlp", "blocks.1"])
    block = model.model.layers[1]
    mlp = block.mlp(block.post_attention_layernorm(2 * states[mid])).detach()
    torch.testing.assert_close(changed["blocks.1.mlp"], mlp)
    torch.testing.assert_close(changed["blocks.1"], 2 * states[mid] + mlp)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "cohere"])
def test_a_parallel_block_has_no_state_in_its_middle(family):
    model = fam.model_of(fam.CAUSAL[family])
    with pytest.raises(DataError, match=r"hook_resid_mid is not available on .*run in parallel"):
        resolve_hook(model, "blocks.1.hook_resid_mid")


@pytest.mark.parametrize("name", ["hook_resid_post", "hook_resid_mid"])
def test_a_sum_before_a_norm_is_refused_by_name(name):
    model = tiny.random_model("bert")
    with pytest.raises(DataError, match=f"{name} is not available on .* norm"):
        resolve_hook(model, f"blocks.1.{name}")
    assert resolve_hook(model, "blocks.1.hook_resid_pre") == "encoder.layer.1:in"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_normalized_state_lacks_gain_and_bias(family):
    model = fam.model_of(fam.CAUSAL[family])
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    hook, x = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_in"
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad(), capture(model, [hook, x, "blocks.1.mlp:in"]) as states:
        model(ids)
    with torch.no_grad(), splice(model, hook, lambda x: x.flip(-1)):
        with capture(model, "blocks.1.mlp:in") as flipped:
            model(ids)
    norm = model.get_submodule(resolve_hook(model, hook).removesuffix(":normalized"))
    if family == "gpt2":
        expected = nnF.layer_norm(states[x], states[x].shape[-1:], eps=norm.eps)
        gain, bias = norm.weight, norm.bias
    else:
        epsilon = norm.eps if family == "gemma2" else norm.variance_epsilon
        expected = states[x] / (states[x].square().mean(-1, keepdim=True) + epsilon).sqrt()
        gain, bias = norm.weight + (family == "gemma2"), 0
    torch.testing.assert_close(states[hook], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        flipped["blocks.1.mlp:in"], (gain * expected.flip(-1) + bias).detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("hook", ["blocks.1.attn.k", "blocks.1.attn.v", "blocks.1.attn.z"])
def test_a_change_of_some_tokens_keeps_the_bits_of_the_others(hook):
    model = tiny.random_model("gpt2")
    mask_BT = torch.zeros(tiny.ids().shape, dtype=torch.bool)
    mask_BT[1, 3] = True
    before = states_of(model, [hook, *QKVZ])
    with splice(model, hook, lambda x: 0 * x, mask_BT):
        after = states_of(model, [hook, *QKVZ])
    assert not after[hook][mask_BT].any()
    assert torch.equal(after[hook][~mask_BT], before[hook][~mask_BT])
    for other in set(QKVZ[:3]) - {hook}:
        assert torch.equal(after[other], before[other])


@pytest.mark.parametrize(
    ("hook", "canonical"),
    [
        ("transformer.h[1].output[0]", "transformer.h.1"),
        ("transformer.h[1].output", "transformer.h.1"),
        ("transformer.h.1.input", "transformer.h.1:in"),
        ("h[1].inputs[0][0]", "transformer.h.1:in"),
        ("transformer.h[1].mlp.output", "transformer.h.1.mlp"),
        ("model.h.1", "transformer.h.1"),
        ("resid_post_layer_1", "transformer.h.1"),
        ("mlp_out_layer_1", "transformer.h.1.mlp"),
    ],
)
def test_paths_of_nnsight_and_names_of_dictionary_learning(hook, canonical):
    assert resolve_hook(tiny.random_model("gpt2"), hook) == canonical


def test_a_module_that_is_called_output_keeps_its_name():
    model = tiny.random_model("bert")
    assert resolve_hook(model, "encoder.layer.1.output") == "encoder.layer.1.output"


@pytest.mark.parametrize(
    ("hook", "cause"),
    [
        ("blocks.1.attn.hook_pattern", "blocks.1.attn.hook_pattern is not a hook that"),
        ("blocks.1.attn.z:in", "blocks.1.attn.z has no :in"),
        ("blocks.7.hook_resid_post", "not a module of gpt2 .3 blocks, blocks.0 to blocks.2"),
        ("transformer.h.1.mlp:q", "transformer.h.1.mlp:q is not a state that"),
    ],
)
def test_other_names_are_refused(hook, cause):
    model = tiny.random_model("gpt2")
    model.name_or_path = "gpt2"
    with pytest.raises(DataError, match=cause):
        resolve_hook(model, hook)


def test_a_misspelled_name_has_a_near_one():
    with pytest.raises(DataError) as error:
        resolve_hook(tiny.random_model("llama"), "blocks.1.hook_mlpout")
    assert "did you mean hook_mlp_out?" in error.value.hint


def test_a_module_that_has_not_run_takes_their_names_for_ours():
    """Its own first pass proves an alias; what only a pass can find is refused before it."""

    class Own(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            return self.inner(ids)

    model = Own(tiny.random_model("llama").model)
    with torch.no_grad(), capture(model, ["blocks.1.hook_resid_post", "blocks.1"]) as states:
        model(tiny.ids())
    assert torch.equal(states["blocks.1.hook_resid_post"], states["blocks.1"])
    fresh = Own(tiny.random_model("llama").model)
    with pytest.raises(DataError, match=r"cannot be found before .* has run"):
        resolve_hook(fresh, "blocks.1.attn.q")


def test_the_list_has_their_name_beside_ours():
    rows = {row.alias: row for row in list_hooks(tiny.random_model("gpt2"))}
    assert rows["blocks.1"].transformer_lens == "blocks.1.hook_resid_post"
    assert rows["blocks.1.attn.z"] == (
        "blocks.1.attn.z",
        "transformer.h.1.attn.c_proj:in",
        "blocks.1.attn.hook_z",
    )
    assert stream_hooks(tiny.random_model("gpt2")) == {
        f"transformer.h.{n}{part}" for n in range(3) for part in ("", ".attn", ".mlp", ":mid")
    }


def test_names_that_can_be_compared_without_a_model():
    same = ["blocks.8.hook_resid_post", "blocks.9.hook_resid_pre", "blocks.9:in", "blocks.8"]
    same += ["model.layers.8", "layers.8", "model.layers[8].output", "transformer.h.9:in"]
    same += ["resid_post_layer_8", "encoder.layer.8"]
    assert {portable(hook) for hook in same} == {"blocks.8"}
    assert portable("blocks.0.hook_resid_pre") == portable("model.layers.0:in") == "blocks.0:in"
    assert portable("model.layers.8.mlp") == "model.layers.8.mlp"
    assert portable("blocks.8.attn.hook_z") == translated("blocks.8.hook_z") == "blocks.8.attn.z"
    written = ["blocks.9.hook_resid_pre.output", "blocks.8.hook_resid_post.output"]
    assert {portable(hook) for hook in written} == {"blocks.8"}
    assert portable("blocks.8.hook_mlp_out.output") == "blocks.8.mlp"


def test_a_hook_knows_all_its_names():
    model = tiny.random_model("gpt2")
    assert names_of(model, "transformer.h.1") == ["blocks.1"]
    assert names_of(model, "transformer.h.1.mlp:in") == ["blocks.1.mlp:in", "blocks.1.mlp.hook_in"]
    assert names_of(model, "transformer.wte") == []

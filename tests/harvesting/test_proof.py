"""Hooks that are proven, refused or copied, on models whose module names would mislead; and that
the proof leaves no trace."""

from __future__ import annotations

import dataclasses

import families as fam
import pytest
import tiny
import torch
from torch import nn

from saekit.errors import DataError
from saekit.harvesting.anatomy import anatomy_of
from saekit.harvesting.hooks import block_list, capture, list_hooks, resolve_hook
from saekit.harvesting.models import load_model
from saekit.intervention.splice import splice

XLM = dict(
    emb_dim=24,
    n_layers=2,
    n_heads=4,
    n_words=fam.VOCAB,
    vocab_size=fam.VOCAB,
    max_position_embeddings=48,
)
JAMBA = dict(fam.KV, num_hidden_layers=4, num_experts=2, attn_layer_period=4, attn_layer_offset=2,
expert_layer_period=4,
             expert_layer_offset=3, mamba_d_state=4, mamba_dt_rank=4,
             use_mamba_kernels=False)  # fmt: skip
HYBRID = ["mamba", "mamba", "hybrid", "mamba", "hybrid"]
ZAMBA = dict(fam.TEXT, num_hidden_layers=5, num_key_value_heads=4, mamba_d_state=8,
mamba_headdim=8, n_mamba_heads=6, mamba_ngroups=1,
             chunk_size=16, num_mem_blocks=1, adapter_rank=4, layers_block_type=HYBRID)  # fmt: skip
SWIN = dict(
    embed_dim=8, depths=[2, 3], num_heads=[2, 2], window_size=2, image_size=16, patch_size=2
)


def ids(length: int = 8) -> torch.Tensor:
    return torch.randint(3, fam.VOCAB, (2, length), generator=torch.Generator().manual_seed(2))


# -- blocks by their chain -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "path", "count"),
    [
        (("JambaForCausalLM", "JambaConfig", JAMBA), "model.layers", 4),
        (("Zamba2ForCausalLM", "Zamba2Config", ZAMBA), "model.layers", 5),
    ],
)
def test_blocks_of_two_classes_are_found_by_their_chain(entry, path, count):
    model, outputs = fam.model_of(entry), []
    assert block_list(model) == path
    handles = [
        layer.register_forward_hook(
            lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.get_submodule(path)
    ]
    with torch.no_grad(), capture(model, [f"blocks.{index}" for index in range(count)]) as states:
        model(ids())
    for handle in handles:
        handle.remove()
    assert len(outputs) == count and all(
        torch.equal(states[f"blocks.{i}"], output) for i, output in enumerate(outputs)
    )


def test_a_part_that_a_block_has_not_is_refused_with_the_nearest_block_that_has_it():
    model = fam.model_of(("JambaForCausalLM", "JambaConfig", JAMBA))
    with pytest.raises(
        DataError,
        match=r"blocks.0.attn is not available on .*: block 0 \(JambaMamba\w+\) has no module",
    ) as raised:
        resolve_hook(model, "blocks.0.attn")
    assert (
        raised.value.hint.startswith('hook="blocks.2.attn",')
        and resolve_hook(model, "blocks.2.attn") == "model.layers.2.self_attn"
    )


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (
            ("XLMModel", "XLMConfig", XLM),
            "no list of modules in which each takes the output of the previous one",
        ),
        (
            ("XLMModel", "XLMConfig", dict(XLM, n_layers=1)),
            "several lists of one module, and any of them may be its blocks",
        ),
        (
            ("FlaubertModel", "FlaubertConfig", XLM),
            "no list of modules in which each takes the output of the previous one",
        ),
        (
            ("AlbertModel", "AlbertConfig", dict(fam.TEXT, embedding_size=12)),
            r"albert_layer_groups.0 runs 2 times in a forward pass",
        ),
        (
            (
                "XLNetModel",
                "XLNetConfig",
                dict(d_model=24, n_layer=2, n_head=4, d_inner=40, vocab_size=fam.VOCAB),
            ),
            r"of shape \(5, 2, 24\)",
        ),
        (
            ("SwinModel", "SwinConfig", SWIN),
            r"its blocks lie in 2 lists \(encoder.layers.0.blocks, encoder.layers.1.blocks\)",
        ),
    ],
)
def test_models_without_a_chain_are_refused_by_name(entry, cause):
    model = fam.model_of(entry)
    for refused in (lambda: resolve_hook(model, "blocks.0"), lambda: list_hooks(model)):
        with pytest.raises(DataError, match=cause) as raised:
            refused()
        assert raised.value.exit_status == 3
    hint = raised.value.hint
    if "input_ids" in model.forward.__code__.co_varnames and hint.startswith("hook"):
        path = hint.removeprefix('hook="').split('"')[0]
        with torch.no_grad(), capture(model, path) as states:
            model(input_ids=ids())
        assert states[path].ndim == 3, "the hint works"


def test_a_convolution_between_two_blocks_takes_the_first_ones_alias():
    config = dict(fam.DEBERTA_2, num_hidden_layers=3, conv_kernel_size=3, conv_act="gelu")
    model = fam.model_of(("DebertaV2Model", "DebertaV2Config", config))
    assert [row.alias for row in list_hooks(model) if row.alias.count(".") == 1] == [
        "blocks.1",
        "blocks.2",
    ]
    with pytest.raises(
        DataError,
        match=(
            r"blocks.0 is not the residual stream of .*: its output is not the input of block 1"
        ),
    ):
        resolve_hook(model, "blocks.0")
    assert resolve_hook(model, "blocks.0:in") == "encoder.layer.0:in"


def test_a_truncated_model_keeps_the_blocks_that_run():
    model = fam.model_of(fam.CAUSAL["llama"])
    assert {row.alias.split(".")[1] for row in list_hooks(model)} == {"0", "1"}
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    assert [row.alias for row in list_hooks(model)] == [
        "blocks.0",
        "blocks.0.attn",
        "blocks.0.mlp",
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.0.attn.v",
        "blocks.0.attn.z",
        "blocks.0.hook_resid_mid",
    ], "the cache knows the structure"


# -- modules that give no hidden states ------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "hook", "cause"),
    [
        ("llama", "model.rotary_emb", r"gives a tensor \(1, 5, 8\) for 2 inputs of 5 tokens"),
        ("gpt_neox", "gpt_neox.rotary_emb", "for 2 inputs of 5 tokens"),
        ("gpt2", "transformer.wpe", r"gives a tensor \(1, 5, 32\)"),
        ("bert", "embeddings.token_type_embeddings", "the same vectors for all tokens"),
        ("bert", "pooler.dense", r"gives a tensor \(2, 32\)"),
        ("llama", "model", "gives BaseModelOutputWithPast"),
        ("llama", "model.layers", "did not run in this forward pass"),
        ("vit", "embeddings.patch_embeddings.projection", r"\(2, 32, 4, 4\)"),
        ("clip", "text_model.final_layer_norm", "did not run in this forward pass"),
    ],
)
def test_a_module_without_hidden_states_is_refused_with_a_hook_that_works(
    live, family, hook, cause
):
    loaded = live(family)
    with pytest.raises(DataError, match=cause) as raised:
        loaded.probe([hook])
    assert raised.value.exit_status == 3
    instead = raised.value.hint.removeprefix('hook="').split('"')[0]
    assert loaded.probe([instead]) == {instead: tiny.WIDTH}


class Looped(nn.Module):
    """One layer that runs three times."""

    def __init__(self, times: int = 3):
        super().__init__()
        self.layer, self.times = nn.Linear(4, 4), times

    def forward(self, x):
        for _ in range(self.times):
            x = x + self.layer(x)
        return x


def test_a_module_that_runs_several_times_in_a_pass_is_refused():
    model, x = Looped(), torch.randn(2, 3, 4)
    with (
        torch.no_grad(),
        pytest.raises(DataError, match="layer runs more than once in one forward pass"),
        capture(model, "layer"),
    ):
        model(x)
    once = Looped(1)
    with torch.no_grad(), capture(once, "layer") as states:
        once(x)
        once(2 * x)  # another pass
    assert torch.equal(states["layer"], once.layer(2 * x))
    albert = fam.model_of(("AlbertModel", "AlbertConfig", dict(fam.TEXT, embedding_size=12)))
    for use in (
        lambda path: capture(albert, path, stop=True),
        lambda path: splice(albert, path, lambda x: x),
    ):
        with (
            pytest.raises(DataError, match=r"albert_layers.0.ffn_output runs 2 times"),
            use("encoder.albert_layer_groups.0.albert_layers.0.ffn_output"),
        ):
            albert(input_ids=ids())


# -- tensors that stay what they were --------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["falcon", "falcon, new"])
def test_a_state_that_the_model_adds_to_later_is_kept_as_it_was(name, grad):
    model = fam.model_of(fam.CAUSAL[name])
    with torch.set_grad_enabled(grad):
        with capture(model, "blocks.1.mlp", stop=True) as alone:
            model(ids())
        with capture(model, ["blocks.1.mlp", "blocks.1"]) as together:
            model(ids())
    assert torch.equal(alone["blocks.1.mlp"], together["blocks.1.mlp"])
    assert together["blocks.1.mlp"].requires_grad == grad


def test_gradients_by_a_captured_state_are_the_models_own():
    model = fam.model_of(fam.CAUSAL["llama"])
    with capture(model, "blocks.0") as states:
        loss = model(ids()).logits.square().sum()
    (slope,) = torch.autograd.grad(loss, states["blocks.0"])
    assert slope.shape == states["blocks.0"].shape and slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "attn", "mlp"),
    [("gemma3", "self_attn", "mlp"), ("glm4", "self_attn", "mlp"), ("llama", "self_attn", "mlp")],
)
def test_the_input_of_a_part_is_its_own_where_a_norm_gives_its_output(name, attn, mlp):
    model = fam.model_of(fam.CAUSAL[name])
    assert resolve_hook(model, "blocks.1.mlp:in") == f"model.layers.1.{mlp}:in"
    assert resolve_hook(model, "blocks.1.attn:in") == f"model.layers.1.{attn}:in"


# -- the user's model ------------------------------------------------------------------------------


def test_the_proof_changes_nothing_of_the_users_model():
    model = fam.model_of(fam.ENCODERS["bert"]).train()
    model.encoder.layer[0].eval()
    model.embeddings.word_embeddings.requires_grad_(False)
    model.register_buffer("passes", torch.zeros(1))
    calls = []

    def count(*_):
        model.passes.add_(1)

    model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    model.encoder.layer[1].output.register_forward_hook(count)
    modes = {name: module.training for name, module in model.named_modules()}
    wants = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert [row.alias for row in list_hooks(model)][:3] == [
        "blocks.0",
        "blocks.0.attn",
        "blocks.0.mlp",
    ]
    assert torch.equal(torch.rand(2), expected) and not calls and model.passes == 0
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert wants == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())
    hidden = model(input_ids=ids(), output_hidden_states=True).hidden_states
    assert len(hidden) == 3 and calls == [1] and model.passes == 1, "its own hooks are there again"


def test_a_model_that_exchanges_its_modules_is_put_back_and_not_harvested(tmp_path):
    from transformers import BigBirdConfig, BigBirdModel

    BigBirdModel(BigBirdConfig(**fam.TEXT)).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    with pytest.raises(DataError, match="replaces its own modules when an input is short"):
        loaded.probe(["blocks.0"])
    assert loaded.module.attention_type == "block_sparse"
    assert (
        type(loaded.module.encoder.layer[0].attention.self).__name__
        == "BigBirdBlockSparseAttention"
    )


class Scaled(nn.Module):
    """A block whose attention is scaled inline, in a model that does not say what it takes."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm, self.scale = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            scale,
        )

    def forward(self, x):
        x = x + self.attn(x) * self.scale
        return x + self.mlp(self.norm(x))


class Plain(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body = nn.ModuleList([Scaled(scale) for _ in range(2)])

    def forward(self, x):
        for block in self.body:
            x = block(x)
        return x


@pytest.mark.parametrize("stop", [False, True])
def test_on_a_plain_module_the_first_pass_is_the_proof(stop):
    model, x = Plain(0.5), torch.randn(2, 3, 4)
    with (
        torch.no_grad(),
        pytest.raises(DataError, match=r"blocks.1.attn is not available on Plain"),
        capture(model, "blocks.1.attn", stop=stop),
    ):
        model(x)
    assert anatomy_of(model).proven
    with pytest.raises(DataError, match=r"blocks.1.attn is not available on Plain"):
        resolve_hook(model, "blocks.1.attn")
    with torch.no_grad(), capture(model, ["blocks.1.mlp", "body.1.attn"], stop=stop) as states:
        model(x)
    assert states["blocks.1.mlp"].shape == (2, 3, 4)
    honest = Plain(1.0)
    with (
        torch.no_grad(),
        capture(
            honest, ["blocks.0:in", "blocks.0.attn", "blocks.0.mlp", "blocks.0"], stop=stop
        ) as states,
    ):
        honest(x)
    torch.testing.assert_close(
        states["blocks.0:in"] + states["blocks.0.attn"] + states["blocks.0.mlp"], states["blocks.0"]
    )


def test_splicing_a_plain_modules_alias_is_proven_too():
    x = torch.randn(2, 3, 4)
    with (
        torch.no_grad(),
        pytest.raises(DataError, match=r"blocks.0.attn is not available"),
        splice(model := Plain(0.5), "blocks.0.attn", lambda s: s),
    ):
        model(x)
    honest = Plain(1.0)
    with (
        torch.no_grad(),
        splice(honest, "blocks.1.mlp", lambda s: torch.zeros_like(s)),
        capture(honest, "blocks.1.mlp:in") as states,
    ):
        output = honest(x)
    block = honest.body[1]
    entering = honest.body[0](x)
    torch.testing.assert_close(output, entering + block.attn(entering))
    assert states["blocks.1.mlp:in"].shape == x.shape


class OwnBlocks(nn.Module):
    """Its list of blocks is called `blocks`, as the alias is."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scaled(scale) for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_list_called_blocks_does_not_let_a_wrong_alias_through():
    x = torch.randn(2, 3, 4)
    for _ in range(2):  # before and after its first pass
        model = OwnBlocks(0.5)
        with (
            torch.no_grad(),
            pytest.raises(DataError, match=r"is not available on OwnBlocks"),
            capture(model, "blocks.0.attn"),
        ):
            model(x)
    with torch.no_grad(), capture(model, ["blocks.0.mlp", "blocks.1"]) as states:
        output = model(x)
    assert (
        torch.equal(states["blocks.1"], output)
        and resolve_hook(model, "blocks.0.mlp") == "blocks.0.mlp"
    )


def test_an_alias_that_no_pass_could_prove_is_refused():
    model, x = Plain(1.0), torch.randn(2, 3, 4)
    with (
        torch.no_grad(),
        pytest.raises(
            DataError, match="could not be proven: the model itself was not run"
        ) as raised,
    ):
        with capture(model, "blocks.0.mlp"):
            model.body[0](x)
    path = raised.value.hint.split('"')[1]
    with torch.no_grad(), capture(model, path) as states:
        model.body[0](x)
    assert states[path].shape == x.shape


def test_a_loaded_model_that_does_not_say_its_input_is_proven_by_its_own(live):
    class Silent(nn.Module):
        """Takes anything, as adapters around a model do."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    loaded = live("gpt2")
    wrapped = dataclasses.replace(loaded, module=Silent(fam.model_of(fam.CAUSAL["gemma2"])))
    assert not anatomy_of(wrapped.module).proven
    assert wrapped.probe(["blocks.1.mlp"]) == {"blocks.1.mlp": fam.WIDTH}
    assert (
        resolve_hook(wrapped.module, "blocks.1.mlp")
        == "inner.model.layers.1.post_feedforward_layernorm"
    )


def test_a_model_that_cannot_be_run_is_a_users_error_with_the_models_own_words(tmp_path):
    loaded = load_model(tiny.save("llama", tmp_path / "model"))
    loaded.module.model.layers[1].mlp.down_proj = nn.Linear(7, tiny.WIDTH)
    with pytest.raises(
        DataError, match=r"fails in its forward pass.*shapes cannot be multiplied"
    ) as raised:
        loaded.probe(["blocks.2"])
    assert raised.value.exit_status == 3 and isinstance(raised.value.__cause__, RuntimeError)

from __future__ import annotations

import pytest
import tiny as tiny
import torch
from torch import nn

from saekit.errors import DataError
from saekit.harvesting.hooks import block_list, capture, list_hooks, resolve_hook

FAMILIES = [*tiny.TEXT, *tiny.VISION]
BLOCKS = {
    "gpt2": "transformer.h", "llama": "model.layers", "gpt_neox": "gpt_neox.layers",
    "bloom": "transformer.h",
    "bert": "encoder.layer", "clip": "vision_model.encoder.layers",
    "siglip": "vision_model.encoder.layers",
    "dinov2": "encoder.layer", "dinov2_registers": "encoder.layer",
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return tiny.random_model(family)


def tower(model, family):
    return model.vision_model if family in ("clip", "siglip") else model


def hook_count(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def inputs(family):
    return {"input_ids": tiny.ids()} if family in tiny.TEXT else {"pixel_values": tiny.pixels()}


def run(model, family, **extra):
    with torch.no_grad():
        return tower(model, family)(**inputs(family), **extra)


def test_block_outputs_equal_output_hidden_states(model, family):
    hooks = [f"blocks.{index}" for index in range(tiny.LAYERS)]
    with capture(model, hooks) as states:
        output = run(model, family, output_hidden_states=True)
    # hidden_states[0] is the embedding; the last may have the final norm applied, depending on the
    # family.
    for index in range(tiny.LAYERS - 1):
        torch.testing.assert_close(
            states[hooks[index]], output.hidden_states[index + 1], rtol=0, atol=0
        )
    with capture(model, [f"blocks.{index}:in" for index in range(tiny.LAYERS)]) as entering:
        run(model, family)
    for index in range(tiny.LAYERS):
        torch.testing.assert_close(
            entering[f"blocks.{index}:in"], output.hidden_states[index], rtol=0, atol=0
        )


def test_blocks_are_found_by_structure(model, family):
    assert block_list(model) == BLOCKS.get(family, block_list(model))
    assert len(model.get_submodule(block_list(model))) == tiny.LAYERS
    assert resolve_hook(model, "blocks.1") == f"{block_list(model)}.1"
    assert resolve_hook(model, f"{block_list(model)}.1:in") == f"{block_list(model)}.1:in"


def test_stopping_gives_the_same_values_and_runs_nothing_later(model, family):
    with capture(model, ["blocks.0", "blocks.1"]) as full:
        run(model, family)
    own_hooks = hook_count(model)  # transformers keeps hooks of its own
    calls = [0] * tiny.LAYERS
    blocks = model.get_submodule(block_list(model))
    counters = [
        block.register_forward_pre_hook(
            lambda *_, index=index: calls.__setitem__(index, calls[index] + 1)
        )
        for index, block in enumerate(blocks)
    ]
    with capture(model, ["blocks.0", "blocks.1"], stop=True) as stopped:
        run(model, family)
        pytest.fail("the body goes on after the forward pass")
    for counter in counters:
        counter.remove()
    assert calls == [1, 1, 0]
    for name in full:
        torch.testing.assert_close(stopped[name], full[name], rtol=0, atol=0)
    assert hook_count(model) == own_hooks


def test_a_stopped_pass_leaves_the_model_usable(model, family):
    before = run(model, family, output_hidden_states=True).hidden_states
    with capture(model, "blocks.0", stop=True):
        run(model, family, output_hidden_states=True)
    after = run(model, family, output_hidden_states=True).hidden_states
    assert len(after) == len(before) == tiny.LAYERS + 1
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)


def test_attn_and_mlp_are_what_is_added_to_the_residual_stream(model, family):
    """block output = input + attn + mlp, up to BERT's norms."""
    with capture(model, ["blocks.1:in", "blocks.1.attn", "blocks.1.mlp", "blocks.1"]) as states:
        run(model, family)
    before, attn, mlp, after = (
        states[name] for name in ("blocks.1:in", "blocks.1.attn", "blocks.1.mlp", "blocks.1")
    )
    block = model.get_submodule(resolve_hook(model, "blocks.1"))
    if family == "bert":
        middle = block.attention.output.LayerNorm(before + attn)
        expected = block.output.LayerNorm(middle + mlp)
    else:
        expected = before + attn + mlp
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


def test_aliases_are_listed_with_their_paths(model, family):
    rows = list_hooks(model)
    assert [row.alias for row in rows[:3]] == ["blocks.0", "blocks.0.attn", "blocks.0.mlp"]
    added = [row for row in rows if row.alias.endswith((".attn", ".mlp"))]
    assert len(added) == 2 * tiny.LAYERS
    assert all(
        resolve_hook(model, row.alias) == row.path == resolve_hook(model, row.path) for row in rows
    )


def test_berts_parts_are_the_dense_layers_before_residual_and_norm():
    model = tiny.random_model("bert")
    assert resolve_hook(model, "blocks.2.attn") == "encoder.layer.2.attention.output.dense"
    assert resolve_hook(model, "blocks.2.mlp") == "encoder.layer.2.output.dense"


def test_paths_of_the_bare_model_work_on_the_model_with_a_head():
    model = tiny.random_model("gpt2")
    assert resolve_hook(model, "h.2.mlp") == "transformer.h.2.mlp"
    assert resolve_hook(model.transformer, "transformer.h.2.mlp") == "h.2.mlp"
    assert resolve_hook(model, "blocks.2.mlp.c_fc") == "transformer.h.2.mlp.c_fc"


@pytest.mark.parametrize(
    ("hook", "cause", "hint"),
    [
        (
            "h.60",
            "h.60 is not a module of gpt2 (3 blocks, h.0 to h.2)",
            'hook="h.2", or saekit harvest gpt2 --list-hooks',
        ),
        (
            "blocks.3",
            "blocks.3 is not a module of gpt2 (3 blocks, blocks.0 to blocks.2)",
            'hook="blocks.2", or',
        ),
        (
            "blocks.1.moe",
            "blocks.1.moe is not a module of gpt2 (3 blocks, blocks.0 to blocks.2)",
            'hook="blocks.1", or',
        ),
        (
            "nonsense:in",
            "nonsense is not a module of gpt2 (3 blocks, blocks.0 to blocks.2)",
            'hook="blocks.2", or',
        ),
    ],
)
def test_an_unknown_hook_names_model_range_and_next_step(hook, cause, hint):
    with pytest.raises(DataError) as raised:
        resolve_hook(tiny.random_model("gpt2"), hook, "gpt2")
    assert raised.value.message == cause
    assert raised.value.hint.startswith(hint) and raised.value.exit_status == 3


def test_an_output_that_is_no_hidden_state_is_named():
    model = tiny.random_model("vit")
    with pytest.raises(
        DataError,
        match=(
            r"embeddings.patch_embeddings.projection gives a tensor \(2, 32, 4, 4\) of"
            r" torch.float32"
        ),
    ):
        with torch.no_grad(), capture(model, "embeddings.patch_embeddings.projection"):
            model(tiny.pixels())
    assert hook_count(model) == 0


def test_a_hook_that_never_fires_is_named_when_stopping():
    model = tiny.random_model("vit")
    with pytest.raises(DataError, match=r"blocks.1 did not run in this forward pass"):
        with capture(model, ["blocks.1"], stop=True):
            pass


def test_other_exceptions_pass_and_hooks_go():
    model = tiny.random_model("gpt2")
    with pytest.raises(KeyError):
        with capture(model, ["blocks.1"], stop=True):
            raise KeyError("user")
    assert hook_count(model) == 0


def test_the_mapping_is_of_the_last_forward_pass():
    model = tiny.random_model("gpt2")
    with torch.no_grad(), capture(model, "transformer.h.0") as states:
        model(tiny.ids(1, 4))
        model(tiny.ids(2, 7))
    assert states["transformer.h.0"].shape == (2, 7, tiny.WIDTH)


def test_a_plain_module_with_a_list_of_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Linear(4, 4)

        def forward(self, hidden_states):
            return hidden_states + self.mlp(hidden_states)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([Block() for _ in range(2)])

        def forward(self, x):
            for block in self.body:
                x = block(hidden_states=x)  # by keyword, as some models call their blocks
            return x

    model, x_BTD = Net(), torch.randn(2, 3, 4)
    with torch.no_grad(), capture(model, ["blocks.1:in", "blocks.1.mlp"]) as states:
        output = model(x_BTD)
    torch.testing.assert_close(states["blocks.1:in"] + states["blocks.1.mlp"], output)
    assert resolve_hook(model, "blocks.1.mlp") == "body.1.mlp"
    with pytest.raises(
        DataError,
        match=(
            r"blocks.1.attn is not available on Net: block 1 \(Block\) has no module of that name"
        ),
    ):
        resolve_hook(model, "blocks.1.attn")

"""TransformerLens' names of hooks: its states and ours on the same model.

TransformerLens needs an environment of its own, which `make interop` makes; elsewhere these tests
are skipped.
"""

from __future__ import annotations

import copy
import functools
import tempfile

import pytest
import tiny
import torch

from saekit.errors import DataError
from saekit.harvesting.hooks import capture, list_hooks, resolve_hook
from saekit.intervention.splice import splice

pytest.importorskip("transformer_lens", reason="only in the environment of `make interop`")

SHAPE = dict(tiny.SHAPE, vocab_size=tiny.VOCAB, max_position_embeddings=64)
SHARED = dict(SHAPE, num_key_value_heads=2, head_dim=16)  # heads that share a key and a value
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", tiny.GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", dict(SHAPE, num_key_value_heads=2)),
    "pythia": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", SHARED),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", SHARED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", dict(SHAPE, num_key_value_heads=2)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHARED),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dict(SHAPE, num_key_value_heads=2, pad_token_id=0)),
}
NAMES = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_z",
    "ln1.hook_normalized",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "mlp.hook_out",
    "mlp.hook_post",
    "attn.hook_in",
    "attn.hook_out",
    "hook_in",
    "hook_out",
]


@functools.lru_cache
def model_of(family: str) -> torch.nn.Module:
    """Random, gains and biases of norms included, on which a fold would show; with weights so
    large that every state has an effect."""
    import transformers

    model_class, config_class, config = MODELS[family]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.2)
    return model.eval()


@functools.lru_cache
def bridge_of(family: str):
    """TransformerLens' bridge, which runs the model's weights as they are."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model_of(family).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=copy.deepcopy(model_of(family)), device="cpu", dtype=torch.float32
        )


@functools.lru_cache
def theirs_of(family: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(bridge_of(family).run_with_cache(tiny.ids())[1].items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", MODELS)
def test_the_same_name_is_the_same_state(family, name):
    model, hook, theirs = model_of(family), f"blocks.1.{name}", theirs_of(family)
    if hook not in theirs:
        # a parallel block has no state in the middle
        assert family == "pythia" and name == "hook_resid_mid"
        with pytest.raises(DataError, match="run in parallel"):
            resolve_hook(model, hook)
        return
    with torch.no_grad(), capture(model, hook) as states:
        model(tiny.ids())
    other = theirs[hook]
    torch.testing.assert_close(states[hook], other.flatten(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_listed_names_are_theirs(family):
    names = [row.transformer_lens for row in list_hooks(model_of(family))]
    assert len(names) >= 7 * tiny.LAYERS and set(names) <= theirs_of(family).keys()


CHANGED = ["hook_resid_mid", "hook_attn_out", "attn.hook_q", "attn.hook_v", "attn.hook_z"]


@pytest.mark.parametrize("name", [*CHANGED, "ln2.hook_normalized"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3"])
def test_the_same_change_has_the_same_effect(family, name):
    model, hook = model_of(family), f"blocks.1.{name}"
    if hook == "blocks.1.hook_resid_mid":
        # the bridge's hook changes only what the MLP reads, HookedTransformer's the stream
        changes = {hook: lambda x: 0.5 * x}
        with torch.no_grad(), capture(model, [hook, "blocks.1.mlp", "blocks.1"]) as states:
            with splice(model, changes):
                model(tiny.ids())
        expected = 0.5 * theirs_of(family)[hook] + states["blocks.1.mlp"]
        torch.testing.assert_close(states["blocks.1"], expected, rtol=1e-5, atol=1e-5)
        return
    with torch.no_grad():
        expected = bridge_of(family).run_with_hooks(
            tiny.ids(), fwd_hooks=[(hook, lambda value, hook: 0.5 * value + 0.3)]
        )
        with splice(model, hook, lambda x: 0.5 * x + 0.3):
            logits = model(tiny.ids()).logits
        assert not torch.allclose(logits, model(tiny.ids()).logits, atol=1e-3)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

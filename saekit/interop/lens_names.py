"""The names that TransformerLens has for hooks, which SAELens, circuit-tracer, SAEDashboard and
Neuronpedia use: `blocks.9.hook_resid_post` for the residual stream after block 9.

A dictionary records the module path of its hook (`model.layers.9.mlp`), and what such a module adds
to the residual stream depends on the architecture: Gemma 2 adds the output of a norm after the MLP.
So modules inside a block have a name only in families whose blocks are known; any other hook keeps
its module path.
"""

from __future__ import annotations

import re

_NAMED = re.compile(r"blocks\.\d+\.(?:\w+\.)?hook_\w+")
_BLOCK = re.compile(
    r"(?:model\.|transformer\.|gpt_neox\.|decoder\.)*(?:layers|h|blocks)\.(?P<block>\d+)"
    r"(?:\.(?P<inside>[\w.]+))?(?P<state>:(?:in|mid|normalized))?"
)
_LAYER = re.compile(r"(?:^|[./_])(?:layers?|h|blocks)[._](\d+)(?=$|[./:_])")

_POST_NORM = re.compile(r"opt-350m|openai-gpt")  # other models with these paths are not
_OF_BLOCK = {"": "hook_resid_post", ":in": "hook_resid_pre", ":mid": "hook_resid_mid"}

# families, by the model's name -> module inside a block -> name in TransformerLens
_PRE_NORM = {
    "mlp": "hook_mlp_out",
    "mlp:in": "mlp.hook_in",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "attn.c_proj:in": "attn.hook_z",
    "self_attn.o_proj:in": "attn.hook_z",
    "attention.dense:in": "attn.hook_z",
    "ln_1:normalized": "ln1.hook_normalized",
    "ln_2:normalized": "ln2.hook_normalized",
    "input_layernorm:normalized": "ln1.hook_normalized",
    "post_attention_layernorm:normalized": "ln2.hook_normalized",
}
_NORMS_AFTER = {
    "pre_feedforward_layernorm": "mlp.hook_in",
    "post_feedforward_layernorm": "hook_mlp_out",
    "post_attention_layernorm": "hook_attn_out",
    "self_attn.o_proj:in": "attn.hook_z",
    "input_layernorm:normalized": "ln1.hook_normalized",
    "pre_feedforward_layernorm:normalized": "ln2.hook_normalized",
}
_FAMILIES = (
    (re.compile(r"gemma-[23]-", re.IGNORECASE), _NORMS_AFTER),  # gemma-2b is of the first version
    (re.compile(r"gpt2|pythia|gpt-neox|llama|mistral|qwen|smollm", re.IGNORECASE), _PRE_NORM),
)


def lens_name(hook: str | None, model: str | None) -> str | None:
    """TransformerLens' name of a hook (a module path of the text model `model`, with `:in` or
    `.input` for a module's input); None where it has no such name, or the path does not show
    it."""
    if hook is None or _NAMED.fullmatch(hook):
        return hook
    module = hook.removesuffix(".output")
    if module.endswith(".input"):
        module = module.removesuffix(".input") + ":in"
    match = _BLOCK.fullmatch(module)
    if match is None or _POST_NORM.search(model or ""):
        return None
    state = match["state"] or ""
    if match["inside"] is None:
        name = _OF_BLOCK.get(state)
    else:
        family = next((names for known, names in _FAMILIES if known.search(model or "")), {})
        name = family.get(match["inside"] + state)
    return None if name is None else f"blocks.{match['block']}.{name}"


def layer_of(hook: str | None) -> int | None:
    """The number of the block that a hook's name shows."""
    match = _LAYER.search(hook or "")
    return int(match[1]) if match else None

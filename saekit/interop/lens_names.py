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
    r"(?:\.(?P<inside>[\w.]+))?(?P<input>:in)?"
)
_LAYER = re.compile(r"(?:^|[./_])(?:layers?|h|blocks)[._](\d+)(?=$|[./:_])")

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
}
_NORMS_AFTER = {
    "pre_feedforward_layernorm": "mlp.hook_in",
    "post_feedforward_layernorm": "hook_mlp_out",
    "post_attention_layernorm": "hook_attn_out",
    "self_attn.o_proj:in": "attn.hook_z",
}
_FAMILIES = (
    (re.compile(r"gemma-[23]", re.IGNORECASE), _NORMS_AFTER),
    (re.compile(r"gpt2|pythia|gpt-neox|llama|mistral|qwen|smollm", re.IGNORECASE), _PRE_NORM),
)


def lens_name(hook: str | None, model: str | None) -> str | None:
    """TransformerLens' name of a hook (a module path of the text model `model`, with `:in` for a
    module's input); None where it has no such name, or the path does not show it."""
    if hook is None or _NAMED.fullmatch(hook):
        return hook
    match = _BLOCK.fullmatch(hook)
    if match is None:
        return None
    at_input = match["input"] or ""
    if match["inside"] is None:
        name = "hook_resid_pre" if at_input else "hook_resid_post"
    else:
        inside = match["inside"] + at_input
        family = next((names for known, names in _FAMILIES if known.search(model or "")), {})
        name = family.get(inside)
    return None if name is None else f"blocks.{match['block']}.{name}"


def layer_of(hook: str | None) -> int | None:
    """The number of the block that a hook's name shows."""
    match = _LAYER.search(hook or "")
    return int(match[1]) if match else None

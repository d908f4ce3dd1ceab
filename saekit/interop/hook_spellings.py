"""Names of hooks in other packages, in saekit's words. Only text: what a name means on a model is
`saekit.harvesting.hook_names`' to say.

TransformerLens: `blocks.9.hook_resid_post`, `blocks.9.attn.hook_z`; dictionary_learning:
`resid_post_layer_9`; nnsight: `model.layers[9].output[0]`.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_BY_LAYER = re.compile(r"(resid_pre|resid_mid|resid_post|attn_out|mlp_out)_layer_(\d+)")
# a block of a model by its module path, such as model.layers.9 or transformer.h.9
_BLOCK_PATH = re.compile(r"(?:.+\.)?(?:layers|layer|h|blocks)\.(\d+)(:in)?")

# TransformerLens' name after blocks.N. -> ours after blocks.N
_ALIASES = {
    "hook_in": ":in",
    "hook_out": "",
    "hook_resid_pre": ":in",
    "hook_attn_out": ".attn",
    "hook_mlp_out": ".mlp",
    "hook_z": ".attn.z",
    **{f"attn.hook_{name}": f".attn.{name}" for name in "qkvz"},
    **{f"attn.{name}.hook_out": f".attn.{name}" for name in "qkv"},
}
# ... -> the place of saekit.harvesting.places that it means
PLACES = {
    "attn.q": "q",
    "attn.k": "k",
    "attn.v": "v",
    "attn.z": "attn_last",
    "hook_resid_mid": "mid",
    "hook_mlp_in": "mlp_stream",
    "ln1.hook_normalized": "attn_normalized",
    "ln2.hook_normalized": "mlp_normalized",
    "attn.hook_in": "attn_reads",
    "attn.hook_out": "attn_gives",
    "mlp.hook_in": "mlp_reads",
    "mlp.hook_out": "mlp_gives",
    "mlp.hook_post": "mlp_last",
}
# those that list_hooks shows besides blocks.N, .attn and .mlp
LISTED = ("attn.q", "attn.k", "attn.v", "attn.z", "hook_resid_mid")
POST = "hook_resid_post"
# what list_hooks shows beside ours
TRANSFORMER_LENS = {
    "": POST,
    ":in": "hook_resid_pre",
    ".attn": "hook_attn_out",
    ".mlp": "hook_mlp_out",
    **{f".attn.{name}": f"attn.hook_{name}" for name in "qkvz"},
}


def lens_names() -> list[str]:
    """TransformerLens' names after blocks.N. that are understood."""
    return [name for name in (POST, *_ALIASES, *PLACES) if "hook_" in name]


def translated(hook: str) -> str:
    """`blocks.9.mlp` of `blocks.9.hook_mlp_out`, `blocks.9.hook_resid_mid` of `resid_mid_layer_9`;
    `hook` itself where we have no other name for it."""
    if match := _BY_LAYER.fullmatch(hook):
        hook = f"blocks.{match[2]}.hook_{match[1]}"
    match = _BLOCK.fullmatch(hook)
    if match and match[2] in _ALIASES:
        return f"blocks.{match[1]}{_ALIASES[match[2]]}"
    return hook


def without_call(path: str) -> tuple[str, bool]:
    """('model.layers.9', True) of nnsight's `model.layers[9].input`: the module's path, and whether
    its input is meant."""
    path = re.sub(r"(\.(?:input|output)s?)(\[\d+\])+$", r"\1", path)  # of a tuple
    path = re.sub(r"\[(\d+)\](?=\.|$)", r".\1", path)
    for end, at_input in ((".output", False), (".input", True), (".inputs", True)):
        if path.endswith(end):
            return path.removesuffix(end), at_input
    return path, False


def portable(hook: str) -> str:
    """A name that can be compared without a model: `blocks.8` for blocks.8.hook_resid_post,
    blocks.9.hook_resid_pre, blocks.9:in, model.layers.8 and model.layers[8].output."""
    hook = translated(hook)
    path, at_input = without_call(hook)
    if path != hook:
        hook = translated(path) + (":in" if at_input else "")
    if hook.endswith(f".{POST}"):
        hook = hook.removesuffix(f".{POST}")
    if match := _BLOCK_PATH.fullmatch(hook):
        index = int(match[1])
        return f"blocks.{index - 1}" if match[2] and index else f"blocks.{index}{match[2] or ''}"
    return hook

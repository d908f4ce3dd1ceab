"""What else a block has under a name: the state between attention and MLP, queries, keys, values,
head outputs and normalized states. From the record of one forward pass, as in
`saekit.harvesting.parts`.

- mid: block input + attention, which is also the input of a later module;
- what attention and MLP read and give as modules, and the input of their last linear map: that of
  attention is z, the heads side by side;
- q, k, v: the outputs of their projections, without rotary position embeddings. Of a projection
  that computes all three they are columns. Which ones is proven where attention is causal: the
  first token attends to itself only, so its z is its v, repeated where heads share values. Queries
  come before keys in all of these projections;
- what attention and MLP read before the norm (`stream`), and before its gain and bias
  (`normalized`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from saekit.harvesting.parts import (
    NAMES,
    SHARE,
    WORDS,
    Call,
    Part,
    Record,
    Value,
    is_named,
    is_sum,
)
from saekit.harvesting.views import Columns, Middle, Normalized, View

# Last names of the projections, of queries, keys and values, and of those that compute all three.
PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin", "q", "query_proj", "wq", "to_q"),
    "k": ("k_proj", "key", "k_lin", "k", "key_proj", "wk", "to_k"),
    "v": ("v_proj", "value", "v_lin", "v", "value_proj", "wv", "to_v"),
}
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "wqkv", "att_proj")
# attributes of attention modules
_HEAD_SIZE = ("head_dim", "head_size", "attention_head_size")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")

AMBIGUOUS = "the state before and after that norm has this name in different packages"


class Linear(NamedTuple):
    """A call of a linear map."""

    path: str
    given_BTE: torch.Tensor
    gave_BTE: torch.Tensor


Places = dict[str, Part]
Views = dict[str, View]


def located_places(
    block: nn.Module, record: Record, parts: dict[str, Part]
) -> tuple[Places, Views]:
    """(name -> where it is, or why it is nowhere; path -> its view). Paths are relative to the
    block."""
    places, views = {}, {}
    # The residual stream.
    if norm := _last_norm(block, record):
        places["post_norm"] = Part(f"{norm}:in")
        places["mid"] = Part(None, reason=f"it has a norm after each sum, and {AMBIGUOUS}")
    else:
        places["mid"] = _middle(record, parts)
    if places["mid"].path and (attention := parts["attn"].path):
        views[":mid"] = Middle(attention)
    # Attention and MLP: what they read and give, and what is inside.
    for name, word in WORDS.items():
        root = _root(block, name)
        linears = _linears(block, record, root)
        norm = _norm_before(block, record, root)
        places[f"{name}_reads"] = _input(record, root, word)
        places[f"{name}_gives"] = _output(record, root, word)
        places[f"{name}_last"] = _last_input(record, linears, word)
        places[f"{name}_stream"] = Part(f"{norm.path}:in") if norm else places[f"{name}_reads"]
        places[f"{name}_normalized"], view = _normalized(block, norm, word)
        if view is not None:
            views[places[f"{name}_normalized"].path] = view
        if name == "attn":
            projections, columns = _projections(block, record, root, linears, places["attn_last"])
            places |= projections
            views |= columns
    return places, views


def _root(block: nn.Module, part: str) -> str | None:
    """The whole attention or MLP by its name; None where the block has none."""
    path = next((path for path in NAMES[part] if is_named(block, path, part)), None)
    # BERT and ViT: the projections are beside `output`
    return "attention" if path == "attention.output.dense" else path


def _linears(block: nn.Module, record: Record, root: str | None) -> list[Linear]:
    """Those inside, in the order of their calls, each of a module that ran once on (B,T,E)."""
    return [
        Linear(call.path, call.given_BTE, call.gave_BTE)
        for call in record.calls
        if root
        and call.path.startswith(f"{root}.")
        and _is_linear(block.get_submodule(call.path))
        and record.call(call.path) is call
        and call.given_BTE is not None
        and call.gave_BTE is not None
    ]


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not list(module.children())


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not list(module.children()) and (
        "norm" in type(module).__name__.lower() or (weight is not None and weight.ndim == 1)
    )


def _last_norm(block: nn.Module, record: Record) -> str | None:
    """The norm that gives the block's output, in a post-norm block."""
    leaving = record.leaving
    assert leaving is not None, "the block has ended"
    for call in record.calls:
        if call.gave and torch.equal(call.gave.rows, leaving.rows):
            if _is_norm(block.get_submodule(call.path)):
                return call.path
    return None


def _middle(record: Record, parts: dict[str, Part]) -> Part:
    attn, mlp = (_added(record, parts.get(name)) for name in NAMES)
    if attn is None:
        return Part(None, reason="no module gives what attention adds to the residual stream")
    entering, leaving = record.entering, record.leaving
    assert leaving is not None, "the block has ended"
    for call in record.calls:
        value = call.given
        if value is None or value.key == entering.key:
            continue
        if is_sum(entering.rows, attn.rows, value.rows):
            return Part(":mid")
    reason = "no module takes block input + attention as its input"
    if mlp is not None and is_sum(entering.rows, attn.rows, leaving.rows, mlp.rows):
        reason += ": attention and the MLP run in parallel"
    return Part(None, reason=reason)


def _added(record: Record, part: Part | None) -> Value | None:
    return record.output(part.path) if part and part.path else None


def _input(record: Record, root: str | None, word: str) -> Part:
    call = record.call(root) if root else None
    if call is None or call.given is None or len(call.given.shape) != 3:
        return Part(None, reason=f"no module takes the input of {word}")
    return Part(f"{root}:in")


def _output(record: Record, root: str | None, word: str) -> Part:
    call = record.call(root) if root else None
    if call is None or call.gave is None or len(call.gave.shape) != 3:
        return Part(None, reason=f"no module gives the output of {word} as one vector per token")
    return Part(root)


def _norm_before(block: nn.Module, record: Record, root: str | None) -> Call | None:
    """The norm whose output attention or MLP reads."""
    call = record.call(root) if root else None
    if call is None or call.given is None or len(call.given.shape) != 3:
        return None
    norms = [
        norm
        for norm in record.calls
        if norm.given
        and norm.gave
        and norm.gave.key == call.given.key
        and norm.given.key != norm.gave.key
        and _is_norm(block.get_submodule(norm.path))
    ]
    return norms[0] if len(norms) == 1 else None


def _last_input(record: Record, linears: list[Linear], word: str) -> Part:
    """The input of the last linear map back to the width of the residual stream."""
    width = record.entering.rows.shape[1]
    outputs = [call for call in linears if call.gave_BTE.shape[-1] == width]
    if len(linears) < 2 or not outputs:
        return Part(None, reason=f"{word} has no output projection that gives one vector per token")
    return Part(f"{outputs[-1].path}:in")


def _projections(
    block: nn.Module, record: Record, root: str | None, linears: list[Linear], z: Part
) -> tuple[Places, Views]:
    """q, k and v."""
    places = {}
    for name, names in PROJECTIONS.items():
        paths = [call.path for call in linears if _last(call.path) in names]
        if len(paths) == 1:
            places[name] = Part(paths[0])
    if len(places) == 3:
        return places, {}
    fused = [call for call in linears if _last(call.path) in FUSED]
    if root is None or len(fused) != 1 or z.path is None:
        why = "it has no projections of queries, keys and values that we know"
        return {name: Part(None, reason=why) for name in PROJECTIONS}, {}
    # One projection for all three.
    path, z_BTE = fused[0].path, _given(linears, z.path)
    columns = _columns(fused[0].gave_BTE, z_BTE, _head_size(block, root, z_BTE.shape[-1]))
    if columns is None:
        why = (
            f"which columns of {path} they are cannot be proven: in no known order is the first"
            " token's z its v"
        )
        return {name: Part(None, reason=why, near=path) for name in PROJECTIONS}, {}
    views: Views = {f"{path}:{name}": view for name, view in columns.items()}
    return {name: Part(f"{path}:{name}") for name in columns}, views


def _given(linears: list[Linear], place: str) -> torch.Tensor:
    """The state at `path:in`."""
    return next(linear.given_BTE for linear in linears if f"{linear.path}:in" == place)


def _head_size(block: nn.Module, root: str, width: int) -> int | None:
    """Of a head, as the modules of attention say; `width`: of all heads together."""
    modules = [block.get_submodule(root), *block.get_submodule(root).modules()]
    for names, size in ((_HEAD_SIZE, lambda n: n), (_HEADS, lambda n: width // n)):
        for module in modules:
            values: list[Any] = [getattr(module, name, None) for name in names]
            if number := next((n for n in values if isinstance(n, int) and n > 0), 0):
                return size(number)
    return None


def _columns(
    fused_BTE: torch.Tensor, z_BTE: torch.Tensor, size: int | None
) -> dict[str, Columns] | None:
    """The columns of q, k and v in the order for which the first token's z is its v; None where
    there is no such order. `size`: of a head."""
    width, heads = fused_BTE.shape[-1], z_BTE.shape[-1]
    values = (width - heads) // 2  # of all k, and of all v
    size = size or values
    if values <= 0 or 2 * values + heads != width or heads % values or values % size:
        return None
    # All queries, all keys, all values; or one group after another: the queries of the heads that
    # share a value, their key, their value.
    shared = heads // values
    for one, group in ((values, width), (size, (shared + 2) * size)):
        columns = {
            "q": Columns(0, shared * one, group),
            "k": Columns(shared * one, (shared + 1) * one, group),
            "v": Columns((shared + 1) * one, group, group),
        }
        v = columns["v"].read(nn.Identity(), fused_BTE, fused_BTE)[:, 0].float()
        repeated = v.unflatten(-1, (-1, 1, size)).expand(-1, -1, shared, -1).flatten(1)
        z = z_BTE[:, 0].float()
        if (repeated - z).norm() <= SHARE * z.norm():
            return columns
    return None


def _normalized(block: nn.Module, norm: Call | None, word: str) -> tuple[Part, View | None]:
    """What attention or MLP reads, before the gain and bias of the norm that gives it."""
    if norm is None or norm.given is None or norm.gave is None:
        return Part(None, reason=f"{word} does not read the output of a norm"), None
    # Its kind is proven: normalized, scaled and shifted, the input is the output.
    module, gave = block.get_submodule(norm.path), norm.gave.rows
    for centered in (False, True):
        for offset in (0.0, 1.0):
            view = Normalized(centered, offset)
            x_hat = view.write(module, gave, view.read(module, norm.given.rows, gave))
            if (x_hat.float() - gave.float()).norm() <= SHARE * gave.float().norm():
                return Part(f"{norm.path}:normalized"), view
    why = f"{norm.path} is neither a LayerNorm nor an RMSNorm with a gain"
    return Part(None, reason=why, near=norm.path), None


def _last(path: str) -> str:
    return path.rpartition(".")[2]

"""Which module of a block outputs what attention and MLP add to the residual stream: proof.

A record of one forward pass through a block holds the input and output of every module inside.
`located` starts from modules with suggestive names, goes on to the modules that process their
output (a norm after it, a layer scale) and to their last linear layer, and takes the first whose
output x satisfies, bit for bit or within rounding,

- attention: block input + x = the input of a later module of the block (the stream in the middle)
  or the block's output;
- MLP: some tensor of the block + x = the block's output, or the input of the norm that outputs the
  block's output;
- in parallel: block input + attention + MLP = the block's output.

So in a post-norm encoder (BERT) the aliases mean what is added before the norm, in Gemma 2 the
output of the norm after the MLP. If the model scales inline (a multiplier in Granite, a parameter
in BEiT), no module outputs what is added, and there is no alias.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# Candidates in order, relative to the block.
NAMES: dict[str, tuple[str, ...]] = {
    "attn": (
        "attention.output.dense",  # BERT, RoBERTa, ELECTRA: pre-residual output
        "self_attn", "attn", "self_attention", "attention", "layer.0.SelfAttention",
        "multi_head_attention",
        "norm_attn_norm.attn", "rel_attn", "mixer", "temporal_block",
    ),
    "mlp": (
        "mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "layer.1.DenseReluDense",
        "layer.1.mlp", "output.dense",
        "fc2", "mlp_block", "ff.layer_2", "mixer",
    ),
}  # fmt: skip
WORDS = {"attn": "attention", "mlp": "the MLP"}
_LAST_LINEAR = ("dense", "dense_4h_to_h", "out_proj", "o_proj", "down_proj", "c_proj")
_INNER = (*_LAST_LINEAR, "attn")  # attention.attn of MPNet, whose attention normalizes
# Words in the class of a module whose name is ambiguous.
_OF_CLASS = {"attn": ("attention",), "mlp": ("mlp", "moe", "feedforward")}
_AMBIGUOUS = ("mixer", "temporal_block")
# Tolerance per element, in epsilons of the operands' size: three numbers added in another order.
ROUNDING = 4
# Tolerance relative to the norm of what is added: a part within the rounding error proves nothing.
SHARE = 0.02


@dataclass(frozen=True)
class Value:
    """A tensor at one moment, as rows (N,D). A tensor and its unchanged views have equal `key`."""

    rows: torch.Tensor
    shape: tuple[int, ...]
    key: tuple[int, int, int]
    # kept alive, so that no other tensor gets its address, and to see whether it is written later
    tensor: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: Any, rows: int, width: int) -> Value | None:
        """None unless `tensor` is a floating-point tensor of `rows` x `width` numbers."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return None
        if tensor.ndim < 2 or tensor.shape[-1] != width or tensor.numel() != rows * width:
            return None
        version = version_of(tensor)
        key = (tensor.data_ptr(), version, tensor.numel())
        return cls(
            tensor.detach().reshape(rows, width).clone(), tuple(tensor.shape), key, tensor, version
        )

    @property
    def written_later(self) -> bool:
        return version_of(self.tensor) != self.version


def version_of(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@dataclass
class Call:
    path: str  # relative to the block
    given: Value | None
    gave: Value | None = None
    # the tensors themselves, of any width (B,T,E); None for anything else
    given_BTE: torch.Tensor | None = None
    gave_BTE: torch.Tensor | None = None


@dataclass
class Record:
    """One run of a block."""

    entering: Value
    calls: list[Call] = field(default_factory=list)
    leaving: Value | None = None

    def call(self, path: str) -> Call | None:
        """The module's call; None unless it ran exactly once."""
        calls = [call for call in self.calls if call.path == path]
        return calls[0] if len(calls) == 1 else None

    def output(self, path: str) -> Value | None:
        """The output of the module; None unless it ran exactly once."""
        call = self.call(path)
        return call.gave if call else None


@dataclass(frozen=True)
class Part:
    """The module that a part's alias means. `path` None: none (`reason`), or instead `near`."""

    # relative to the block, as in a canonical hook: `self_attn.o_proj:in`, `:mid` (see `inside`)
    path: str | None
    # the module of `:in`: the part itself, also when the output is that of a norm or scale after it
    reads: str | None = None
    reason: str = ""
    near: str | None = None


def located(block: nn.Module, record: Record) -> dict[str, Part]:
    """'attn' and 'mlp', if the block has modules with such names."""
    candidates = {part: dict(_candidates(block, record, part)) for part in NAMES}
    parts = {}
    for part, paths in candidates.items():
        named = [path for path in NAMES[part] if is_named(block, path, part)]
        if not named:
            continue
        proven = next((path for path in paths if adds(record, path, part, candidates)), None)
        parts[part] = (
            _readable(record, proven, paths[proven])
            if proven
            else _refused(record, list(paths), named[0], part)
        )
    return parts


def guessed_part(block: nn.Module, part: str) -> str | None:
    """The module by names only, before anything has run."""
    for path in NAMES[part]:
        if not is_named(block, path, part):
            continue
        if "residual" not in inspect.signature(block.get_submodule(path).forward).parameters:
            return path
        for last in _LAST_LINEAR:  # it takes the residual and returns the sum (Bloom)
            if has_module(block, f"{path}.{last}"):
                return f"{path}.{last}"
    return None


def adds(record: Record, path: str, part: str, candidates: Mapping[str, Iterable[str]]) -> bool:
    """Whether one of the sums in the module docstring holds for the output of `path`."""
    x, leaving = record.output(path), record.leaving
    if x is None or leaving is None:
        return False
    inputs = _distinct([call.given for call in record.calls if call.given])
    # Attention, or MLP.
    if part == "attn":
        ends = [value for value in (leaving, *inputs) if value.key != record.entering.key]
        if any(is_sum(record.entering.rows, x.rows, end.rows) for end in ends):
            return True
    else:
        before_norm = [
            c.given
            for c in record.calls
            if c.given and c.gave and torch.equal(c.gave.rows, leaving.rows)
        ]
        starts = _distinct(
            [record.entering, *inputs, *(call.gave for call in record.calls if call.gave)]
        )
        ends = _distinct([leaving, *before_norm])
        if any(
            is_sum(s.rows, x.rows, e.rows)
            for e in ends
            for s in reversed(starts)
            if s.key not in (x.key, e.key)
        ):
            return True
    # In parallel.
    others = [
        record.output(other)
        for name, paths in candidates.items()
        if name != part
        for other in paths
    ]
    return any(
        is_sum(record.entering.rows, x.rows, leaving.rows, other.rows)
        for other in _distinct([o for o in others if o])
    )


def is_sum(
    start: torch.Tensor, x: torch.Tensor, end: torch.Tensor, other: torch.Tensor | None = None
) -> bool:
    """end = start + x (+ other), as the model may have computed it: exactly, in any order, or
    within the rounding of its dtype."""
    terms = [term for term in (start, x, end, other) if term is not None]
    # For most pairs the first row is enough.
    return _holds(*(term[:1] for term in terms)) and _holds(*terms)


def _holds(
    start: torch.Tensor, x: torch.Tensor, end: torch.Tensor, other: torch.Tensor | None = None
) -> bool:
    exact = (
        [start + x]
        if other is None
        else [start + x + other, start + other + x, start + (x + other)]
    )
    return any(torch.equal(total, end) for total in exact) or _close(start, x, end, other)


def _close(
    start: torch.Tensor, x: torch.Tensor, end: torch.Tensor, other: torch.Tensor | None
) -> bool:
    terms = [term.double() for term in (start, x, *(() if other is None else (other,)))]
    expected = end.double()
    error = (sum(terms) - expected).abs()
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in (start, x, end))
    size = sum(term.abs() for term in (*terms, expected))
    return bool((error <= ROUNDING * epsilon * size).all()) and bool(
        error.norm() <= SHARE * terms[1].norm()
    )


def _candidates(block: nn.Module, record: Record, part: str) -> Iterator[tuple[str, str]]:
    """(path, the module of the part whose output it is or processes)."""
    seen: set[str] = set()
    for name in NAMES[part]:
        if not is_named(block, name, part):
            continue
        inner = [f"{name}.{last}" for last in _INNER if has_module(block, f"{name}.{last}")]
        for path in (name, *inner):
            for candidate in (path, *_processing(record, path)):
                if candidate not in seen:
                    seen.add(candidate)
                    yield candidate, path


def _processing(record: Record, path: str) -> Iterator[str]:
    """Modules that process the output of `path`, directly or one after another: a norm after it, a
    layer scale, a dropout."""
    value = record.output(path)
    keys = {value.key} if value else set()
    for call in record.calls:
        if call.given and call.gave and call.given.key in keys and call.path != path:
            keys.add(call.gave.key)
            yield call.path


def is_named(block: nn.Module, path: str, part: str) -> bool:
    """Whether the block has a module of this path, which is a name of the part."""
    if not has_module(block, path):
        return False
    if path not in _AMBIGUOUS:
        return True
    name = type(block.get_submodule(path)).__name__.lower()
    return any(word in name for word in _OF_CLASS[part])


def _readable(record: Record, path: str, reads: str) -> Part:
    output = record.output(path)
    assert output is not None  # proven by its output
    if len(output.shape) == 3:
        return Part(path, reads)
    return Part(None, reason=f"{path} gives the rows of all contexts in one list {output.shape}")


def _refused(record: Record, paths: list[str], name: str, part: str) -> Part:
    runs = sum(call.path == name for call in record.calls)
    near = next(
        (path for path in paths if (value := record.output(path)) and len(value.shape) == 3), None
    )
    if runs != 1:
        return Part(
            None,
            reason=(
                f"{name} {'never runs' if runs == 0 else f'runs {runs} times in a forward pass'}"
            ),
            near=near,
        )
    why = (
        f"no module gives what {WORDS[part]} adds to the residual stream: the output of"
        f" {near or name} is changed before it is added"
    )
    return Part(None, reason=why, near=near)


def _distinct(values: list[Value]) -> list[Value]:
    return list({value.key: value for value in values}.values())


def has_module(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def inside(block: str, path: str) -> str:
    """The whole path of what is at `path` in the block: `:mid` is of the block itself."""
    return f"{block}{path}" if path.startswith(":") else f"{block}.{path}"

"""Check that weights come from the file, by the load report of transformers.

transformers fills missing weights with random numbers and warns. Hidden states of random weights
look like any others, so here a difference between file and model is an error that names it, unless
it cannot change a hidden state:

- a head in the file and not in the model (AutoModel of a checkpoint saved with its head), or vice
  versa: then the hidden states are correct and there are no logits, which is reported to the
  caller;
- modules that run after the last block and do not return a vector per token (a pooler), and parts
  that are not run (the text tower of CLIP);
- values that can be computed (position ids, rotary frequencies, causal masks) or are used only for
  masked inputs (a mask token).

Tied weights and names that transformers itself ignores are not in its report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError

# Children of a base model that run after its last block and do not return a vector per token.
_AFTER_BLOCKS = ("pooler", "head", "contact_head")
_NO_WEIGHT = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|mask_token|mask_emb"
    r"|relative_position_index|num_batches_tracked|final_logits_bias|_float_tensor|version|_extra_state|[kv]_scale)$"
)
_NAMED = 3  # names in a message


def load_weights(
    auto_class: Any, where: str, *, trust_remote_code: bool = False, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, load report). Mismatched sizes are in the report, for `check_weights`, instead of an
    error without names."""
    return auto_class.from_pretrained(
        where,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=trust_remote_code,
        **options,
    )


def check_weights(
    module: nn.Module,
    report: dict[str, Any],
    name: str,
    running: nn.Module | None = None,
    head: bool = False,
) -> bool:
    """Raise DataError when a weight of `running` (default: the base model) is not from the file.
    Returns True when the head of a model with one (`head`) came from the file; a partial head, or
    one of another size, is an error too."""
    base: nn.Module = getattr(module, "base_model", module)
    part = _Part(module, base if running is None else running)
    sizes = {
        key: f"{key} is {_shape(in_file)} in the file, {_shape(in_model)} by the config"
        for key, in_file, in_model in report["mismatched_keys"]
    }
    # Sort the differences; those of the head and of parts that are not run do not count.
    outside = _of_head(module, base, {*report["missing_keys"], *sizes}) if head else set()
    wrong_sizes = [text for key, text in sizes.items() if key in outside or part.holds(key)]
    missing = [
        key
        for key in report["missing_keys"]
        if key not in outside and part.holds(key) and not _computed(module, key)
    ]
    unknown = [key for key in report["unexpected_keys"] if part.would_hold(key)]
    if wrong_sizes or missing or unknown:
        causes = []
        if wrong_sizes:
            causes.append(_listed(wrong_sizes, ""))
        if missing:
            causes.append(f"the file lacks {_listed(missing, 'weight')}, which would be random")
        unused = unknown or (list(report["unexpected_keys"]) if missing else [])
        if unused:
            causes.append(f"the model has no place for {_listed(unused, 'weight')} of the file")
        hint = _hint(missing, list(report["unexpected_keys"]), unknown)
        raise DataError(f"the weights of {name} do not fit its config: {'; '.join(causes)}", hint)
    return head and not outside


def weights_of_file(module: nn.Module, has_head: bool) -> dict[str, torch.Tensor] | None:
    """What to save of a model that was read: all (None), or all but a head that was not in the file
    and is random."""
    if has_head:
        return None
    base = getattr(module, "base_model", module)
    state = module.state_dict()
    outside = _of_head(module, base, state)
    return {name: value for name, value in state.items() if name not in outside}


class _Part:
    """The part of a module whose weights must come from the file. Names in the file may have or
    lack the prefix of the base model."""

    def __init__(self, module: nn.Module, running: nn.Module) -> None:
        self.module, self.running = module, running
        self.modules = set(running.modules())
        self.tensors = {id(tensor) for tensor in (*running.parameters(), *running.buffers())}
        self.prefix = getattr(module, "base_model_prefix", "")
        self.path = next((path for path, part in module.named_modules() if part is running), "")

    def holds(self, key: str) -> bool:
        parent, _ = self._ancestor(key)
        return (
            parent in self.modules or id(_tensor(self.module, key)) in self.tensors
        ) and not self._is_after_blocks(key)

    def would_hold(self, key: str) -> bool:
        """Whether a name that the model lacks belongs to this part: the deepest module on the way
        to it is one of this part."""
        if _NO_WEIGHT.search(key) or self._is_after_blocks(key):
            return False
        parent, depth = self._ancestor(key)
        if parent not in self.modules:
            return False
        if depth <= isinstance(parent, nn.Identity) and not (
            self.prefix and key.startswith(self.prefix + ".")
        ):
            # At the root of a bare model: by its name, a head or a norm before it.
            return False
        leaf = key.rsplit(".", 1)[-1]
        # old causal masks (GPT-2, GPT-J)
        mask = leaf == "bias" and not list(parent.parameters(recurse=False))
        return not mask and leaf not in dict(parent.named_buffers(recurse=False))

    def _ancestor(self, key: str) -> tuple[nn.Module, int]:
        """(the deepest module on the way to `key`, its depth), with or without the prefix,
        whichever is deeper."""
        walks = [_walk(self.module, key)]
        if self.prefix and key.startswith(self.prefix + "."):
            walks.append(_walk(self.module, key.removeprefix(self.prefix + ".")))
        elif self.prefix and isinstance(
            inner := getattr(self.module, self.prefix, None), nn.Module
        ):
            walks.append(_walk(inner, key))
        return max(walks, key=lambda walk: walk[1])

    def _is_after_blocks(self, key: str) -> bool:
        for root in (self.prefix, self.path):
            key = key.removeprefix(root + ".") if root else key
        return key.split(".")[0] in _AFTER_BLOCKS


def output_embeddings(module: nn.Module) -> nn.Module | None:
    """The module of a transformers model from hidden states to logits; None when it has none."""
    model: Any = module
    return model.get_output_embeddings()


def _walk(module: nn.Module, key: str) -> tuple[nn.Module, int]:
    depth = 0
    for name in key.split(".")[:-1]:
        child = module._modules.get(name)
        if child is None:
            break
        module, depth = child, depth + 1
    return module, depth


def _of_head(module: nn.Module, base: nn.Module, keys: Iterable[str]) -> set[str]:
    """The names outside the base model; for a model that is its own base (custom code), those of
    the output embeddings."""
    if base is not module:
        inside = tuple(
            f"{path}."
            for path, child in module.named_children()
            if any(part is base for part in child.modules())
        )
        return {key for key in keys if not key.startswith(inside)}
    output = output_embeddings(module)
    return set() if output is None else {key for key in keys if _walk(module, key)[0] is output}


def _computed(module: nn.Module, key: str) -> bool:
    """Whether a missing value is not a learned weight: index buffers, frequencies, mask tokens."""
    tensor = _tensor(module, key)
    return bool(_NO_WEIGHT.search(key)) or (
        tensor is not None
        and not tensor.is_floating_point()
        and not isinstance(tensor, nn.Parameter)
    )


def _tensor(module: nn.Module, key: str) -> torch.Tensor | None:
    parent, depth = _walk(module, key)
    leaf = key.rsplit(".", 1)[-1]
    return getattr(parent, leaf, None) if depth == key.count(".") else None


def _listed(keys: list[str], noun: str) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    counted = f"{len(keys)} {noun}{'s' * (len(keys) > 1)}: " if noun else ""
    return f"{counted}{', '.join(keys[:_NAMED])}{more}"


def _shape(size: Any) -> str:
    return "x".join(map(str, size))


def _hint(missing: list[str], unexpected: list[str], unknown: list[str]) -> str:
    missing_names = set(missing)
    for key in unexpected:
        for prefix in (key[: at + 1] for at, letter in enumerate(key) if letter == "."):
            if key.removeprefix(prefix) in missing_names:
                return (
                    f"the names in the file start with {prefix!r}, the prefix of a wrapper: save"
                    " the model inside the wrapper"
                )
    if any("lora_" in key for key in unexpected):
        return "merge the adapter first (model.merge_and_unload().save_pretrained(FOLDER) of peft)"
    if unknown and not missing:
        return (
            "config.json describes less than the file holds (num_hidden_layers, biases, norms): put"
            " the model's own config beside it"
        )
    return "save the trained model again with model.save_pretrained(FOLDER)"

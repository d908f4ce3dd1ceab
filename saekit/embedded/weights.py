"""Weights that are really those of the file: the load report of transformers, read instead of
printed.

transformers fills what a file does not hold with random numbers and warns. Hidden states of random
numbers look like any others, so here a difference between file and model is an error that names it,
unless it cannot change a hidden state:

- a head that the file has and the model does not (AutoModel of a checkpoint saved with its head),
  or the other way round: then the hidden states are right and there are no logits, which the caller
  is told;
- what runs behind the last block and gives no vector a token (a pooler), and parts that are not run
  (the text tower of CLIP);
- what can be computed (position ids, rotary frequencies, causal masks) or is used only for masked
  inputs (a mask token).

Weights tied to others and names that transformers itself ignores are not in its report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError

# children of a base model that run after its last block and give no vector a token
_BEHIND = ("pooler", "head", "contact_head")
_NO_WEIGHT = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|mask_token|mask_emb"
    r"|relative_position_index|num_batches_tracked|final_logits_bias|_float_tensor|version|_extra_state|[kv]_scale)$"
)
_NAMED = 3  # names in a message


def load_weights(
    auto_class: Any, where: str, *, trust_remote_code: bool = False, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, load report). Sizes that do not match are in the report, which `check_weights`
    reads, and not an error without names."""
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
    """Raise DataError when a weight of `running` (default: the base model) is not the file's. True
    when the head of a model with one (`head`) came from the file; a head that is partly there or of
    another size is an error too."""
    base = getattr(module, "base_model", module)
    running = base if running is None else running
    part = _Part(module, running)
    sizes = {
        key: f"{key} is {_shape(file)} in the file, {_shape(own)} by the config"
        for key, file, own in report["mismatched_keys"]
    }
    outside = _of_head(module, base, {*report["missing_keys"], *sizes}) if head else set()
    wrong_sizes = [text for key, text in sizes.items() if key in outside or part.holds(key)]
    missing = [
        key
        for key in report["missing_keys"]
        if key not in outside and part.holds(key) and not _computed(module, key)
    ]
    unknown = [key for key in report["unexpected_keys"] if part.would_hold(key)]
    if wrong_sizes or missing or unknown:
        causes = [_listed(wrong_sizes, "")] * bool(wrong_sizes)
        causes += [f"the file lacks {_listed(missing, 'weight')}, which would be random"] * bool(
            missing
        )
        if unknown or missing:
            strays = unknown or list(report["unexpected_keys"])
            causes += [
                f"the model has no place for {_listed(strays, 'weight')} of the file"
            ] * bool(strays)
        hint = _hint(missing, list(report["unexpected_keys"]), unknown)
        raise DataError(f"the weights of {name} do not fit its config: {'; '.join(causes)}", hint)
    return head and not outside


def weights_of_file(module: nn.Module, has_head: bool) -> dict[str, torch.Tensor] | None:
    """What to save of a model that was read: all (None), or without a head that the file did not
    hold and transformers made up."""
    if has_head:
        return None
    base = getattr(module, "base_model", module)
    state = module.state_dict()
    outside = _of_head(module, base, state)
    return {name: value for name, value in state.items() if name not in outside}


class _Part:
    """The part of a module whose weights must be the file's. Names of the file may lack or carry
    the prefix of the base model."""

    def __init__(self, module: nn.Module, running: nn.Module) -> None:
        self.module, self.running = module, running
        self.modules = set(running.modules())
        self.tensors = {id(tensor) for tensor in (*running.parameters(), *running.buffers())}
        self.prefix = getattr(module, "base_model_prefix", "")
        self.path = next((path for path, each in module.named_modules() if each is running), "")

    def holds(self, key: str) -> bool:
        parent, _ = self._ancestor(key)
        return (
            parent in self.modules or id(_tensor(self.module, key)) in self.tensors
        ) and not self._behind(key)

    def would_hold(self, key: str) -> bool:
        """Whether a name without a place belongs to this part: one of its modules is the deepest
        that the name leads to."""
        if _NO_WEIGHT.search(key) or self._behind(key):
            return False
        parent, depth = self._ancestor(key)
        if parent not in self.modules:
            return False
        if depth <= isinstance(parent, nn.Identity) and not (
            self.prefix and key.startswith(self.prefix + ".")
        ):
            # at the root of a bare model: a head, or a norm in front of it, as far as its name
            # tells
            return False
        leaf = key.rsplit(".", 1)[-1]
        # old causal masks (GPT-2, GPT-J)
        mask = leaf == "bias" and not list(parent.parameters(recurse=False))
        return not mask and leaf not in dict(parent.named_buffers(recurse=False))

    def _ancestor(self, key: str) -> tuple[nn.Module, int]:
        """(the deepest module that `key` leads to, how many of its own names lead there), by the
        spelling that leads deepest."""
        found = [_walk(self.module, key)]
        if self.prefix and key.startswith(self.prefix + "."):
            found.append(_walk(self.module, key.removeprefix(self.prefix + ".")))
        elif self.prefix and isinstance(
            inner := getattr(self.module, self.prefix, None), nn.Module
        ):
            found.append(_walk(inner, key))
        return max(found, key=lambda each: each[1])

    def _behind(self, key: str) -> bool:
        for root in (self.prefix, self.path):
            key = key.removeprefix(root + ".") if root else key
        return key.split(".")[0] in _BEHIND


def _walk(module: nn.Module, key: str) -> tuple[nn.Module, int]:
    depth = 0
    for name in key.split(".")[:-1]:
        child = module._modules.get(name)
        if child is None:
            break
        module, depth = child, depth + 1
    return module, depth


def _of_head(module: nn.Module, base: nn.Module, keys: Iterable[str]) -> set[str]:
    """The names that lie outside the base model; where a model is its own base (custom code), those
    of the output embeddings."""
    if base is not module:
        inside = tuple(
            f"{path}."
            for path, each in module.named_children()
            if any(inner is base for inner in each.modules())
        )
        return {key for key in keys if not key.startswith(inside)}
    output = module.get_output_embeddings()
    return set() if output is None else {key for key in keys if _walk(module, key)[0] is output}


def _computed(module: nn.Module, key: str) -> bool:
    """A missing value that is no learnt weight: index buffers, frequencies, mask tokens."""
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
    wanted = set(missing)
    for key in unexpected:
        for prefix in (key[: at + 1] for at, letter in enumerate(key) if letter == "."):
            if key.removeprefix(prefix) in wanted:
                return (
                    f"the names in the file start with {prefix!r}, as a wrapper leaves them: save"
                    " the model inside the wrapper"
                )
    if any("lora_" in key for key in unexpected):
        return "merge the adapter first (model.merge_and_unload().save_pretrained(FOLDER) of peft)"
    if unknown and not missing:
        return (
            "config.json says less than the file holds (num_hidden_layers, biases, norms): put the"
            " model's own config beside it"
        )
    return "save the trained model again with model.save_pretrained(FOLDER)"

"""SAELens folders of version 6 (6.54.12): cfg.json and sae_weights.safetensors.

Its BatchTopK and gated dictionaries are jumprelu ones here, as our training saves them. It calls
TopK with signs `abstopk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.interop.outgoing import BY_DECODER_NORM, OTHER_WIDTH, SKIP, Outgoing
from saekit.interop.saelens import NORMS, SCALED, SETTINGS, WEIGHTS
from saekit.store.files import write_json, write_tensors

# (code, transcoder, skip) -> architecture
ARCHITECTURES = {
    ("relu", False, False): "standard",
    ("topk", False, False): "topk",
    ("abs-topk", False, False): "abstopk",
    ("jumprelu", False, False): "jumprelu",
    ("relu", True, False): "transcoder",
    ("relu", True, True): "skip_transcoder",
    ("jumprelu", True, False): "jumprelu_transcoder",
    ("jumprelu", True, True): "jumprelu_skip_transcoder",
}
VERSION = "6.54.12"  # of the format: its loader reads files without a version as those before 6
NORMALIZATIONS = {norm: name for name, norm in NORMS.items() if name != SCALED}
KINDS, LARGEST = ("autoencoders", "transcoders"), ("topk", "abs-topk")
SAYS = frozenset(
    {
        *(f"{code} {KINDS[to]}" for code, to, _ in ARCHITECTURES),
        *(f"{kind} with {norm}" for norm in NORMALIZATIONS for kind in KINDS),
        *(f"{code} {BY_DECODER_NORM}" for code in LARGEST),
        *(SKIP, OTHER_WIDTH),
    }
)


def write(path: Path, dictionaries: list[Outgoing]) -> list[str]:
    (dictionary,) = dictionaries
    config, tensors = dictionary.config, dict(dictionary.tensors)
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    write_tensors(path / WEIGHTS, tensors)
    hook = dictionary.origin.lens_hook or ""
    settings = {
        "architecture": ARCHITECTURES[dictionary.code, dictionary.transcodes, config["skip"]],
        "d_in": config["d_in"],
        "d_sae": config["latents"],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config["subtract_b_dec"],
        "normalize_activations": NORMALIZATIONS[config["input_norm"]],
        # TransformerLens gives the heads of this hook on an axis of their own
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": _metadata(dictionary),
    }
    if dictionary.transcodes:
        settings["d_out"] = config["d_out"]
    if dictionary.code in LARGEST:
        by_norm = config["rescale_by_decoder_norm"]
        settings |= {"k": config["k"], "rescale_acts_by_decoder_norm": by_norm}
    write_json(path / SETTINGS, settings)
    return []


def _metadata(dictionary: Outgoing) -> dict[str, Any]:
    origin = dictionary.origin
    metadata = {
        "sae_lens_version": VERSION,
        "saekit_version": origin.saekit,
        "training_architecture": dictionary.config["sparsity"],
        "model_name": origin.base_model,
        "model_revision": origin.revision,
        "hook_name": origin.lens_hook or origin.hook,
        "hf_hook_name": origin.hook,
        "context_size": origin.context,
        "dataset_path": origin.dataset,
    }
    if dictionary.transcodes:
        metadata |= {
            "hook_name_out": origin.lens_target_hook or origin.target_hook,
            "hf_hook_name_out": origin.target_hook,
        }
    # the rule for special tokens: SAELens' own settings, or what ours means there
    special = origin.special_tokens
    rules = ("prepend_bos", "exclude_special_tokens", "seqpos_slice")
    own = {name: special[name] for name in rules if name in special}
    if not own and origin.without_special_tokens is not None:
        own = {"exclude_special_tokens": origin.without_special_tokens}
    return metadata | own

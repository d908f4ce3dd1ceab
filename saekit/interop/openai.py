"""OpenAI's sparse_autoencoder (Gao et al. 2024, arXiv 2406.04093): `{layer}.pt`, a pickled state
dict with a string for the activation.

    y = LN(x) with TopK, x with ReLU;  z = activation((y - pre_bias) W_enc^T + latent_bias)

TopK names the function that follows it: with Identity, negative values among the k largest stay.
LN divides by the unbiased standard deviation + 1e-5; on the output it is undone. The folders
(`gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt`) tell model and hook.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    digests,
    need,
    need_matrices,
    number,
    published,
    refused,
)
from saekit.interop.pickles import glance, need_tensors, read_plain

FILES = Files(file=("*.pt",))
NAMES = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
# their names for places in a block -> those of TransformerLens
HOOKS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}


def recognizes(path: Path) -> bool:
    return glance(path).keys() >= {"pre_bias", "latent_bias", "encoder.weight"}


def read(path: Path) -> Published:
    state = read_plain(path)
    state = dict(state) if isinstance(state, dict) else {}
    activation = state.pop("activation", "ReLU")
    arguments = state.pop("activation_state_dict", {})
    sparsity, options = _activation(path, activation, arguments)
    # of training only
    tensors = need_tensors(path, {n: t for n, t in state.items() if n not in STATISTICS})
    need(path, tensors, NAMES)
    need_matrices(path, tensors, "encoder.weight", "decoder.weight")
    folders = path.absolute().parts[:-1]
    layer = int(path.stem) if path.stem.isdecimal() else None
    place = next((p for p in HOOKS for folder in folders if folder.startswith(p)), None)
    origin = Origin(
        format="openai",
        base_model="gpt2" if "gpt2-small" in folders else None,
        hook=None if place is None or layer is None else f"blocks.{layer}.{HOOKS[place]}",
        layer=layer,
        normalization="layer_norm" if sparsity == "topk" else "none",
        files=digests(path),
    )
    ours = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["latent_bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["pre_bias"],
    }
    return published(path, sparsity, ours, origin, subtract_b_dec=True, **options)


def _activation(path: Path, activation: Any, arguments: Any) -> tuple[str, dict[str, Any]]:
    """(sparsity, options of the config). With TopK, and only then, the input is normalized."""
    if activation == "ReLU":
        return "l1", {}
    if activation != "TopK" or not isinstance(arguments, dict):
        raise refused(path, "activation", activation)
    if (after := arguments.get("postact_fn")) not in ("ReLU", "Identity"):
        raise refused(path, "postact_fn", after)
    k, keeps = number(path, arguments, "k"), after == "Identity"
    return "topk", {"k": k, "input_norm": "layer_norm", "keep_negative": keeps}

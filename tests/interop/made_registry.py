"""A small file in the format of SAELens' pretrained_saes.yaml, with entries as its own has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def release(repo: str, model: str, loader: str | None, saes: list[dict], **more: Any) -> dict:
    return {"repo_id": repo, "model": model, "conversion_func": loader, "saes": saes} | more


RELEASES = {
    "gpt2-small-res-jb": release(
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "gpt2-small",
        None,
        [
            {
                "id": f"blocks.{layer}.hook_resid_pre",
                "path": f"blocks.{layer}.hook_resid_pre",
                "l0": 10.0 + layer,
                "neuronpedia": f"gpt2-small/{layer}-res-jb",
            }
            for layer in (7, 8)
        ],
        config_overrides={"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    ),
    "mistral-7b-res-wg": release(
        "JoshEngels/Mistral-7B-Residual-Stream-SAEs",
        "mistral-7b",
        None,
        [{"id": "blocks.8.hook_resid_pre", "path": "mistral_7b_layer_8", "l0": 92}],
        config_overrides={"normalize_activations": "constant_norm_rescale"},
    ),
    "gpt2-small-mlp-tm": release(
        "tommmcgrath/gpt2-small-mlp-out-saes",
        "gpt2-small",
        None,
        [
            {
                "id": "blocks.0.hook_mlp_out",
                "path": "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1",
                "norm_scaling_factor": 1.25,
            }
        ],
    ),
    "gemma-scope-2b-pt-res-canonical": release(
        "google/gemma-scope-2b-pt-res",
        "gemma-2-2b",
        "gemma_2",
        [
            {
                "id": "layer_12/width_16k/canonical",
                "path": "layer_12/width_16k/average_l0_82",
                "neuronpedia": "gemma-2-2b/12-gemmascope-res-16k",
            }
        ],
    ),
    "mwhanna-qwen3-0.6b-transcoders-lowl0": release(
        "mwhanna/qwen3-0.6b-transcoders-lowl0",
        "qwen3-0.6b",
        "mwhanna_transcoder",
        [{"id": "layer_3", "path": "layer_3.safetensors"}],
    ),
    "mntss-gemma-2-2b-2.5m-clt-as-per-layer": release(
        "mntss/clt-gemma-2-2b-2.5M",
        "gemma-2-2b",
        "mntss_clt_layer_transcoder",
        [{"id": "layer_1", "path": 1}],  # a number, in theirs too
    ),
    "gpt2-small-hook-z-kk": release(
        "ckkissane/attn-saes-gpt2-small-all-layers",
        "gpt2-small",
        "connor_rob_hook_z",
        [{"id": "blocks.0.hook_z", "path": "gpt2-small_L0_Hcat_z_ds24576_bs4096_v9.pt"}],
    ),
}


def registry(path: Path) -> Path:
    path.write_text(yaml.dump(RELEASES))
    return path

"""Small dictionaries in the files of Gemma Scope 1 and 2: their folders, names, shapes and
dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from made_dictionaries import F, Tensors, gemma_scope, weights
from safetensors.torch import save_file

LAYERS, WIDTH, LATENTS = 3, 8, 12  # of crosscoders and CLTs
MLP = "model.layers.12.{}_feedforward_layernorm.output"
SITES = {  # folder -> hooks that are read and written
    "resid_post": ("model.layers.12.output",) * 2,
    "attn_out": ("model.layers.12.self_attn.o_proj.input",) * 2,
    "mlp_out": (MLP.format("post"),) * 2,
    "transcoder_all": (MLP.format("pre"), MLP.format("post")),
}


def scope_1(root: Path, repository: str = "gemma-scope-2b-pt-res", **changed) -> Path:
    """A folder in that of a repository. `changed` replaces arrays or adds them."""
    return gemma_scope(root / repository / "layer_12" / "width_16k" / "average_l0_82", **changed)


def embedding(root: Path) -> Path:
    return gemma_scope(root / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6")


def scope_2(
    root: Path,
    site: str = "resid_post",
    affine: bool = False,
    described: bool = True,
    repository: str = "gemma-scope-2-1b-pt",
    **settings,
) -> Path:
    """An SAE or a transcoder. `settings` change config.json; described=False: there is none."""
    suffix = "_affine" if affine else ""
    path = root / repository / site / f"layer_12_width_16k_l0_small{suffix}"
    path.mkdir(parents=True)
    w = weights()
    tensors = {name.lower(): tensor for name, tensor in w.items()}
    if affine:
        tensors["affine_skip_connection"] = skip(len(w["b_dec"]))
    save_file(tensors, path / "params.safetensors")
    reads, writes = SITES[site]
    config = {
        "hf_hook_point_in": reads,
        "hf_hook_point_out": writes,
        "width": F,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 20,
        "affine_connection": affine,
        "type": "transcoder" if "transcoder" in site else "sae",
    }
    if described:
        (path / "config.json").write_text(json.dumps(config | settings))
    return path


def layer_weights(layer: int, causal: bool = True) -> Tensors:
    """One layer of a crosscoder or a CLT, under Gemma's names; its latents write to all layers, or,
    with causal, to its own and later ones."""
    gen = torch.Generator().manual_seed(20 + layer)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * scale

    tensors = {
        "w_enc": draw(WIDTH, LATENTS, scale=0.4),
        "w_dec": draw(LATENTS, LAYERS, WIDTH, scale=0.3),
        "b_enc": draw(LATENTS, scale=0.2),
        "b_dec": draw(WIDTH, scale=0.5),
        "threshold": draw(LATENTS, scale=0.1).abs() + 0.2,
    }
    if causal:
        tensors["w_dec"][:, :layer] = 0
    return tensors


def of_layers(root: Path, kind: str = "clt", affine: bool = False, causal: bool = True) -> Path:
    """A folder with a file per layer: a CLT, or a crosscoder of the layers 7, 13 and 17."""
    name = "layer_7_13_17_width_65k_l0_medium" if kind == "crosscoder" else "width_262k_l0_medium"
    path = root / "gemma-scope-2-1b-pt" / kind / (name + ("_affine" if affine else ""))
    path.mkdir(parents=True)
    for layer in range(LAYERS):
        tensors = layer_weights(layer, causal)
        if affine:
            tensors["affine_skip_connection"] = skip(WIDTH, seed=30 + layer)
        save_file(tensors, path / f"params_layer_{layer}.safetensors")
    config = {
        "width": LAYERS * LATENTS,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 50,
        "affine_connection": affine,
        "type": kind,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def skip(width: int, seed: int = 2) -> torch.Tensor:
    """(D_in, D_out), as the files have it."""
    return torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) * 0.3

"""Small transcoders in circuit-tracer's files: their names, shapes and dtypes. Transcoder sets as
mwhanna publishes them, CLTs as mntss does."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from made_dictionaries import Tensors, weights
from made_gemma import LAYERS, layer_weights, skip
from safetensors.torch import save_file

CONFIG = {
    "model_name": "Qwen/Qwen3-0.6B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}


def transcoder(
    folder: Path, layer: int = 3, jumps: bool = False, skips: bool = False, **changed
) -> Path:
    """The file of a layer, beside the settings of the set. `changed` replaces tensors or adds
    them."""
    folder.mkdir(parents=True, exist_ok=True)
    w = weights()
    tensors = {
        "W_enc": w["W_enc"].T.contiguous(),
        "W_dec": w["W_dec"],
        "b_enc": w["b_enc"],
        "b_dec": w["b_dec"],
    }
    if jumps:
        tensors["activation_function.threshold"] = w["threshold"]
    if skips:
        tensors["W_skip"] = skip(len(w["b_dec"])).T.contiguous()
    save_file(tensors | changed, folder / f"layer_{layer}.safetensors")
    (folder / "config.yaml").write_text(yaml.dump(CONFIG))
    return folder / f"layer_{layer}.safetensors"


def wandb(folder: Path, act_fn: str = "relu", name: str = "wandb-config.yaml") -> None:
    """The settings of the training, which some sets have."""
    settings = {"d_model": 16, "d_feature": 48, "batch_size": 1024, "act_fn": act_fn}
    text = yaml.dump({key: {"value": value} for key, value in settings.items()})
    (folder / name).write_text(text)


def clt_layer(layer: int, jumps: bool = False) -> tuple[Tensors, Tensors]:
    """(what W_enc_N.safetensors holds, what W_dec_N.safetensors holds)."""
    w = layer_weights(layer)
    encoder = {
        f"W_enc_{layer}": w["w_enc"].T.contiguous(),
        f"b_enc_{layer}": w["b_enc"],
        f"b_dec_{layer}": w["b_dec"],
    }
    if jumps:
        encoder[f"threshold_{layer}"] = w["threshold"]
    return encoder, {f"W_dec_{layer}": w["w_dec"][:, layer:].contiguous()}


def clt(folder: Path, jumps: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(parents=True)
    for layer in range(LAYERS):
        for kind, tensors in zip(("enc", "dec"), clt_layer(layer, jumps)):
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            save_file(tensors, folder / f"W_{kind}_{layer}.safetensors")
    config = CONFIG | {
        "model_name": "google/gemma-2-2b",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_mid",
    }
    (folder / "config.yaml").write_text(yaml.dump(config))
    return folder

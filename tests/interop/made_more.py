"""Small dictionaries in the files of OpenAI, OpenMOSS, Qwen, Goodfire, qresearch, saev and
ViT-Prisma: their names, shapes and dtypes. `path` is the folder to write; where a dictionary is one
file, its path is returned."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from made_dictionaries import D, F, K, Tensors, weights
from safetensors.torch import save_file

MEAN_NORMS = (2.6, 3.1)  # of the rows that go in, and of those that come out


def linear(encoder: str, decoder: str, bias: bool = True) -> Tensors:
    """As torch.nn.Linear has them."""
    w = weights()
    tensors = {f"{encoder}.weight": w["W_enc"].T.contiguous()}
    tensors |= {f"{decoder}.weight": w["W_dec"].T.contiguous()}
    biases = {f"{encoder}.bias": w["b_enc"], f"{decoder}.bias": w["b_dec"]}
    return tensors | (biases if bias else {})


def unit_rows(W_dec: torch.Tensor) -> torch.Tensor:
    return W_dec / W_dec.norm(dim=1, keepdim=True)


def openai(
    path: Path, activation: str | None = "TopK", after: str = "ReLU", k: int = K, **changed: Any
) -> Path:
    """`resid_post_mlp_v5_32k/autoencoders/6.pt`; None: a file without an activation."""
    w = weights()
    state: dict[str, Any] = linear("encoder", "decoder", bias=False) | {
        "pre_bias": w["b_dec"],
        "latent_bias": w["b_enc"],
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "latents_activation_frequency": torch.ones(F),
        "latents_mean_square": torch.zeros(F),
    }
    if activation is not None:
        of_topk = {"k": k, "postact_fn": after}
        state["activation"] = activation
        state["activation_state_dict"] = OrderedDict(of_topk if activation == "TopK" else {})
    folder = path / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders"
    return _save(folder / "6.pt", OrderedDict(state | changed))


def llama_scope(path: Path, unit: bool = False, **settings: Any) -> Path:
    """`unit`: decoder vectors of norm 1."""
    tensors = linear("encoder", "decoder")
    if unit:
        tensors["decoder.weight"] = unit_rows(weights()["W_dec"]).T.contiguous()
    hook = "blocks.15.hook_resid_post"
    config = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": F // D,
        "d_model": D,
        "d_sae": F,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.11,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": MEAN_NORMS[0], "out": MEAN_NORMS[0]},
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": K,
        "dtype": "torch.bfloat16",
    }
    (path / "checkpoints").mkdir(parents=True)
    (path / "hyperparams.json").write_text(json.dumps(config | settings))
    lm_config = {"model_name": "meta-llama/Llama-3.1-8B", "d_model": D}
    (path / "lm_config.json").write_text(json.dumps(lm_config))
    save_file(tensors, path / "checkpoints" / "final.safetensors")
    return path


def llamascopium(
    path: Path, act_fn: str = "jumprelu", suffix: str = ".safetensors", **settings: Any
) -> Path:
    """suffix: ".safetensors", ".pt" or ".dcp"."""
    w, source = weights(), settings.get("hook_point_in", "blocks.6.hook_resid_post")
    tensors = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    config = _scopium_settings(source, act_fn) | settings
    for hook, norm in zip((source, config["hook_point_out"]), MEAN_NORMS):
        tensors.setdefault(f"dataset_average_activation_norm.{hook}", torch.tensor(norm))
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if suffix == ".dcp":
        (path / "sae_weights.dcp").mkdir()
    elif suffix == ".pt":
        torch.save({"sae": tensors, "version": "2.0.0"}, path / "sae_weights.pt")
    else:
        save_file(tensors, path / "sae_weights.safetensors")
    return path


def llama_scope_r1(path: Path, unit: bool = False, **settings: Any) -> Path:
    """Llama-Scope-R1-Distill: the names of a version in between."""
    source = "blocks.15.hook_resid_post"
    tensors = linear("encoder", "decoder")
    if unit:
        tensors["decoder.weight"] = unit_rows(weights()["W_dec"]).T.contiguous()
    tensors["log_jumprelu_threshold"] = weights()["threshold"].log()
    tensors[f"dataset_average_activation_norm.{source}"] = torch.tensor(MEAN_NORMS[0])
    path.mkdir(parents=True)
    config = _scopium_settings(source, "jumprelu") | {"apply_decoder_bias_to_pre_encoder": False}
    (path / "config.json").write_text(json.dumps(config | settings))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


def qwen_scope(path: Path, repository: str = f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}") -> Path:
    w = weights()
    state = {
        "W_enc": w["W_enc"].T.contiguous(),
        "W_dec": w["W_dec"].T.contiguous(),
        "b_enc": w["b_enc"],
        "b_dec": w["b_dec"],
    }
    return _save(path / repository / "layer12.sae.pt", state)


def goodfire(path: Path, name: str = "Llama-3.1-8B-Instruct-SAE-l19.pth") -> Path:
    state = {n: t.bfloat16() for n, t in linear("encoder_linear", "decoder_linear").items()}
    return _save(path / name, state)


def deepseek_r1(path: Path, name: str = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt") -> Path:
    return _save(path / name, linear("encoder", "decoder"))


def saev(path: Path, header: dict[str, Any] | None = None, **changed: Any) -> Path:
    """sae.pt of version 0.1.0, or with another header. `changed` adds or replaces tensors."""
    state = {name: tensor for name, tensor in weights().items() if name != "threshold"} | changed
    first = {
        "d_vit": D,
        "exp_factor": F // D,
        "sparsity_coeff": 4e-4,
        "n_reinit_samples": 524288,
        "ghost_grads": False,
        "remove_parallel_grads": True,
        "normalize_w_dec": True,
        "seed": 42,
    }
    path.mkdir(parents=True)
    with open(path / "sae.pt", "wb") as file:
        file.write((json.dumps(header or first) + "\n").encode())
        torch.save(state, file)
    return path


def saev_header(activation: str, schema: int = 5, **params: Any) -> dict[str, Any]:
    """Of the versions after 0.1.0."""
    settings = {"d_model": D, "d_sae": F, "activation": {"cls": activation, "params": params}}
    return {"schema": schema, "cfg": settings, "commit": "unknown", "lib": "0.2.0"}


def vit_prisma(
    path: Path, architecture: str = "standard", file: str = "weights.pt", **settings: Any
) -> Path:
    gen = torch.Generator().manual_seed(5)
    state = {name: tensor for name, tensor in weights().items() if name != "threshold"}
    if architecture == "gated":
        state |= {"b_gate": state["b_enc"], "b_enc": torch.zeros(F)}
        state |= {"r_mag": torch.randn(F, generator=gen) * 0.3}
        state |= {"b_mag": torch.randn(F, generator=gen) * 0.2}
    config = {
        "model_class_name": "HookedViT",
        "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "hook_point_layer": 9,
        "layer_subtype": "hook_mlp_out",
        "hook_point_head_index": None,
        "context_size": 50,
        "use_patches_only": True,
        "cls_token_only": False,
        "architecture": architecture,
        "is_transcoder": False,
        "d_in": D,
        "expansion_factor": F // D,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "normalize_activations": "layer_norm",
        "dataset_name": "imagenet1k",
        "_dtype": "float32",
    }
    _save(path / file, OrderedDict(state))
    (path / "config.json").write_text(json.dumps(config | settings))
    return path


def _scopium_settings(hook: str, act_fn: str) -> dict[str, Any]:
    return {
        "device": "cpu",
        "dtype": "torch.float32",
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F // D,
        "use_decoder_bias": True,
        "act_fn": act_fn,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": K,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_glu_encoder": False,
    }


def _save(file: Path, state: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file

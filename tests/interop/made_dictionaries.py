"""Small dictionaries in the files of other programs: their names, shapes and dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

D, F, K = 16, 48, 5
HEADS, BOTTLENECK = 4, 4  # of a temporal SAE
D_OUT = 12  # of transcoders whose format allows another width
Tensors = dict[str, torch.Tensor]


def weights(width: int = D) -> Tensors:
    """W_enc (D,F), W_dec (F,D), b_enc, b_dec, threshold: biases and decoder norms of no special
    value, so that a map that mistakes one of them shows."""
    gen = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * scale

    return {
        "W_enc": draw(width, F, scale=0.3),
        "W_dec": draw(F, width, scale=0.3),
        "b_enc": draw(F, scale=0.2),
        "b_dec": draw(width, scale=0.5),
        "threshold": draw(F, scale=0.1).abs() + 0.2,
    }


def saelens(path: Path, architecture: str = "standard", width: int = D, **settings) -> Path:
    """A folder of SAELens 6. `settings` change cfg.json."""
    tensors, config = weights(width), {"d_in": width, "d_sae": F, "dtype": "float32"}
    threshold, gen = tensors.pop("threshold"), torch.Generator().manual_seed(1)
    config |= {
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2",
            "hook_name": "blocks.8.hook_resid_pre",
            "hook_head_index": None,
            "prepend_bos": True,
            "exclude_special_tokens": False,
            "context_size": 128,
            "dataset_path": "Skylion007/openwebtext",
        },
        "architecture": architecture,
    }
    # what each architecture has besides
    if "jumprelu" in architecture:
        tensors["threshold"] = threshold
    if architecture == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
        tensors["b_mag"] = torch.randn(F, generator=gen) * 0.2
        tensors["r_mag"] = torch.randn(F, generator=gen) * 0.3
    if architecture.endswith("topk"):
        config |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if "batchtopk" in architecture:  # a checkpoint of training
        tensors["topk_threshold"] = torch.tensor(0.3, dtype=torch.float64)
    if "transcoder" in architecture:
        config["d_out"] = D_OUT
        config["metadata"]["hook_name_out"] = "blocks.8.hook_mlp_out"
        tensors |= {name: tensors[name][..., :D_OUT].contiguous() for name in ("W_dec", "b_dec")}
    if "skip" in architecture:
        tensors["W_skip"] = torch.randn(D_OUT, width, generator=gen) * 0.3
    return _folder(path, config | settings, "sae_weights.safetensors", tensors)


def temporal_parts(layers: int = 1) -> Tensors:
    """W_dec (F,D), b_dec and the attention over codes of a temporal SAE."""
    gen, w = torch.Generator().manual_seed(5), weights()
    sizes = {"k_ctx": F // BOTTLENECK, "q_target": F // BOTTLENECK, "v_ctx": F, "c_proj": F}
    tensors = {name: w[name] for name in ("W_dec", "b_dec")}
    for layer in range(layers):
        for name, size in sizes.items():
            part = f"attn_layers.{layer}.{name}"
            tensors[f"{part}.weight"] = torch.randn(size, F, generator=gen)
            tensors[f"{part}.bias"] = torch.randn(size, generator=gen) * 0.1
    return tensors


def saelens_temporal(path: Path, **settings) -> Path:
    """A temporal SAE as SAELens saves it. `settings` change cfg.json."""
    config = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": 0.4,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.12.hook_resid_post"},
        "architecture": "temporal",
        "n_heads": HEADS,
        "n_attn_layers": 1,
        "bottleneck_factor": BOTTLENECK,
        "sae_diff_type": "topk",
        "kval_topk": K,
        "tied_weights": True,
    } | settings
    tensors = temporal_parts(config["n_attn_layers"])
    if not config["tied_weights"]:
        tensors["W_enc"] = weights()["W_enc"]
    return _folder(path, config, "sae_weights.safetensors", tensors)


def temporal(path: Path, **changed) -> Path:
    """A folder of canrager/temporalSAEs. `changed` changes the section `sae`."""
    sae = {
        "exp_factor": F // D,
        "n_heads": HEADS,
        "n_attn_layers": 1,
        "bottleneck_factor": BOTTLENECK,
        "sae_diff_type": "topk",
        "kval_topk": K,
        "tied_weights": True,
        "scaling_factor": 0.4,
    } | changed
    names = {"W_dec": "D", "b_dec": "b"}
    tensors = {names.get(name, name): tensor for name, tensor in temporal_parts().items()}
    path.mkdir(parents=True)
    save_file(tensors, path / "latest_ckpt.safetensors")
    sections = {"llm": {"dimin": D}, "sae": sae, "data": {"dtype": "bfloat16"}}
    (path / "conf.yaml").write_text(yaml.safe_dump(sections))
    return path


def old_saelens(path: Path, **settings) -> Path:
    """A folder of SAELens before 6, such as those of gpt2-small-res-jb: one level of settings."""
    tensors = weights()
    del tensors["threshold"]
    config = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 128,
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
    }
    tensors["scaling_factor"] = torch.ones(F)
    return _folder(path, config | settings, "sae_weights.safetensors", tensors)


def sparsify(path: Path, transcode: bool = False, skip: bool = False, **settings) -> Path:
    """A hook's folder in that of a run."""
    tensors = weights()
    del tensors["threshold"]
    tensors["encoder.weight"] = tensors.pop("W_enc").T.contiguous()
    tensors["encoder.bias"] = tensors.pop("b_enc")
    if skip:
        tensors["W_skip"] = torch.randn(D, D, generator=torch.Generator().manual_seed(2))
    config = {
        "activation": "topk",
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": transcode,
        "d_in": D,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"model": "EleutherAI/pythia-160m", "dataset": "EleutherAI/SmolLM2-135M-10B"}
    (path.parent / "config.json").write_text(json.dumps(run))
    return _folder(path, config | settings, "sae.safetensors", tensors)


def dictionary_learning(
    path: Path, kind: object, threshold: float | torch.Tensor = 0.25, **changed
) -> Path:
    """A trainer's folder. `changed` replaces tensors, or adds them; None removes one."""
    w = weights()
    gen = torch.Generator().manual_seed(3)
    linear = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
    }
    k = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.as_tensor(threshold)}
    parts = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    tensors = {
        "AutoEncoder": linear | {"bias": w["b_dec"]},
        "AutoEncoderNew": linear | {"decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": linear | {"b_dec": w["b_dec"]} | k,
        "BatchTopKSAE": linear | {"b_dec": w["b_dec"]} | k,
        "MatryoshkaBatchTopKSAE": parts | k | {"group_sizes": torch.tensor([16, 32])},
        "JumpReluAutoEncoder": parts | {"threshold": w["threshold"]},
        "GatedAutoEncoder": {
            "decoder_bias": w["b_dec"],
            "encoder.weight": linear["encoder.weight"],
            "decoder.weight": linear["decoder.weight"],
            "r_mag": torch.randn(F, generator=gen) * 0.3,
            "gate_bias": w["b_enc"],
            "mag_bias": torch.randn(F, generator=gen) * 0.2,
        },
    }.get(str(kind), linear)
    tensors = {name: t for name, t in (tensors | changed).items() if t is not None}
    config = {
        "trainer": {
            "trainer_class": "Trainer",
            "dict_class": kind,
            "activation_dim": D,
            "dict_size": F,
            "k": K,
            "layer": 8,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "submodule_name": "resid_post_layer_8",
        },
        "buffer": {"d_submodule": D, "io": "out", "n_ctxs": 2000, "ctx_len": 1024},
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, path / "ae.pt")
    return path


def hook_z(path: Path, **settings) -> Path:
    """A file of ckkissane/attn-saes-gpt2-small-all-layers. `settings` change the one beside it."""
    tensors = weights()
    del tensors["threshold"]
    path.mkdir(parents=True)
    file = path / "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9.pt"
    torch.save(tensors, file)
    config = {
        "seed": 49,
        "model_name": "gpt2-small",
        "act_name": "blocks.0.attn.hook_z",
        "layer": 0,
        "seq_len": 128,
        "act_size": D,
        "dict_size": F,
    }
    (path / f"{file.stem}_cfg.json").write_text(json.dumps(config | settings))
    return file


def gemma_scope(path: Path, **changed) -> Path:
    """`path` is the dictionary's folder."""
    path.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in weights().items()}
    np.savez(path / "params.npz", **(arrays | changed))
    return path


def _folder(path: Path, config: dict, file: str, tensors: Tensors) -> Path:
    path.mkdir(parents=True)
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, path / file)
    return path

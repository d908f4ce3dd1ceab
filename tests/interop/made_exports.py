"""Checkpoints of every variant with random weights, and what the formats that we write say that
their files compute: each program's formula, written out here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from made_stores import make_spec
from safetensors.torch import load_file

from saekit.interop.dictionary import Origin, Published
from saekit.interop.opening import description
from saekit.models.catalog import config_of
from saekit.models.sae import SAE
from saekit.store.checkpoint import write_checkpoint

D, F, K = 16, 48, 4
MODEL = "HuggingFaceTB/SmolLM2-135M"
Tensors = dict[str, torch.Tensor]
Result = tuple[torch.Tensor, torch.Tensor]  # code (B,F), x_hat (B,D_out)


def rows(dtype: torch.dtype = torch.float32, count: int = 200) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(4)).to(dtype)


def checkpoint(
    path: Path,
    sparsity: str,
    *,
    layer: int = 3,
    seed: int = 0,
    hook: str | None = None,
    **options,
) -> Path:
    """Of an SAE at `model.layers.N`, or with d_out of a transcoder of its MLP. Thresholds cut
    through the pre-activations."""
    kind = config_of("sae", sparsity)
    if "k" in {field.name for field in dataclasses.fields(kind)}:
        options = {"k": K} | options
    settings = {"d_in": D, "latents": F, "decoder_norm": "free", "revive": "none"}
    config = kind(sparsity=sparsity, **(settings | options)).resolved()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) / 3
        for name, tensor in SAE.for_weights(config).state_dict().items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    if sparsity == "batchtopk":  # one for all latents
        tensors["threshold"][:] = 0.4
    transcodes = bool(config.d_out)
    origin = Origin(
        "test",
        revision="main",
        special_tokens={"exclude_special_tokens": True},
        base_model=MODEL,
        hook=hook or f"model.layers.{layer}" + (".mlp:in" if transcodes else ""),
        target_hook=f"model.layers.{layer}.mlp" if transcodes else None,
        context=128,
        dataset="monology/pile-uncopyrighted",
    )
    described = description(Published(dataclasses.asdict(config), tensors, origin))
    described["result"]["metrics"] = {"l0": 7.5}
    if not transcodes:
        _as_trained_here(described)
    path.mkdir(parents=True)
    write_checkpoint(path, described, tensors)
    return path


def _as_trained_here(described: dict) -> None:
    """What saekit's own training records. (A transcoder's would name a store of its target.)"""
    del described["published"]
    spec = make_spec(
        **{name: described["spec"][name] for name in ("model", "hook", "d_in", "dataset")},
        revision="main",
        context=128,
    )
    described |= {
        "spec": spec.to_json(),
        "fingerprint": spec.fingerprint,
        "content": "0" * 64,
        "input_scale": 1.0,
        "backend": {"name": "torch"},
    }
    described["result"] |= {"step": 10, "rows": 100, "rows_per_s": 1.0, "backend": "torch"}


def saelens(path: Path, x: torch.Tensor) -> Result:
    settings, w = json.loads((path / "cfg.json").read_text()), weights(path, x)
    b_dec = w["b_dec"] if settings["apply_b_dec_to_input"] else 0.0
    pre = (x - b_dec) @ w["W_enc"] + w["b_enc"]
    architecture = settings["architecture"]
    if architecture == "abstopk":
        chosen = pre.abs().topk(settings["k"]).indices
        code = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen))
    elif architecture == "topk":
        code = largest(pre, settings["k"])
    elif architecture.startswith("jumprelu"):
        code = pre.relu() * (pre > w["threshold"])
    else:
        code = pre.relu()
    x_hat = code @ w["W_dec"] + w["b_dec"]
    return code, x_hat + x @ w["W_skip"].T if "skip" in architecture else x_hat


def sparsify(path: Path, x: torch.Tensor) -> Result:
    settings, w = json.loads((path / "cfg.json").read_text()), weights(path, x)
    centered = x if settings["transcode"] else x - w["b_dec"]
    code = largest(centered @ w["encoder.weight"].T + w["encoder.bias"], settings["k"])
    x_hat = code @ w["W_dec"] + w["b_dec"]
    return code, x_hat + x @ w["W_skip"].T if settings["skip_connection"] else x_hat


def dictionary_learning(path: Path, x: torch.Tensor) -> Result:
    trainer = json.loads((path / "config.json").read_text())["trainer"]
    w = {n: t.to(x.dtype) for n, t in torch.load(path / "ae.pt", weights_only=True).items()}
    if trainer["dict_class"] == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        code = (pre * (pre > w["threshold"])).relu()
        return code, code @ w["W_dec"] + w["b_dec"]
    if trainer["dict_class"] == "AutoEncoderNew":
        code = (x @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        return code, code @ w["decoder.weight"].T + w["decoder.bias"]
    b_dec = w["bias"] if trainer["dict_class"] == "AutoEncoder" else w["b_dec"]
    pre = (x - b_dec) @ w["encoder.weight"].T + w["encoder.bias"]
    code = pre.relu() if trainer["dict_class"] == "AutoEncoder" else largest(pre, int(w["k"]))
    return code, code @ w["decoder.weight"].T + b_dec


def gemma_scope_2(path: Path, x: torch.Tensor) -> Result:
    w = weights(path, x)
    pre = x @ w["w_enc"] + w["b_enc"]
    code = pre.relu() * (pre > w["threshold"])
    x_hat = code @ w["w_dec"] + w["b_dec"]
    affine = w.get("affine_skip_connection")
    return code, x_hat if affine is None else x_hat + x @ affine


def circuit_tracer(path: Path, x: torch.Tensor, layer: int = 0) -> Result:
    w = {n: t.to(x.dtype) for n, t in load_file(path / f"layer_{layer}.safetensors").items()}
    pre = x @ w["W_enc"].T + w["b_enc"]
    threshold = w.get("activation_function.threshold")
    code = pre.relu() if threshold is None else pre * (pre > threshold)
    x_hat = code @ w["W_dec"] + w["b_dec"]
    return code, x_hat + x @ w["W_skip"].T if "W_skip" in w else x_hat


FORMULAS = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "gemma_scope_2": gemma_scope_2,
    "circuit_tracer": circuit_tracer,
}


def weights(path: Path, x: torch.Tensor) -> Tensors:
    """The one file of tensors in a folder, in the dtype of x."""
    (file,) = path.glob("*.safetensors")
    return {name: tensor.to(x.dtype) for name, tensor in load_file(file).items()}


def largest(pre: torch.Tensor, k: int) -> torch.Tensor:
    top = pre.relu().topk(k)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())

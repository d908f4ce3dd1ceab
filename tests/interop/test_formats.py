"""Every format computes what its own program computes: the formulas are written out here, in
float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_dictionaries import (
    D,
    F,
    K,
    dictionary_learning,
    gemma_scope,
    hook_z,
    old_saelens,
    saelens,
    sparsify,
    weights,
)
from safetensors.torch import load_file, save_file

from saekit.interop.opening import open_published
from saekit.training.checkpoints import load

W = {name: tensor.double() for name, tensor in weights().items()}


def pre(x: torch.Tensor, subtract: bool = True) -> torch.Tensor:
    return (x - W["b_dec"] if subtract else x) @ W["W_enc"] + W["b_enc"]


def relu(x: torch.Tensor) -> torch.Tensor:
    return pre(x).relu()


def largest(x: torch.Tensor) -> torch.Tensor:
    values, indices = pre(x).relu().topk(K)
    return torch.zeros(len(x), F, dtype=x.dtype).scatter(1, indices, values)


def largest_in_size(x: torch.Tensor) -> torch.Tensor:
    values = pre(x)
    indices = values.abs().topk(K).indices
    return torch.zeros_like(values).scatter(1, indices, values.gather(1, indices))


def jump(x: torch.Tensor, subtract: bool = True, threshold: Any = W["threshold"]) -> torch.Tensor:
    values = pre(x, subtract)
    return values.relu() * (values > threshold)


def gated(x: torch.Tensor, r_mag: torch.Tensor, b_mag: torch.Tensor) -> torch.Tensor:
    centered = x - W["b_dec"]
    gate = centered @ W["W_enc"] + W["b_enc"]  # b_enc: the gate's bias in both formats
    return (gate > 0) * (centered @ (W["W_enc"] * r_mag.double().exp()) + b_mag.double()).relu()


def saelens_gated(x: torch.Tensor, path: Path) -> torch.Tensor:
    tensors = load_file(path / "sae_weights.safetensors")
    return gated(x, tensors["r_mag"], tensors["b_mag"])


def learning_gated(x: torch.Tensor, path: Path) -> torch.Tensor:
    tensors = torch.load(path / "ae.pt", weights_only=True)
    return gated(x, tensors["r_mag"], tensors["mag_bias"])


def learning(kind: str, **changed) -> Callable[[Path], Path]:
    return lambda path: dictionary_learning(path, kind, **changed)


# name -> (writes it, its code, its relative error in float64)
CASES: dict[str, tuple[Callable[[Path], Path], Callable[..., torch.Tensor], float]] = {
    "saelens standard": (saelens, relu, 1e-12),
    "saelens standard, b_dec not subtracted": (
        lambda path: saelens(path, apply_b_dec_to_input=False),
        lambda x: pre(x, False).relu(),
        1e-12,
    ),
    "saelens topk": (lambda path: saelens(path, "topk"), largest, 1e-12),
    "saelens jumprelu": (lambda path: saelens(path, "jumprelu"), jump, 1e-12),
    # exp(r) W_enc is rounded to float32
    "saelens gated": (lambda path: saelens(path, "gated"), saelens_gated, 1e-6),
    "saelens before 6": (old_saelens, relu, 1e-12),
    "saelens before 6, topk": (
        lambda path: old_saelens(
            path, activation_fn_str="topk", activation_fn_kwargs={"k": K}, architecture="standard"
        ),
        largest,
        1e-12,
    ),
    "sparsify": (lambda path: sparsify(path / "layers.5.mlp"), largest, 1e-12),
    "dictionary_learning AutoEncoder": (learning("AutoEncoder"), relu, 1e-12),
    "dictionary_learning AutoEncoder, b_dec": (
        learning("AutoEncoder", bias=None, b_dec=weights()["b_dec"]),
        relu,
        1e-12,
    ),
    "sparsify signed": (
        lambda path: sparsify(path, signed=True),
        largest_in_size,
        1e-12,
    ),
    "dictionary_learning AutoEncoderNew": (
        learning("AutoEncoderNew"),
        lambda x: pre(x, False).relu(),
        1e-12,
    ),
    "dictionary_learning TopK": (learning("AutoEncoderTopK"), largest, 1e-12),
    "dictionary_learning BatchTopK": (
        learning("BatchTopKSAE"),
        lambda x: jump(x, threshold=0.25),
        1e-12,
    ),
    "dictionary_learning Matryoshka": (
        learning("MatryoshkaBatchTopKSAE"),
        lambda x: jump(x, threshold=0.25),
        1e-12,
    ),
    "dictionary_learning JumpReLU": (
        learning("JumpReluAutoEncoder"),
        lambda x: jump(x, False),
        1e-12,
    ),
    "dictionary_learning Gated": (learning("GatedAutoEncoder"), learning_gated, 1e-6),
    "hook_z": (hook_z, relu, 1e-12),
    "gemma_scope": (gemma_scope, lambda x: jump(x, False), 1e-12),
}


def rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(9)).double()


def same(ours: torch.Tensor, theirs: torch.Tensor, relative: float) -> bool:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max()) <= relative


@pytest.mark.parametrize("name", CASES)
def test_code_and_reconstruction_are_those_of_the_format(tmp_path, name):
    write, code_of, tolerance = CASES[name]
    path, x = write(tmp_path / "sae"), rows()
    code = code_of(x, path) if "ated" in name else code_of(x)
    x_hat = code @ W["W_dec"] + W["b_dec"]
    assert 0 < (code != 0).double().mean() < 0.9, "some latents are active, some are not"
    sae = load(path)
    assert not sae.training
    for model, dtype, relative in ((sae, torch.float32, 1e-6), (sae.double(), x.dtype, tolerance)):
        output = model(x.to(dtype))
        assert same(output.code.to_dense(), code, relative)
        assert same(output.x_hat, x_hat, relative)
        assert same(
            model.decode(model.encode(x.to(dtype).view(10, 20, D))).view(-1, D), x_hat, relative
        )


def test_the_gradient_passes_through_the_subtraction_of_b_dec(tmp_path):
    sae, x = load(saelens(tmp_path / "sae")).double(), rows(4).requires_grad_()
    (ours,) = torch.autograd.grad(sae(x).x_hat.square().sum(), x)
    (theirs,) = torch.autograd.grad((relu(x) @ W["W_dec"] + W["b_dec"]).square().sum(), x)
    assert same(ours, theirs, 1e-12)


@pytest.mark.parametrize("skip", [False, True])
def test_a_sparsify_transcoder_reads_x_as_it_is(tmp_path, skip):
    path, x = sparsify(tmp_path / "layers.5.mlp", transcode=True, skip=skip), rows()
    values, indices = pre(x, False).relu().topk(K)
    code = torch.zeros(len(x), F, dtype=x.dtype).scatter(1, indices, values)
    x_hat = code @ W["W_dec"] + W["b_dec"]
    if skip:
        x_hat = x_hat + x @ load_file(path / "sae.safetensors")["W_skip"].double().T
    sae = load(path)
    assert same(sae(x.float()).x_hat, x_hat, 1e-6)
    assert same(sae.double()(x).x_hat, x_hat, 1e-12)


def test_negative_thresholds_act_as_zero(tmp_path):
    threshold = weights()["threshold"] - 0.4
    assert 0 < (threshold < 0).float().mean() < 1
    sae = load(gemma_scope(tmp_path / "a", threshold=threshold.numpy())).double()
    assert same(sae.encode(rows()), jump(rows(), False, threshold.double()), 1e-12)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_estimated_leaves_a_relu(tmp_path, kind):
    path, x = dictionary_learning(tmp_path / "sae", kind, threshold=-1.0), rows()
    assert "did not estimate a threshold" in open_published(path).origin.notes[0]
    estimated = dictionary_learning(tmp_path / "estimated", kind)
    assert open_published(estimated).origin.notes == ()
    output = load(path).double()(x)
    assert same(output.code, relu(x), 1e-12)
    assert same(output.x_hat, relu(x) @ W["W_dec"] + W["b_dec"], 1e-12)


def test_half_precision_files_open_with_the_same_values(tmp_path):
    path = saelens(tmp_path / "sae")
    file = path / "sae_weights.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(halves, file)
    assert torch.equal(load(path).W_enc, halves["W_enc"].float().T)


def test_what_the_files_say_of_their_origin(tmp_path):
    origin = open_published(saelens(tmp_path / "a")).origin
    assert (origin.format, origin.base_model, origin.hook, origin.context) == (
        *("saelens", "gpt2", "blocks.8.hook_resid_pre"),
        128,
    )
    assert origin.special_tokens == {"prepend_bos": True, "exclude_special_tokens": False}
    assert origin.files.keys() == {"cfg.json", "sae_weights.safetensors"}
    old = open_published(old_saelens(tmp_path / "b")).origin
    assert (old.hook, old.layer) == ("blocks.3.hook_resid_pre", 3)
    run = open_published(sparsify(tmp_path / "run" / "layers.5.mlp")).origin
    assert (run.base_model, run.hook) == ("EleutherAI/pythia-160m", "layers.5.mlp")
    transcoder = open_published(sparsify(tmp_path / "run" / "layers.6.mlp", transcode=True)).origin
    assert (transcoder.hook, transcoder.target_hook) == ("layers.6.mlp:in", "layers.6.mlp")
    trainer = open_published(dictionary_learning(tmp_path / "c", "AutoEncoder")).origin
    assert (trainer.hook, trainer.layer, trainer.context) == ("resid_post_layer_8", 8, 1024)
    heads = open_published(hook_z(tmp_path / "d")).origin
    assert (heads.hook, heads.layer) == ("blocks.0.attn.hook_z", 0) and heads.notes
    gemma = open_published(gemma_scope(tmp_path / "layer_12" / "width_16k" / "average_l0_82"))
    assert gemma.origin.layer == 12 and gemma.origin.base_model is None


def test_expected_average_scaling_is_in_the_weights_already(tmp_path):
    folded = saelens(tmp_path / "a", normalize_activations="expected_average_only_in")
    assert open_published(folded).origin.normalization == "expected_average_only_in"
    assert torch.equal(
        load(folded)(rows().float()).x_hat, load(saelens(tmp_path / "b"))(rows().float()).x_hat
    )


def test_a_dictionary_of_dictionary_learning_opens_by_its_file_too(tmp_path):
    path = dictionary_learning(tmp_path / "a", "AutoEncoder")
    assert torch.equal(load(path / "ae.pt").W_enc, load(path).W_enc)


def test_the_file_of_a_gemma_scope_dictionary_opens_too_and_small_w(tmp_path):
    folder = gemma_scope(tmp_path / "a")
    arrays = dict(np.load(folder / "params.npz"))
    lower = {f"w{name[1:]}" if name.startswith("W") else name: a for name, a in arrays.items()}
    np.savez(tmp_path / "params.npz", **lower)
    assert torch.equal(load(tmp_path / "params.npz").W_dec, load(folder).W_dec)

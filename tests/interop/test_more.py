"""OpenAI, Llama Scope, Llamascopium, Qwen-Scope, Goodfire, DeepSeek-R1, saev and ViT-Prisma compute
what their own programs compute: the formulas are written out here, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_dictionaries import D, F, K, weights
from made_more import (
    MEAN_NORMS,
    deepseek_r1,
    goodfire,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    openai,
    qwen_scope,
    saev,
    saev_header,
    vit_prisma,
)
from safetensors.torch import load_file, save_file

from saekit import import_dictionary
from saekit.errors import DataError
from saekit.interop.opening import open_published
from saekit.training.checkpoints import load

W = {name: tensor.double() for name, tensor in weights().items()}
NORMS = W["W_dec"].norm(dim=1)
MOST = 40  # so many that some of the largest values of a row are negative
IN, OUT = (math.sqrt(D) / norm for norm in MEAN_NORMS)
# of norms that a file has in float32
IN_32, OUT_32 = (math.sqrt(D) / float(torch.tensor(norm)) for norm in MEAN_NORMS)
Result = tuple[torch.Tensor, torch.Tensor]  # code, x_hat


def pre(x: torch.Tensor, subtract: bool = True) -> torch.Tensor:
    return (x - W["b_dec"] if subtract else x) @ W["W_enc"] + W["b_enc"]


def decode(code: torch.Tensor) -> torch.Tensor:
    return code @ W["W_dec"] + W["b_dec"]


def largest(values: torch.Tensor) -> torch.Tensor:
    kept, indices = values.relu().topk(K)
    return torch.zeros_like(values).scatter(1, indices, kept)


def largest_of_any_sign(values: torch.Tensor) -> torch.Tensor:
    kept, indices = values.topk(MOST)
    return torch.zeros_like(values).scatter(1, indices, kept)


def layer_normed(x: torch.Tensor, code_of: Callable[[torch.Tensor], torch.Tensor]) -> Result:
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    code = code_of((x - mean) / (std + 1e-5))
    return code, decode(code) * std + mean


def constant_normed(x: torch.Tensor, code_of: Callable[[torch.Tensor], torch.Tensor]) -> Result:
    factor = math.sqrt(D) / x.norm(dim=1, keepdim=True)
    code = code_of(x * factor)
    return code, decode(code) / factor


def plain(code: torch.Tensor) -> Result:
    return code, decode(code)


def scaled(x: torch.Tensor, f_in: float, f_out: float, activation: Callable) -> Result:
    """Language-Model-SAEs with dataset-wise normalization."""
    code = activation(pre(f_in * x, False))
    return code, decode(code) / f_out


def jump(values: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    return values * (values > threshold)


def largest_by_norm(values: torch.Tensor) -> Result:
    """The code in units of the decoder's norms, and x_hat before the output's factor."""
    code = largest(values * NORMS)
    return code, decode(code / NORMS)


def by_norm(x: torch.Tensor, factor: float) -> Result:
    code, x_hat = largest_by_norm(pre(factor * x, False))
    return code, x_hat / factor


def gated(x: torch.Tensor, path: Path) -> Result:
    state = torch.load(path / "weights.pt", weights_only=True)
    y = x - W["b_dec"]
    gate = y @ W["W_enc"] + state["b_gate"].double()
    magnitude = y @ (W["W_enc"] * state["r_mag"].double().exp()) + state["b_mag"].double()
    return plain((gate > 0) * magnitude.relu())


def goodfire_rounded(x: torch.Tensor) -> Result:
    half = {name: tensor.bfloat16().double() for name, tensor in weights().items()}
    code = (x @ half["W_enc"] + half["b_enc"]).relu()
    return code, code @ half["W_dec"] + half["b_dec"]


TARGET = {"hook_point_out": "blocks.15.hook_mlp_out"}
SIDES = {"dataset_average_activation_norm": dict(zip(("in", "out"), MEAN_NORMS))}
WITHOUT_NORM = {"sparsity_include_decoder_norm": False}
THETA = W["threshold"]
# name -> (writes it, its code and reconstruction)
CASES: dict[str, tuple[Callable[[Path], Path], Callable[[torch.Tensor], Result]]] = {
    "openai topk": (openai, lambda x: layer_normed(x, lambda y: largest(pre(y)))),
    "openai topk with Identity": (
        lambda p: openai(p, after="Identity", k=MOST),
        lambda x: layer_normed(x, lambda y: largest_of_any_sign(pre(y))),
    ),
    "openai relu": (lambda p: openai(p, "ReLU"), lambda x: plain(pre(x).relu())),
    "openai without activation": (lambda p: openai(p, None), lambda x: plain(pre(x).relu())),
    "llama_scope": (
        llama_scope,
        lambda x: scaled(x, IN, IN, lambda v: jump(v, 0.11 * IN / NORMS)),
    ),
    "llama_scope without norms in the threshold": (
        lambda p: llama_scope(p, **WITHOUT_NORM),
        lambda x: scaled(x, IN, IN, lambda v: jump(v, 0.11 * IN)),
    ),
    "llama_scope transcoder": (
        lambda p: llama_scope(p, **TARGET, **SIDES),
        lambda x: scaled(x, IN, OUT, lambda v: jump(v, 0.11 * OUT / NORMS)),
    ),
    "llama_scope topk": (
        lambda p: llama_scope(p, act_fn="topk", jump_relu_threshold=0.0),
        lambda x: by_norm(x, IN),
    ),
    "llama_scope topk with a threshold": (
        lambda p: llama_scope(p, act_fn="topk"),
        lambda x: scaled(x, IN, IN, lambda v: jump(v, 0.11 * IN / NORMS)),
    ),
    "llama_scope relu, b_dec subtracted": (
        lambda p: llama_scope(p, act_fn="relu", apply_decoder_bias_to_pre_encoder=True),
        lambda x: (code := pre(IN * x).relu(), decode(code) / IN),
    ),
    "llamascopium": (
        llamascopium,
        lambda x: scaled(x, IN_32, IN_32, lambda v: jump(v * NORMS, THETA) / NORMS),
    ),
    "llamascopium .pt": (
        lambda p: llamascopium(p, suffix=".pt"),
        lambda x: scaled(x, IN_32, IN_32, lambda v: jump(v * NORMS, THETA) / NORMS),
    ),
    "llamascopium without norms in the threshold": (
        lambda p: llamascopium(p, **WITHOUT_NORM),
        lambda x: scaled(x, IN_32, IN_32, lambda v: jump(v, THETA)),
    ),
    "llamascopium transcoder": (
        lambda p: llamascopium(p, **TARGET),
        lambda x: scaled(x, IN_32, OUT_32, lambda v: jump(v * NORMS, THETA) / NORMS),
    ),
    "llamascopium relu": (
        lambda p: llamascopium(p, "relu"),
        lambda x: scaled(x, IN_32, IN_32, torch.relu),
    ),
    "llamascopium topk": (lambda p: llamascopium(p, "topk"), lambda x: by_norm(x, IN_32)),
    "llamascopium topk without norms": (
        lambda p: llamascopium(p, "topk", **WITHOUT_NORM),
        lambda x: scaled(x, IN_32, IN_32, largest),
    ),
    "llamascopium token-wise": (
        lambda p: llamascopium(p, "relu", norm_activation="token-wise"),
        lambda x: constant_normed(x, lambda y: pre(y, False).relu()),
    ),
    "llamascopium inference": (
        lambda p: llamascopium(p, "relu", norm_activation="inference"),
        lambda x: plain(pre(x, False).relu()),
    ),
    "llama_scope_r1": (
        lambda p: llama_scope_r1(p, **WITHOUT_NORM),
        lambda x: scaled(x, IN_32, IN_32, lambda v: jump(v, THETA)),
    ),
    "qwen_scope": (qwen_scope, lambda x: plain(largest(pre(x, False)))),
    "goodfire": (goodfire, goodfire_rounded),
    "deepseek_r1": (deepseek_r1, lambda x: plain(pre(x, False).relu())),
    "saev 0.1.0": (saev, lambda x: plain(pre(x).relu())),
    "saev schema 5": (
        lambda p: saev(p, saev_header("Relu")),
        lambda x: plain(pre(x, False).relu()),
    ),
    "saev batch-top-k": (
        lambda p: saev(
            p,
            saev_header("BatchTopK", top_k=K),
            **{"activation.threshold": torch.tensor(0.3)},
        ),
        lambda x: plain(jump(pre(x, False), float(torch.tensor(0.3)))),
    ),
    "saev top-k": (
        lambda p: saev(p, saev_header("TopK", top_k=MOST)),
        lambda x: plain(largest_of_any_sign(pre(x, False))),
    ),
    "saev top-k of schema 1 with b_dec = 0": (
        lambda p: saev(
            p,
            {"schema": 1, "cls": "TopK", "cfg": {"d_vit": D, "top_k": MOST}},
            b_dec=torch.zeros(D),
        ),
        lambda x: (code := largest_of_any_sign(pre(x, False)), code @ W["W_dec"]),
    ),
    "saev schema 1 with b_dec = 0": (
        lambda p: saev(p, {"schema": 1, "cls": "Relu", "cfg": {"d_vit": D}}, b_dec=torch.zeros(D)),
        lambda x: (code := pre(x, False).relu(), code @ W["W_dec"]),
    ),
    "vit_prisma layer_norm": (
        vit_prisma,
        lambda x: layer_normed(x, lambda y: pre(y).relu()),
    ),
    "vit_prisma none": (
        lambda p: vit_prisma(p, normalize_activations="none"),
        lambda x: plain(pre(x).relu()),
    ),
    "vit_prisma constant_norm_rescale, topk": (
        lambda p: vit_prisma(
            p,
            file="n_images_2600058.pt",
            normalize_activations="constant_norm_rescale",
            activation_fn_str="topk",
            activation_fn_kwargs={"k": K},
        ),
        lambda x: constant_normed(x, lambda y: largest(pre(y))),
    ),
}


def rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(9)).double() * 1.3 + 0.2


def same(ours: torch.Tensor, theirs: torch.Tensor, relative: float) -> bool:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max()) <= relative


def compare(path: Path, x: torch.Tensor, result: Result, tolerance: float = 1e-12) -> None:
    code, x_hat = result
    assert 0 < (code != 0).double().mean() < 0.9, "some latents are active, some are not"
    sae = load(path)
    for model, dtype, relative in ((sae, torch.float32, 1e-6), (sae.double(), x.dtype, tolerance)):
        output = model(x.to(dtype))
        assert same(output.code.to_dense(), code, relative)
        assert same(output.x_hat, x_hat, relative)


@pytest.mark.parametrize("name", CASES)
def test_code_and_reconstruction_are_those_of_the_format(tmp_path, name):
    write, result_of = CASES[name]
    compare(write(tmp_path / "sae"), rows(), result_of(rows()))


@pytest.mark.parametrize(
    "name",
    [
        *("openai topk", "saev top-k", "llama_scope transcoder", "llamascopium topk"),
        "vit_prisma layer_norm",
    ],
)
def test_an_import_computes_the_same(tmp_path, name):
    source, x = CASES[name][0](tmp_path / "src"), rows().float()
    import_dictionary(source, tmp_path / "out")
    imported, published = load(tmp_path / "out"), load(source)
    assert imported.config == published.config
    assert torch.equal(imported(x).x_hat, published(x).x_hat)


@pytest.mark.parametrize("name", ["openai topk with Identity", "saev top-k"])
def test_negative_values_among_the_largest_are_active(tmp_path, name):
    code = load(CASES[name][0](tmp_path / "sae")).encode(rows().float())
    assert code.is_sparse and (code.nnz == MOST).all()
    assert torch.equal(code.transpose().counts(), (code.to_dense() != 0).sum(0))
    assert (code.vals < 0).any() and (code.vals > 0).any()


def test_a_k_above_the_number_of_latents_is_all_of_them_in_saev(tmp_path):
    opened = open_published(saev(tmp_path / "sae", saev_header("TopK", top_k=F + 1)))
    assert opened.config["k"] == F


def test_a_gated_dictionary_of_vit_prisma(tmp_path):
    path = vit_prisma(tmp_path / "sae", "gated", normalize_activations="none")
    compare(path, rows(), gated(rows(), path), tolerance=1e-6)  # exp(r) W_enc is rounded


def test_llama_scope_gives_the_reconstruction_of_its_own_program(tmp_path):
    """It folds the factors, then the decoder's norms, and compares with the threshold last."""
    path, x = llama_scope(tmp_path / "tc", **TARGET, **SIDES), rows()
    W_dec = W["W_dec"] * IN / OUT
    norms = W_dec.norm(dim=1)
    code = jump((x @ W["W_enc"] + W["b_enc"] / IN) * norms, 0.11)
    x_hat = code @ (W_dec / norms[:, None]) + W["b_dec"] / OUT
    output = load(path).double()(x)
    assert same(output.x_hat, x_hat, 1e-12)
    assert same(output.code, code / (NORMS / OUT), 1e-12)


def test_a_latent_without_a_decoder_vector_is_never_active(tmp_path):
    path = llama_scope(tmp_path / "sae", jump_relu_threshold=0.0)
    file = path / "checkpoints" / "final.safetensors"
    tensors = load_file(file)
    tensors["decoder.weight"][:, 3] = 0
    save_file(tensors, file)
    assert not load(path).encode(rows().float())[:, 3].any()


def test_without_a_decoder_bias_b_dec_is_zero(tmp_path):
    path = llamascopium(tmp_path / "sae", "relu", use_decoder_bias=False)
    with pytest.raises(DataError, match="b_D"):
        load(path)
    file = path / "sae_weights.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name != "b_D"}, file)
    assert not load(path).b_dec.any()


def test_what_the_files_and_their_names_say_of_their_origin(tmp_path):
    found = {
        name: open_published(CASES[name][0](tmp_path / name.replace(" ", "_"))).origin
        for name in CASES
    }
    expected = {
        "openai topk": ("gpt2", "blocks.6.hook_resid_post", 6, "layer_norm"),
        "openai relu": ("gpt2", "blocks.6.hook_resid_post", 6, "none"),
        "llama_scope": (
            *("meta-llama/Llama-3.1-8B", "blocks.15.hook_resid_post", 15),
            "dataset-wise",
        ),
        "llamascopium": (None, "blocks.6.hook_resid_post", 6, "dataset-wise"),
        "qwen_scope": ("Qwen/Qwen3-8B-Base", "blocks.12.hook_resid_post", 12, "none"),
        "goodfire": (
            *("meta-llama/Llama-3.1-8B-Instruct", "blocks.19.hook_resid_post", 19),
            "none",
        ),
        "deepseek_r1": (
            *("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "blocks.19.hook_resid_post", 19),
            "none",
        ),
        "vit_prisma layer_norm": (
            *("open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "blocks.9.hook_mlp_out", 9),
            "layer_norm",
        ),
    }
    for name, said in expected.items():
        origin = found[name]
        assert (origin.base_model, origin.hook, origin.layer, origin.normalization) == said
    assert found["llama_scope transcoder"].target_hook == "blocks.15.hook_mlp_out"
    assert found["llama_scope"].target_hook is None
    scope = found["vit_prisma layer_norm"].special_tokens
    assert scope == {"cls_token_only": False, "use_patches_only": True}
    assert found["llamascopium topk"].notes and not found["llamascopium"].notes


def test_saev_takes_model_layer_and_patches_from_what_is_beside_the_file(tmp_path):
    alone = open_published(saev(tmp_path / "a")).origin
    assert alone.base_model is None and alone.hook is None and alone.normalization is None
    assert "does not say" in alone.notes[0]
    path = saev(tmp_path / "SAE_CLIP_24K_ViT-B-16_IN1K")
    origin = open_published(path).origin
    assert (origin.base_model, origin.hook) == ("openai/clip-vit-base-patch16", "blocks.10")
    assert origin.special_tokens == {"patches": "patches"}
    data = {"layer": -2, "patches": "cls", "scale_mean": True, "scale_norm": True}
    (path / "config.json").write_text(json.dumps({"data": data}))
    origin = open_published(path).origin
    assert origin.layer == -2 and origin.hook is None, "counted from the end of another model"
    assert origin.special_tokens == {"patches": "cls"}
    assert origin.normalization == "scale_mean, scale_norm" and "mean norm" in origin.notes[0]
    unscaled = {"layer": 23, "tokens": "content", "scale_norm": False}
    (path / "config.json").write_text(json.dumps({"train_data": unscaled}))
    origin = open_published(path).origin
    assert origin.hook == "blocks.23" and origin.special_tokens == {"tokens": "content"}
    assert origin.normalization == "none" and not origin.notes


def test_files_open_by_their_path_and_by_that_of_their_folder(tmp_path):
    prisma, image = vit_prisma(tmp_path / "a"), saev(tmp_path / "b")
    assert torch.equal(load(prisma / "weights.pt").W_enc, load(prisma).W_enc)
    assert torch.equal(load(image / "sae.pt").W_enc, load(image).W_enc)


def test_the_repository_of_qwen_scope_is_read_from_a_cache_of_the_hub_too(tmp_path):
    repository = f"models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K + 1}"
    blob = qwen_scope(tmp_path, "blobs").rename(tmp_path / "0123")
    link = tmp_path / repository / "snapshots" / "abc" / "layer3.sae.pt"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    opened = open_published(link)
    assert opened.config["k"] == K + 1 and opened.origin.base_model == "Qwen/Qwen3-1.7B-Base"
    assert opened.origin.layer == 3 and len(opened.tensors["W_enc"]) == F

"""The same files in the programs that wrote them and in saekit: the same codes and
reconstructions.

They need an environment of their own, which `make interop` makes; elsewhere these tests are
skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_dictionaries import (
    D,
    F,
    K,
    dictionary_learning,
    hook_z,
    old_saelens,
    saelens,
    saelens_temporal,
    sparsify,
)

from saekit.training.checkpoints import load

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
# exp(r_mag) W_enc is rounded to float32 once
ROUNDED = {torch.float32: 1e-6, torch.float64: 1e-6}
WHY = "only in the environment of `make interop`"


def compare(
    path: Path, theirs: torch.nn.Module, code_of, x_hat_of, tolerances: dict = DTYPES
) -> None:
    """`code_of(x)` and `x_hat_of(x)` are computed by `theirs`, in the dtype of x."""
    ours = load(path)
    rows = torch.randn(300, D, generator=torch.Generator().manual_seed(4))
    for dtype, relative in tolerances.items():
        x, ours, theirs = rows.to(dtype), ours.to(dtype), theirs.to(dtype)
        with torch.no_grad():
            output, code, x_hat = ours(x), code_of(theirs, x), x_hat_of(theirs, x)
        assert code.any()
        for mine, other in ((output.code.to_dense(), code), (output.x_hat, x_hat)):
            assert float((mine - other).abs().max() / other.abs().max()) <= relative


# name -> (architecture, what it changes in cfg.json)
NORMS = ("layer_norm", "constant_norm_rescale")
SAELENS: dict[str, tuple[str, dict]] = {
    **{kind: (kind, {}) for kind in ("standard", "topk", "jumprelu", "gated", "abstopk")},
    **{
        f"{kind} {norm}": (kind, {"normalize_activations": norm})
        for kind in ("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder")
        for norm in NORMS
    },
    **{
        f"{kind} by decoder norm {norm}": (
            kind,
            {"rescale_acts_by_decoder_norm": True, "normalize_activations": norm},
        )
        for kind in ("topk", "abstopk")
        for norm in ("none", "layer_norm")
    },
    **{
        kind: (kind, {})
        for kind in (
            *("transcoder", "skip_transcoder"),
            *("jumprelu_transcoder", "jumprelu_skip_transcoder"),
        )
    },
    "standard, b_dec in the input": ("standard", {"apply_b_dec_to_input": False}),
}


def compare_saelens(path: Path, sae, tolerances: dict = DTYPES, heads: int = 0) -> None:
    """`sae`: the dictionary at `path`, in SAELens; `heads`: it takes rows of so many heads."""

    def shaped(sae, x):  # it casts the input to the dtype of its config
        sae.dtype = x.dtype
        return x.view(len(x), heads, -1) if heads else x

    compare(
        path,
        sae,
        lambda sae, x: sae.encode(shaped(sae, x)).to_dense(),
        lambda sae, x: sae(shaped(sae, x)).flatten(1),
        tolerances,
    )


@pytest.mark.parametrize("name", SAELENS)
def test_saelens(tmp_path, name):
    package = pytest.importorskip("sae_lens", reason=WHY)
    kind, settings = SAELENS[name]
    path = saelens(tmp_path / "sae", kind, **settings)
    sae = package.SAE.load_from_disk(path, device="cpu")
    compare_saelens(path, sae, ROUNDED if kind == "gated" else DTYPES)


@pytest.mark.parametrize(
    ("settings", "heads"),
    [
        ({}, 0),
        ({"hook_point": "blocks.3.attn.hook_z"}, 4),
        (  # such as OpenAI's dictionaries of GPT-2 in SAELens' files
            {
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "normalize_activations": "layer_norm",
                "finetuning_scaling_factor": False,
            },
            0,
        ),
        ({"normalize_activations": False, "architecture": "standard"}, 0),
    ],
)
def test_saelens_before_6(tmp_path, settings, heads):
    package = pytest.importorskip("sae_lens", reason=WHY)
    path = old_saelens(tmp_path / "sae", **settings)
    sae = package.SAE.load_from_disk(path, device="cpu")
    compare_saelens(path, sae, heads=heads)


def test_the_files_with_hook_z(tmp_path):
    """As SAELens' loader for these: a standard SAE with the tensors as they are."""
    package = pytest.importorskip("sae_lens", reason=WHY)
    path = hook_z(tmp_path / "files")
    config = package.StandardSAEConfig(d_in=D, d_sae=F, reshape_activations="hook_z")
    sae = package.StandardSAE(config)
    sae.load_state_dict(torch.load(path))
    compare_saelens(path, sae, heads=4)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batchtopk_of_saelens_that_is_still_training(tmp_path, kind, rescale):
    """What SAELens saves for inference, where it rounds the folded norms to float32."""
    package = pytest.importorskip("sae_lens", reason=WHY)
    settings = {"rescale_acts_by_decoder_norm": rescale}
    settings |= {"matryoshka_widths": [16, F]} if "matryoshka" in kind else {}
    path = saelens(tmp_path / "sae", kind, **settings)
    training = package.TrainingSAE.load_from_disk(path, device="cpu")
    training.save_inference_model(tmp_path / "inference")
    sae = package.SAE.load_from_disk(tmp_path / "inference", device="cpu")
    compare_saelens(path, sae, ROUNDED if rescale else DTYPES)


@pytest.mark.parametrize("settings", [{}, {"transcode": True}, {"transcode": True, "skip": True}])
def test_sparsify(tmp_path, settings):
    package = pytest.importorskip("sparsify", reason=WHY)
    path = sparsify(tmp_path / "layers.5.mlp", **settings)

    def code_of(coder, x):
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), F, dtype=x.dtype).scatter(1, indices, values)

    coder = package.SparseCoder.load_from_disk(path)
    assert coder.cfg.k == K
    compare(path, coder, code_of, lambda coder, x: coder(x).sae_out)


# class -> its module
CLASSES = {
    "AutoEncoder": "dictionary",
    "AutoEncoderNew": "dictionary",
    "GatedAutoEncoder": "dictionary",
    "JumpReluAutoEncoder": "dictionary",
    "AutoEncoderTopK": "trainers.top_k",
    "BatchTopKSAE": "trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
}


def learning_class(kind: str) -> type:
    module = pytest.importorskip(f"dictionary_learning.{CLASSES[kind]}", reason=WHY)
    return getattr(module, kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(tmp_path, kind):
    package = learning_class(kind)
    path = dictionary_learning(tmp_path / "trainer_0", kind)
    # AutoEncoder: the codes of the file's own decoder norms
    as_written = {"normalize_decoder": False} if kind == "AutoEncoder" else {}
    dictionary = package.from_pretrained(path / "ae.pt", **as_written)
    compare(
        path,
        dictionary,
        lambda dictionary, x: dictionary.encode(x),
        lambda dictionary, x: dictionary(x),
        ROUNDED if kind == "GatedAutoEncoder" else DTYPES,
    )


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_dictionary_learning_did_not_estimate(tmp_path, kind):
    package = learning_class(kind)
    path = dictionary_learning(tmp_path / "trainer_0", kind, threshold=-1.0)
    dictionary = package.from_pretrained(path / "ae.pt")
    compare(path, dictionary, lambda theirs, x: theirs.encode(x), lambda theirs, x: theirs(x))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied_weights": False, "n_attn_layers": 2},
        {"apply_b_dec_to_input": False, "sae_diff_type": "relu"},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
    ],
)
def test_a_temporal_sae_of_saelens(tmp_path, settings):
    package = pytest.importorskip("sae_lens", reason=WHY)
    path = saelens_temporal(tmp_path / "sae", **settings)
    theirs, ours = package.SAE.load_from_disk(path, device="cpu"), load(path)
    contexts = 8 * torch.randn(6, 9, D, generator=torch.Generator().manual_seed(4))
    for dtype, relative in DTYPES.items():
        x, ours, theirs = contexts.to(dtype), ours.to(dtype), theirs.to(dtype)
        theirs.dtype = dtype
        with torch.no_grad():
            output, code, x_hat = ours(x), theirs.encode(x), theirs(x)
        assert code.any()
        for mine, other in ((output.code, code), (output.x_hat, x_hat)):
            assert float((mine - other).abs().max() / other.abs().max()) <= relative

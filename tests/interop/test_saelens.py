"""SAELens folders of every architecture compute what SAELens computes: its formulas are written out
here, in float64, on the tensors of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_dictionaries import D_OUT, D, F, K, old_saelens, saelens
from safetensors.torch import load_file, save_file

from saekit.errors import DataError
from saekit.interop.opening import open_published
from saekit.interop.saelens import read
from saekit.models.catalog import restore
from saekit.training.checkpoints import load

FILE = "sae_weights.safetensors"


def rows(n: int = 200) -> torch.Tensor:
    """Rows with a mean of their own, so that a norm that misses it shows."""
    gen = torch.Generator().manual_seed(9)
    return (3 * torch.randn(n, D, generator=gen) + torch.randn(n, 1, generator=gen)).double()


def same(ours: torch.Tensor, theirs: torch.Tensor, relative: float) -> bool:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max()) <= relative


def reference(path: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(code, x_hat) as sae_lens/saes of 6.54.12 define them."""
    cfg = json.loads((path / "cfg.json").read_text())
    W = {name: tensor.double() for name, tensor in load_file(path / FILE).items()}
    kind, norm, raw = cfg["architecture"], cfg["normalize_activations"], x
    # the input
    mean = std = torch.zeros(len(x), 1, dtype=x.dtype)
    if norm == "layer_norm":
        mean = x.mean(1, keepdim=True)
        std = ((x - mean).square().sum(1, keepdim=True) / (D - 1)).sqrt()
        x = (x - mean) / (std + 1e-5)
    length = raw.square().sum(1, keepdim=True).sqrt()
    if norm == "constant_norm_rescale":
        x = x * (D**0.5 / length)
    if cfg["apply_b_dec_to_input"]:
        x = x - W["b_dec"]
    # the code
    norms = W["W_dec"].square().sum(1).sqrt()
    norms = norms if cfg.get("rescale_acts_by_decoder_norm") else torch.ones_like(norms)
    if kind == "gated":
        gate = x @ W["W_enc"] + W["b_gate"] > 0
        code = gate * (x @ (W["W_enc"] * W["r_mag"].exp()) + W["b_mag"]).relu()
    else:
        pre = (x @ W["W_enc"] + W["b_enc"]) * norms
        code = pre.relu()
        if "jumprelu" in kind:
            code = code * (pre > W["threshold"])
        if "batchtopk" in kind:  # as SAELens saves it for inference, with a float32 threshold
            code = code * (pre > float(load_file(path / FILE)["topk_threshold"].float()))
        if kind == "topk":
            code = torch.zeros_like(pre).scatter(
                1, pre.topk(K).indices, code.gather(1, pre.topk(K).indices)
            )
        if kind == "abstopk":
            chosen = pre.abs().topk(K).indices
            code = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen))
    # the reconstruction
    x_hat = code / norms @ W["W_dec"] + W["b_dec"]
    if "transcoder" not in kind:
        x_hat = x_hat * std + mean if norm == "layer_norm" else x_hat
        x_hat = x_hat / (D**0.5 / length) if norm == "constant_norm_rescale" else x_hat
    if "skip" in kind:
        x_hat = x_hat + raw @ W["W_skip"].T
    return code, x_hat


ARCHITECTURES = (
    *("standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk"),
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
)
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def check(path: Path, roundings: float = 1e-12) -> None:
    x, sae = rows(), load(path)
    code, x_hat = reference(path, x)
    assert 0 < (code != 0).double().mean() < 0.9, "some latents are active, some are not"
    for model, dtype, relative in ((sae, torch.float32, 1e-6), (sae.double(), x.dtype, roundings)):
        output = model(x.to(dtype).view(10, 20, D))
        assert same(output.code.to_dense().flatten(0, 1), code, relative)
        assert same(output.x_hat.flatten(0, 1), x_hat, relative)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_code_and_reconstruction_are_those_of_saelens(tmp_path, architecture, norm):
    path = saelens(tmp_path / "sae", architecture, normalize_activations=norm)
    check(path, 1e-6 if architecture == "gated" else 1e-12)


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk"])
@pytest.mark.parametrize("norm", NORMS)
def test_latents_may_compete_by_decoder_norm(tmp_path, architecture, norm):
    changed = {"rescale_acts_by_decoder_norm": True, "normalize_activations": norm}
    check(saelens(tmp_path / "sae", architecture, **changed))


@pytest.mark.parametrize("norm", NORMS)
def test_b_dec_may_stay_in_the_input(tmp_path, norm):
    check(saelens(tmp_path / "sae", apply_b_dec_to_input=False, normalize_activations=norm))


def test_heads_lie_side_by_side(tmp_path):
    old = open_published(old_saelens(tmp_path / "a", hook_point="blocks.3.attn.hook_z"))
    new = open_published(saelens(tmp_path / "b", reshape_activations="hook_z"))
    for published in (old, new):
        assert any("output projection" in note for note in published.origin.notes)
    plain = load(saelens(tmp_path / "c"))
    assert torch.equal(load(tmp_path / "b")(rows(4).float()).x_hat, plain(rows(4).float()).x_hat)


def test_a_factor_for_each_latent_is_in_the_decoder(tmp_path):
    path = old_saelens(tmp_path / "sae", finetuning_scaling_factor=True)
    tensors = load_file(path / FILE)
    factor = torch.rand(F, generator=torch.Generator().manual_seed(3)) + 0.5
    save_file(tensors | {"scaling_factor": factor}, path / FILE)
    W, x = {name: tensor.double() for name, tensor in tensors.items()}, rows()
    code = ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
    output = load(path).double()(x)
    assert same(output.code, code, 1e-12)
    assert same(output.x_hat, code * factor.double() @ W["W_dec"] + W["b_dec"], 1e-6)


def test_the_factor_of_the_registry_scales_input_and_output(tmp_path):
    """SAELens folds it in: W_enc f, W_dec / f, b_dec / f."""
    path = saelens(tmp_path / "sae", normalize_activations="expected_average_only_in")
    f, x = 0.37, rows()
    dictionary = read(path, {"norm_scaling_factor": f})
    sae = restore("sae", dictionary.config, dictionary.tensors).double()
    W = {name: tensor.double() for name, tensor in load_file(path / FILE).items()}
    code = ((x - W["b_dec"] / f) @ (W["W_enc"] * f) + W["b_enc"]).relu()
    assert same(sae(x).code, code, 1e-12)
    assert same(sae(x).x_hat, code @ (W["W_dec"] / f) + W["b_dec"] / f, 1e-12)
    assert same(sae.decode(sae.encode(x)), code @ (W["W_dec"] / f) + W["b_dec"] / f, 1e-12)


def test_the_registry_overrides_the_settings(tmp_path):
    overrides = {"normalize_activations": "constant_norm_rescale", "hook_name": "blocks.4.hook_z"}
    dictionary = read(saelens(tmp_path / "sae"), overrides)
    assert dictionary.config["input_norm"] == "constant_norm"
    assert dictionary.origin.hook == "blocks.4.hook_z"


def test_a_transcoder_says_both_of_its_hooks(tmp_path):
    dictionary = open_published(saelens(tmp_path / "sae", "jumprelu_skip_transcoder"))
    origin, config = dictionary.origin, dictionary.config
    assert (origin.hook, origin.target_hook) == ("blocks.8.hook_resid_pre", "blocks.8.hook_mlp_out")
    assert (config["d_in"], config["d_out"], config["skip"]) == (D, D_OUT, True)


def test_how_saelens_loads_the_base_model_is_noted(tmp_path):
    metadata = {
        "hook_name": "blocks.8.attn.hook_q",
        "hook_head_index": 3,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    notes = open_published(saelens(tmp_path / "sae", metadata=metadata)).origin.notes
    assert len(notes) == 2 and "head 3" in notes[0] and "center_writing_weights" in notes[1]


REFUSED = {
    'normalize_activations = "covariance_whitening"': (
        "standard",
        {"normalize_activations": "covariance_whitening"},
    ),
    'normalize_activations = "expected_average_only_in"': (
        "batchtopk",
        {"normalize_activations": "expected_average_only_in"},
    ),
    'reshape_activations = "heads"': ("standard", {"reshape_activations": "heads"}),
    "apply_b_dec_to_input = True": ("transcoder", {"apply_b_dec_to_input": True}),
    "d_out = 0": ("skip_transcoder", {"d_out": 0}),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_not_computed_is_named_with_its_value(tmp_path, setting):
    architecture, changed = REFUSED[setting]
    with pytest.raises(DataError) as error:
        load(saelens(tmp_path / "sae", architecture, **changed))
    assert setting in str(error.value) and error.value.hint


def test_a_factor_on_top_of_decoder_norms_is_refused(tmp_path):
    changed = {"normalize_activations": "expected_average_only_in"}
    path = saelens(tmp_path / "sae", "topk", rescale_acts_by_decoder_norm=True, **changed)
    with pytest.raises(DataError, match="norm_scaling_factor"):
        read(path, {"norm_scaling_factor": 2.0})


@pytest.mark.parametrize(
    "threshold", [torch.zeros(3).double(), torch.tensor(float("nan")).double()]
)
def test_a_batchtopk_has_one_finite_threshold(tmp_path, threshold):
    path = saelens(tmp_path / "sae", "batchtopk")
    save_file(load_file(path / FILE) | {"topk_threshold": threshold}, path / FILE)
    with pytest.raises(DataError, match="topk_threshold"):
        load(path)

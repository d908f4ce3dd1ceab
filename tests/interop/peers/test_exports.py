"""What we export, in the programs whose files these are: they load it, and give the same codes and
reconstructions as the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_exports import D, F, checkpoint, differ, rows

from saekit import export_dictionary
from saekit.training.checkpoints import load

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
MOVED = {torch.float32: 1e-6, torch.float64: 1e-6}  # b_enc is rounded to float32 once
WHY = "only in the environment of `make interop`"


def compare(source: Path, theirs, code_of, x_hat_of, tolerances: dict = DTYPES) -> None:
    """`code_of(theirs, x)` and `x_hat_of(theirs, x)` are computed by the other program, in the
    dtype of x."""
    ours = load(source)
    for dtype, relative in tolerances.items():
        x, ours, theirs = rows(dtype), ours.to(dtype), theirs.to(dtype)
        with torch.no_grad():
            output, code, x_hat = ours(x), code_of(theirs, x), x_hat_of(theirs, x)
        assert 0 < int(code.count_nonzero()) < code.numel()
        assert differ(output.code.to_dense(), code) <= relative
        assert differ(output.x_hat, x_hat) <= relative


def compare_saelens(source: Path, sae) -> None:
    def in_dtype(sae, x):  # it casts the input to the dtype of its config
        sae.dtype = x.dtype
        return sae

    compare(
        source,
        sae,
        lambda sae, x: in_dtype(sae, x).encode(x).to_dense(),
        lambda sae, x: in_dtype(sae, x)(x),
    )


SAELENS = [
    *(
        (sparsity, {"subtract_b_dec": subtracts})
        for sparsity in ("l1", "topk", "batchtopk", "jumprelu", "gated", "abs-topk")
        for subtracts in (False, True)
    ),
    *(
        (sparsity, {"d_out": d_out, "skip": skip})
        for sparsity in ("l1", "jumprelu")
        for d_out in (D, 24)
        for skip in (False, True)
    ),
    ("topk", {"input_norm": "layer_norm"}),
    ("jumprelu", {"input_norm": "constant_norm", "subtract_b_dec": True}),
    ("l1", {"input_norm": "layer_norm", "d_out": D}),
    ("topk", {"rescale_by_decoder_norm": True}),
    ("abs-topk", {"rescale_by_decoder_norm": True, "subtract_b_dec": True}),
]


@pytest.mark.parametrize(("sparsity", "options"), SAELENS, ids=str)
def test_saelens(tmp_path, sparsity, options):
    package = pytest.importorskip("sae_lens", reason=WHY)
    source = checkpoint(tmp_path / "run", sparsity, **options)
    export_dictionary(source, tmp_path / "out", format="saelens")
    sae = package.SAE.load_from_disk(tmp_path / "out", device="cpu")
    metadata = sae.cfg.metadata
    assert metadata.model_name == "HuggingFaceTB/SmolLM2-135M" and metadata.context_size == 128
    assert metadata.saekit_version and metadata.hook_name.startswith("blocks.3.")
    compare_saelens(source, sae)


def test_saelens_gives_heads_on_an_axis_of_their_own(tmp_path):
    package = pytest.importorskip("sae_lens", reason=WHY)
    source = checkpoint(tmp_path / "run", "topk", hook="model.layers.3.self_attn.o_proj:in")
    export_dictionary(source, tmp_path / "out", format="saelens")
    sae, ours, x = package.SAE.load_from_disk(tmp_path / "out"), load(source), rows()
    x_hat = sae(x.view(len(x), 4, D // 4))
    assert x_hat.shape == (len(x), 4, D // 4)
    assert differ(ours(x).x_hat, x_hat.detach().flatten(1)) <= 1e-6


SPARSIFY = [
    ({}, MOVED),
    ({"subtract_b_dec": True}, DTYPES),
    ({"d_out": D}, DTYPES),
    ({"d_out": D, "skip": True}, DTYPES),
]


@pytest.mark.parametrize(("options", "tolerances"), SPARSIFY, ids=str)
def test_sparsify(tmp_path, options, tolerances):
    package = pytest.importorskip("sparsify", reason=WHY)
    source = checkpoint(tmp_path / "run", "topk", **options)
    export_dictionary(source, tmp_path / "layers.3", format="sparsify")

    def code_of(coder, x):
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), F, dtype=x.dtype).scatter(1, indices, values)

    coder = package.SparseCoder.load_many(str(tmp_path), local=True, layers=["layers.3"])
    compare(source, coder["layers.3"], code_of, lambda coder, x: coder(x).sae_out, tolerances)


DICTIONARY_LEARNING = [
    ("l1", False, "AutoEncoderNew", DTYPES),
    ("l1", True, "AutoEncoder", DTYPES),
    ("topk", False, "AutoEncoderTopK", MOVED),
    ("topk", True, "AutoEncoderTopK", DTYPES),
    ("batchtopk", False, "JumpReluAutoEncoder", DTYPES),
    ("jumprelu", False, "JumpReluAutoEncoder", DTYPES),
    ("jumprelu", True, "JumpReluAutoEncoder", MOVED),
]


@pytest.mark.parametrize(("sparsity", "subtracts", "kind", "tolerances"), DICTIONARY_LEARNING)
def test_dictionary_learning(tmp_path, sparsity, subtracts, kind, tolerances):
    pytest.importorskip("dictionary_learning", reason=WHY)
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    source = checkpoint(tmp_path / "run", sparsity, subtract_b_dec=subtracts)
    out = tmp_path / "out"
    export_dictionary(source, out, format="dictionary_learning")
    if kind == "AutoEncoder":  # codes of the file's own decoder norms
        dictionary = AutoEncoder.from_pretrained(out / "ae.pt", normalize_decoder=False)
    else:
        dictionary, _ = load_dictionary(str(out), "cpu")
    assert type(dictionary).__name__ == kind
    compare(
        source,
        dictionary,
        lambda dictionary, x: dictionary.encode(x),
        lambda dictionary, x: dictionary(x),
        tolerances,
    )


@pytest.mark.parametrize("sparsity", ["l1", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer(tmp_path, sparsity, skip):
    package = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", reason=WHY)
    yaml = pytest.importorskip("yaml")
    sources = [
        checkpoint(tmp_path / f"mlp{n}", sparsity, layer=n, seed=n, d_out=D, skip=skip)
        for n in range(3)
    ]
    out = tmp_path / "out"
    export_dictionary(sources, out, format="circuit_tracer")
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["model_kind"] == "transcoder_set" and "SmolLM2" in settings["model_name"]
    hooks = {name: settings[name] for name in ("feature_input_hook", "feature_output_hook")}
    assert list(hooks.values()) == ["mlp.hook_in", "hook_mlp_out"]
    transcoders = package.load_transcoder_set(
        {n: str(out / f"layer_{n}.safetensors") for n in range(3)},
        scan="set",
        lazy_encoder=False,
        lazy_decoder=False,
        **hooks,
    )
    for source, transcoder in zip(sources, transcoders, strict=True):
        assert (transcoder.W_skip is not None) == skip
        compare(source, transcoder, lambda t, x: t.encode(x), lambda t, x: t(x))


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_in_circuit_tracer(tmp_path, skip):
    package = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", reason=WHY)
    source = checkpoint(tmp_path / "run", "jumprelu", d_out=D, skip=skip)
    export_dictionary(source, tmp_path / "out", format="gemma_scope_2")
    transcoder = package.load_gemma_scope_2_transcoder(tmp_path / "out/params.safetensors", 3)
    compare(source, transcoder, lambda t, x: t.encode(x), lambda t, x: t(x))


def test_gemma_scope_2_in_saelens(tmp_path, monkeypatch):
    """SAELens reads these from the hub only, and takes kind and layer from the names of folders:
    its loader is given this folder as what was downloaded."""
    package = pytest.importorskip("sae_lens", reason=WHY)
    loaders = package.loading.pretrained_sae_loaders
    name = "resid_post_all/layer_3_width_48_l0_small"
    source = checkpoint(tmp_path / "run", "jumprelu")
    export_dictionary(source, tmp_path / name, format="gemma_scope_2")

    def download(repo_id, filename, subfolder=None, **_) -> str:
        return str(tmp_path / (subfolder or "") / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(
        loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [D, F], "w_dec": [F, D]}
    )
    settings, state, _ = loaders.gemma_3_sae_huggingface_loader("org/repo", name)
    settings = loaders.handle_config_defaulting(settings)
    sae = package.SAE.from_dict(settings)
    sae.load_state_dict(state)
    compare_saelens(source, sae)

"""Temporal SAEs: the formulas of sae_lens/saes/temporal_sae.py are written out here, in float64,
position by position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_dictionaries import BOTTLENECK, HEADS, D, F, K, saelens_temporal, temporal
from made_stores import write_store
from safetensors.torch import load_file

from saekit.errors import DataError, UsageError
from saekit.evaluation.compare import open_inputs
from saekit.evaluation.table import evaluate
from saekit.interop.importing import import_dictionary
from saekit.interop.opening import open_published
from saekit.models.catalog import build
from saekit.store.reader import open_store
from saekit.training.checkpoints import load

T = 7


def contexts(n: int = 6) -> torch.Tensor:
    gen = torch.Generator().manual_seed(2)
    return 8 * torch.randn(n, T, D, generator=gen).double()


def attended(W: dict[str, torch.Tensor], layer: int, z: torch.Tensor) -> torch.Tensor:
    """(T,F): what the positions of one context predict from the codes (T,F) before them."""

    def linear(name: str, a: torch.Tensor) -> torch.Tensor:
        part = f"attn_layers.{layer}.{name}"
        return W[f"{part}.weight"] @ a + W[f"{part}.bias"]

    earlier = [torch.zeros(F).double(), *z[:-1]]
    width, mixed = F // BOTTLENECK // HEADS, torch.zeros_like(z)
    for t in range(len(z)):
        query = linear("q_target", z[t]).view(HEADS, width)
        for head in range(HEADS):
            keys = [linear("k_ctx", earlier[s]).view(HEADS, width)[head] for s in range(t + 1)]
            weights = torch.stack([query[head] @ key for key in keys]) / width**0.5
            share = weights.exp() / weights.exp().sum()
            part = slice(head * F // HEADS, (head + 1) * F // HEADS)
            values = [linear("v_ctx", earlier[s])[part] for s in range(t + 1)]
            mixed[t, part] = sum(a * value for a, value in zip(share, values))
    return torch.stack([linear("c_proj", mixed[t]) for t in range(len(z))]).relu()


def reference(path: Path, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(code, x_hat) of one context."""
    cfg = json.loads((path / "cfg.json").read_text())
    W = {name: t.double() for name, t in load_file(path / "sae_weights.safetensors").items()}
    factor = cfg["activation_normalization_factor"]
    subtract, tied = cfg["apply_b_dec_to_input"], cfg["tied_weights"]
    encoder = W["W_dec"].T if tied else W["W_enc"]
    r = x_TD * factor - (W["b_dec"] if subtract else 0.0)
    predicted = torch.zeros(len(r), F).double()
    for layer in range(cfg["n_attn_layers"]):
        p = attended(W, layer, (r / (4 * D) @ encoder).relu())
        direction = p @ W["W_dec"]
        size = (direction.square().sum(1).sqrt() + 1e-6).square()
        share = ((direction * r).sum(1) / size)[:, None]
        predicted, r = predicted + share * p, r - share * direction
    code = (r / (4 * D) @ encoder).relu()
    if cfg["sae_diff_type"] == "topk":
        code = code * (code >= code.topk(K).values[:, -1:])
    bias = W["b_dec"] if subtract or not tied else 0.0
    return code, ((code + predicted) @ W["W_dec"] + bias) / factor


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied_weights": False},
        {"apply_b_dec_to_input": False},
        {"tied_weights": False, "apply_b_dec_to_input": False},
        {"n_attn_layers": 2, "sae_diff_type": "relu"},
    ],
)
def test_code_and_reconstruction_are_those_of_saelens(tmp_path, settings):
    path, x = saelens_temporal(tmp_path / "sae", **settings), contexts()
    sae = load(path).double()
    output = sae(x.view(2, 3, T, D))
    for n in range(len(x)):
        code, x_hat = reference(path, x[n])
        torch.testing.assert_close(output.code.flatten(0, 1)[n], code, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(output.x_hat.flatten(0, 1)[n], x_hat, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sae.encode(x), sae(x).code)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_norms_are_undone(tmp_path, norm):
    path, x = saelens_temporal(tmp_path / "a", normalize_activations=norm), contexts()
    plain = load(saelens_temporal(tmp_path / "b", normalize_activations="none")).double()
    mean = x.mean(-1, keepdim=True) if norm == "layer_norm" else 0.0
    std = x.std(-1, keepdim=True) if norm == "layer_norm" else x.norm(dim=-1, keepdim=True) / D**0.5
    eps = 1e-5 if norm == "layer_norm" else 0.0
    expected = plain((x - mean) / (std + eps)).x_hat * std + mean
    torch.testing.assert_close(load(path).double()(x).x_hat, expected, rtol=1e-10, atol=1e-12)


def test_the_published_files_are_the_same_dictionary(tmp_path):
    folder = temporal(tmp_path / "layer_3_and_more" / "layer_12" / "temporal")
    theirs, x = load(saelens_temporal(tmp_path / "sae")), contexts().float()
    assert torch.equal(load(folder)(x).x_hat, theirs(x).x_hat)
    origin = open_published(folder).origin
    assert (origin.format, origin.hook) == ("temporal", "blocks.12.hook_resid_post")


def test_padding_changes_nothing_before_it(tmp_path):
    """Contexts of 7 and 4 positions, judged one by one and in one padded batch."""
    import_dictionary(saelens_temporal(tmp_path / "sae"), tmp_path / "out")
    sae, x = load(tmp_path / "out"), contexts(2).float()
    lengths = (T, 4)
    padded = x.clone()
    padded[1, 4:] = 100.0
    output = sae(padded, torch.arange(T) < torch.tensor(lengths)[:, None])
    for n, length in enumerate(lengths):
        alone = sae(x[n, :length])
        torch.testing.assert_close(output.x_hat[n, :length], alone.x_hat)
        torch.testing.assert_close(output.code[n, :length], alone.code)


def test_a_table_judges_whole_contexts(tmp_path):
    """85 contexts of 7 states and one of 5, which is padded."""
    import_dictionary(saelens_temporal(tmp_path / "sae"), tmp_path / "out")
    of = {"layout": "sequence", "hook": "blocks.12.hook_resid_post"}
    store = write_store(tmp_path / "store", 600, width=D, tokens=T, **of)
    sae = load(tmp_path / "out")
    rows = open_store(store).take(np.arange(600)).x.double()
    outputs = [sae(context.float()) for context in rows.split(T)]
    code, x_hat = (torch.cat([getattr(o, name) for o in outputs]) for name in ("code", "x_hat"))
    metrics = evaluate(tmp_path / "out", store)[0].metrics
    assert metrics["l0"] == pytest.approx(float((code > 0).sum() / 600), rel=1e-6)
    fvu = (rows - x_hat).square().sum() / (rows - rows.mean(0)).square().sum()
    assert metrics["fvu"] == pytest.approx(float(fvu), rel=1e-5)
    with pytest.raises(UsageError, match="a code for each position"):
        open_inputs([tmp_path / "out"], store, None, None, None, None, 10, 0)


REFUSED = {
    'sae_diff_type = "batchtopk"': {"sae_diff_type": "batchtopk"},
    "kval_topk = 2.5": {"kval_topk": 2.5},
    'normalize_activations = "covariance_whitening"': {
        "normalize_activations": "covariance_whitening"
    },
    'tied_weights = "yes"': {"tied_weights": "yes"},
    "not multiples of": {"n_heads": 5},
    "bottleneck_factor = 0": {"bottleneck_factor": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_computed_is_named(tmp_path, message):
    with pytest.raises(DataError, match=message):
        load(saelens_temporal(tmp_path / "sae", **REFUSED[message]))


def test_rows_without_their_context_are_refused(tmp_path):
    sae = load(saelens_temporal(tmp_path / "sae"))
    flat = write_store(tmp_path / "flat", 100, width=D)
    for model in (tmp_path / "sae", sae):
        with pytest.raises(DataError, match=r"shape \(None, 16\), those of .*flat have \(16,\)"):
            evaluate(model, flat)
    with pytest.raises(DataError, match="one example is"):
        sae(contexts()[0, 0].float())
    with pytest.raises(UsageError, match="contextual"):
        build("contextual", D, {})

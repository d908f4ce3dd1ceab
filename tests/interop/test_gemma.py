"""Gemma Scope 1 and 2 compute what Google's own code computes: the formulas are written out here,
in float64."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import made_stores
import numpy as np
import pytest
import torch
from made_dictionaries import D, F, weights
from made_gemma import (
    LATENTS,
    LAYERS,
    SITES,
    WIDTH,
    embedding,
    layer_weights,
    of_layers,
    scope_1,
    scope_2,
    skip,
)
from safetensors.torch import load_file, save_file

import saekit
from saekit.errors import DataError
from saekit.inspection.opening import open_pair
from saekit.interop.opening import open_published
from saekit.models.cross_layer import CrossLayerTranscoder

W = {name: tensor.double() for name, tensor in weights().items()}


def jump(x: torch.Tensor) -> torch.Tensor:
    pre = x @ W["W_enc"] + W["b_enc"]
    return pre.relu() * (pre > W["threshold"])


def decoded(z: torch.Tensor) -> torch.Tensor:
    return z @ W["W_dec"] + W["b_dec"]


def rows(width: int = D) -> torch.Tensor:
    return torch.randn(100, width, generator=torch.Generator().manual_seed(9)).double()


def agree(path: Path, x: torch.Tensor, code: torch.Tensor, x_hat: torch.Tensor) -> None:
    """Codes and reconstructions in both dtypes, of flat rows and of rows in two dimensions."""
    assert 0 < (code != 0).double().mean() < 0.9
    model = saekit.load(path)
    for dtype, relative in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        model = model.to(dtype)
        output = model(x.to(dtype).view(10, 10, -1))
        for ours, theirs in ((output.code.to_dense(), code), (output.x_hat, x_hat)):
            assert ours.shape[:2] == (10, 10)
            error = (ours.flatten(0, 1).double() - theirs).abs().max()
            assert float(error / theirs.abs().max()) <= relative


# -- Gemma Scope 1


@pytest.mark.parametrize("site", ["res", "transcoders"])
def test_sae_and_transcoder_of_scope_1(tmp_path, site):
    path, x = scope_1(tmp_path, f"gemma-scope-2b-pt-{site}"), rows()
    agree(path, x, jump(x), decoded(jump(x)))
    assert saekit.load(path).transcodes == (site == "transcoders")


def test_without_a_repository_the_name_of_any_folder_says_that_it_is_a_transcoder(tmp_path):
    assert saekit.load(scope_1(tmp_path, "my_transcoders")).transcodes
    notes = open_published(scope_1(tmp_path / "b", "my_transcoders")).origin.notes
    assert notes == ("A transcoder, since a folder is named my_transcoders.",)


def test_an_embedding_dictionary_acts_on_rows_before_the_factor_sqrt_d(tmp_path):
    x = rows() * 4
    code = jump(x / 4)  # sqrt(16)
    agree(embedding(tmp_path), x, code, decoded(code) * 4)


@pytest.mark.parametrize(
    ("repository", "model", "hook", "target"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "blocks.12.hook_resid_post", None),
        ("gemma-scope-9b-it-res", "google/gemma-2-9b-it", "blocks.12.hook_resid_post", None),
        ("gemma-scope-9b-pt-mlp", "google/gemma-2-9b", "blocks.12.hook_mlp_out", None),
        ("gemma-scope-2b-pt-att", "google/gemma-2-2b", "blocks.12.attn.hook_z", None),
        (
            "models--google--gemma-scope-2b-pt-transcoders",  # in the cache of the hub
            *("google/gemma-2-2b", "blocks.12.ln2.hook_normalized", "blocks.12.hook_mlp_out"),
        ),
    ],
)
def test_the_folders_of_scope_1_say_model_and_hook(tmp_path, repository, model, hook, target):
    origin = open_published(scope_1(tmp_path, repository)).origin
    assert (origin.base_model, origin.hook, origin.target_hook) == (model, hook, target)
    assert (origin.layer, origin.context) == (12, 1024)
    assert origin.special_tokens == {"prepend_bos": True, "exclude_special_tokens": True}


def test_the_folder_of_a_linked_file_counts_not_that_of_its_target(tmp_path):
    """The hub's cache holds links to files that are named after their content."""
    path, blobs = scope_1(tmp_path), tmp_path / "blobs"
    blobs.mkdir()
    shutil.move(path / "params.npz", blobs / "3f1c")
    (path / "params.npz").symlink_to(blobs / "3f1c")
    assert open_published(path).origin.hook == "blocks.12.hook_resid_post"
    assert open_published(embedding(tmp_path / "b")).origin.hook == "hook_embed"


def test_a_scaling_factor_of_ones_is_dropped_and_others_are_refused(tmp_path):
    opened = scope_1(tmp_path / "a", scaling_factor=np.ones(F, np.float32))
    assert saekit.load(opened).latents == F
    with pytest.raises(DataError, match="scaling_factor"):
        saekit.load(scope_1(tmp_path / "b", scaling_factor=np.full(F, 2, np.float32)))


# -- Gemma Scope 2, one hook


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_dictionaries_of_one_hook(tmp_path, site, described):
    path, x = scope_2(tmp_path, site, described=described), rows()
    agree(path, x, jump(x), decoded(jump(x)))
    assert saekit.load(path).transcodes == (site == "transcoder_all")
    origin, (reads, writes) = open_published(path).origin, SITES[site]
    assert (origin.base_model, origin.layer) == ("google/gemma-3-1b-pt", 12)
    assert origin.hook == reads and origin.target_hook == (writes if reads != writes else None)


def test_an_affine_skip_is_transposed_to_our_layout(tmp_path):
    path, x = scope_2(tmp_path, "transcoder_all", affine=True), rows()
    agree(path, x, jump(x), decoded(jump(x)) + x @ skip(D).double())
    assert saekit.load(path / "params.safetensors").W_skip is not None


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"architecture": "topk"}, 'architecture = "topk"'),
        ({"type": "lorsa"}, 'type = "lorsa"'),
        ({"affine_connection": True}, "no tensor affine_skip_connection"),
        ({"affine_connection": "yes"}, 'affine_connection = "yes"'),
    ],
)
def test_settings_that_are_not_computed_are_named(tmp_path, settings, cause):
    with pytest.raises(DataError) as error:
        saekit.load(scope_2(tmp_path, **settings))
    assert cause in str(error.value)


def test_without_settings_and_folders_sae_and_transcoder_are_not_told_apart(tmp_path):
    moved = shutil.move(scope_2(tmp_path, described=False), tmp_path / "downloaded")
    with pytest.raises(DataError, match="type = None") as error:
        saekit.load(moved)
    assert "resid_post" in error.value.hint


def test_an_affine_skip_that_the_settings_deny_is_refused(tmp_path):
    path = scope_2(tmp_path, "transcoder_all", affine=True, affine_connection=False)
    with pytest.raises(DataError, match="tensor affine_skip_connection"):
        saekit.load(path)
    path = scope_2(tmp_path, "resid_post", affine=True)
    with pytest.raises(DataError, match="affine_skip_connection"):
        saekit.load(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma-v3-4b-it", "google/gemma-3-4b-it"),
        ("google/gemma-3-270m-pt", "google/gemma-3-270m"),
    ],
)
def test_the_base_model_has_its_name_on_the_hub(tmp_path, name, expected):
    assert open_published(scope_2(tmp_path, model_name=name)).origin.base_model == expected


# -- Gemma Scope 2, several layers


def many(x_BLD: torch.Tensor, affine: bool, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes (B,L,F), x_hat (B,L,D)) as Google's JumpReLUMultiLayerSAE computes them."""
    stacked = [layer_weights(layer, causal) for layer in range(LAYERS)]
    w = {name: torch.stack([t[name] for t in stacked]).double() for name in stacked[0]}
    pre = torch.einsum("bld,ldf->blf", x_BLD, w["w_enc"]) + w["b_enc"]
    z = pre.relu() * (pre > w["threshold"])
    x_hat = torch.einsum("blf,lfkd->bkd", z, w["w_dec"]) + w["b_dec"]
    if affine:
        skips = torch.stack([skip(WIDTH, 30 + layer) for layer in range(LAYERS)]).double()
        x_hat = x_hat + torch.einsum("bld,lde->ble", x_BLD, skips)
    return z, x_hat


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("affine", [False, True])
def test_a_clt_writes_to_every_later_layer(tmp_path, affine, causal):
    path, x = of_layers(tmp_path, affine=affine, causal=causal), rows(LAYERS * WIDTH)
    code, x_hat = many(x.view(-1, LAYERS, WIDTH), affine, causal)
    agree(path, x, code.flatten(1), x_hat.flatten(1))
    model = saekit.load(path)
    assert isinstance(model, CrossLayerTranscoder) and model.config.causal == causal
    assert [layer.d_out for layer in model.layers] == [
        WIDTH * (LAYERS - (number if causal else 0)) for number in range(LAYERS)
    ]


def test_a_layer_of_a_clt_is_a_transcoder_of_what_it_adds(tmp_path):
    path, x = of_layers(tmp_path, affine=True), rows(LAYERS * WIDTH).float()
    model = saekit.load(path)
    x_hat = torch.zeros(len(x), LAYERS * WIDTH)
    for layer in range(LAYERS):
        alone = saekit.load(path / f"params_layer_{layer}.safetensors")
        assert alone.d_in == WIDTH and alone.d_out == (LAYERS - layer) * WIDTH
        for name, tensor in model.layers[layer].state_dict().items():
            assert torch.equal(alone.state_dict()[name], tensor)
        x_hat[:, layer * WIDTH :] += alone(x[:, layer * WIDTH : (layer + 1) * WIDTH]).x_hat
    assert torch.allclose(x_hat, model(x).x_hat, atol=1e-6)


def test_what_the_files_of_a_clt_say_of_their_origin(tmp_path):
    path = of_layers(tmp_path)
    whole = open_published(path).origin
    assert whole.hook == "+".join(
        f"model.layers.{layer}.pre_feedforward_layernorm.output" for layer in range(LAYERS)
    )
    assert whole.layer is None and len(whole.files) == LAYERS + 1
    part = open_published(path / "params_layer_1.safetensors").origin
    assert part.layer == 1 and part.hook == "model.layers.1.pre_feedforward_layernorm.output"
    assert part.target_hook == "+".join(
        f"model.layers.{layer}.post_feedforward_layernorm.output" for layer in (1, 2)
    )


def test_a_crosscoder_has_the_hooks_of_its_layers_side_by_side(tmp_path):
    path, x = of_layers(tmp_path, "crosscoder", causal=False), rows(LAYERS * WIDTH)
    code, x_hat = many(x.view(-1, LAYERS, WIDTH), False, False)
    agree(path, x, code.flatten(1), x_hat.flatten(1))
    model = saekit.load(path)
    assert model.config.parts == (WIDTH,) * LAYERS and model.latents == LAYERS * LATENTS
    hook = open_published(path).origin.hook
    assert hook == "model.layers.7.output+model.layers.13.output+model.layers.17.output"


def test_a_crosscoder_is_evaluated_on_the_stores_of_its_hooks(tmp_path, monkeypatch):
    path, rows_of, stores = (
        of_layers(tmp_path, "crosscoder", causal=False),
        made_stores.make_rows,
        [],
    )
    for seed in range(LAYERS):
        monkeypatch.setattr(made_stores, "make_rows", functools.partial(rows_of, seed=seed))
        name = tmp_path / f"acts-{seed}"
        stores.append(made_stores.write_store(name, width=WIDTH, hook=f"blocks.{7 + seed}"))
    saekit.import_dictionary(path, tmp_path / "out")
    (published,) = saekit.evaluate(path, stores, any_store=True)
    (imported,) = saekit.evaluate(tmp_path / "out", stores, any_store=True)
    assert published.metrics == imported.metrics
    assert published.metrics["parts"].keys() == {"blocks.7", "blocks.8", "blocks.9"}
    # scales by the stores, as the import does not know those of the training
    even = open_pair(tmp_path / "out", stores, any_store=True).even_directions()
    assert even.isfinite().all() and even.shape == (LAYERS * LATENTS, LAYERS * WIDTH)
    # in a folder of another name the hooks are not known
    moved = shutil.move(path, tmp_path / "moved")
    assert saekit.evaluate(moved, stores, any_store=True)[0].metrics == published.metrics
    with pytest.raises(DataError, match="reads 3 stores"):
        saekit.evaluate(moved, stores[:2])


def test_parts_of_several_layers_that_do_not_open_alone_are_named(tmp_path):
    path = of_layers(tmp_path, "crosscoder")
    with pytest.raises(DataError, match="part of a crosscoder") as error:
        saekit.load(path / "params_layer_0.safetensors")
    assert str(path) in error.value.hint
    (path / "params_layer_1.safetensors").unlink()
    with pytest.raises(DataError, match=r"has the layers \[0, 2\]"):
        saekit.load(path)


def test_layers_that_do_not_fit_each_other_are_refused(tmp_path):
    path = of_layers(tmp_path)
    file = path / "params_layer_1.safetensors"
    whole = load_file(file)
    save_file(whole | {"w_dec": whole["w_dec"][:, 1:].contiguous()}, file)
    with pytest.raises(DataError, match="with 3 layers"):
        saekit.load(path)
    fewer = {name: whole[name][:5].contiguous() for name in ("b_enc", "threshold", "w_dec")}
    save_file(whole | fewer | {"w_enc": whole["w_enc"][:, :5].contiguous()}, file)
    with pytest.raises(DataError, match="latents is 5, and by the other layers 12"):
        saekit.load(path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"type": "crosscoder"}))
    save_file(whole, file)
    assert saekit.load(path).config.parts == (WIDTH,) * LAYERS

"""circuit-tracer's files compute what circuit-tracer computes: the formulas are written out here,
in float64."""

from __future__ import annotations

import pytest
import torch
import yaml
from made_circuit_tracer import CONFIG, clt, clt_layer, transcoder, wandb
from made_dictionaries import D, F, weights
from made_gemma import LATENTS, LAYERS, WIDTH, skip
from safetensors.torch import load_file, save_file
from test_gemma import agree, rows

import saekit
from saekit.errors import DataError
from saekit.interop.opening import open_published

W = {name: tensor.double() for name, tensor in weights().items()}


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("jumps", [False, True])
def test_a_transcoder_of_a_set(tmp_path, jumps, skips):
    path, x = transcoder(tmp_path / "set", jumps=jumps, skips=skips), rows()
    pre = x @ W["W_enc"] + W["b_enc"]
    code = pre * (pre > W["threshold"]) if jumps else pre.relu()
    x_hat = code @ W["W_dec"] + W["b_dec"]
    agree(path, x, code, x_hat + x @ skip(D).double() if skips else x_hat)
    assert saekit.load(path).transcodes


def test_a_negative_threshold_lets_negative_values_pass(tmp_path):
    threshold = W["threshold"].float() - 0.4
    path, x = (
        transcoder(tmp_path, jumps=True, **{"activation_function.threshold": threshold}),
        rows(),
    )
    pre = x @ W["W_enc"] + W["b_enc"]
    code = pre * (pre > threshold.double())
    assert (code < 0).any()
    agree(path, x, code, code @ W["W_dec"] + W["b_dec"])


def test_one_threshold_is_that_of_all_latents(tmp_path):
    path = transcoder(tmp_path, jumps=True, **{"activation_function.threshold": torch.tensor(0.3)})
    assert torch.equal(saekit.load(path).threshold, torch.full((F,), 0.3))
    other = transcoder(tmp_path / "b", threshold=torch.full((F,), 0.2))
    assert torch.equal(saekit.load(other).threshold, torch.full((F,), 0.2))


def test_what_the_settings_of_a_set_say(tmp_path):
    path = transcoder(tmp_path / "set")
    wandb(path.parent, name="wanb-config.yaml")
    origin = open_published(path).origin
    assert (origin.base_model, origin.layer) == ("Qwen/Qwen3-0.6B", 3)
    assert (origin.hook, origin.target_hook) == ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    assert origin.files.keys() == {"config.yaml", "wanb-config.yaml", "layer_3.safetensors"}
    (path.parent / "config.yaml").unlink()
    assert open_published(path).origin.hook is None


def test_a_set_of_qwen_without_settings_is_known_by_its_repository(tmp_path):
    path = transcoder(tmp_path / "models--mwhanna--qwen3-14b-transcoders-lowl0" / "snapshots" / "a")
    (path.parent / "config.yaml").unlink()
    origin = open_published(path).origin
    assert origin.base_model == "Qwen/Qwen3-14B" and origin.hook == "blocks.3.mlp.hook_in"


def test_a_folder_opens_where_it_holds_one_layer(tmp_path):
    transcoder(tmp_path / "set")
    assert open_published(tmp_path / "set").origin.layer == 3
    transcoder(tmp_path / "set", layer=4)
    with pytest.raises(DataError, match="transcoders of 2 layers") as error:
        saekit.load(tmp_path / "set")
    assert "layer_3.safetensors" in error.value.hint


def test_settings_that_list_files_elsewhere_are_refused_with_one_of_them(tmp_path):
    listed = ["hf://google/gemma-scope-2b-pt-transcoders/layer_0/params.npz"]
    (tmp_path / "config.yaml").write_text(yaml.dump(CONFIG | {"transcoders": listed}))
    with pytest.raises(DataError, match="in other files") as error:
        saekit.load(tmp_path)
    assert listed[0] in error.value.hint


def test_another_activation_function_is_refused(tmp_path):
    path = transcoder(tmp_path / "a")
    wandb(path.parent, act_fn="topk")
    with pytest.raises(DataError, match='activation = "topk"'):
        saekit.load(path)
    other = transcoder(tmp_path / "b")
    (other.parent / "config.yaml").write_text(yaml.dump(CONFIG | {"activation": "topk", "k": 32}))
    with pytest.raises(DataError, match='activation = "topk"'):
        saekit.load(other)
    # a value that would be long to show
    bomb = "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))
    (other.parent / "config.yaml").write_text(f"x0: &x0 [1]\n{bomb}activation: *x39\n")
    with pytest.raises(DataError, match='activation = "list"'):
        open_published(other)


def test_tensors_that_are_not_explained_are_refused(tmp_path):
    with pytest.raises(DataError, match="tensor log_thresholds"):
        saekit.load(transcoder(tmp_path / "a", log_thresholds=torch.zeros(F)))
    with pytest.raises(DataError, match="two thresholds"):
        saekit.load(transcoder(tmp_path / "b", jumps=True, threshold=torch.zeros(F)))


def test_settings_that_are_not_plain_yaml_are_refused_and_do_not_run(tmp_path):
    path, marker = transcoder(tmp_path / "set"), tmp_path / "ran"
    hostile = f"!!python/object/apply:os.system ['touch {marker}']"
    for text in (f"model_name: {hostile}", "model_name: [", "- a\n- list", "\x00"):
        (path.parent / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=r"config\.yaml"):
            open_published(path, "circuit_tracer")
    assert not marker.exists()


# -- CLTs


def cross_layer(x_BLD: torch.Tensor, jumps: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes (B,L,F), x_hat (B,L,D))."""
    codes, x_hat = [], torch.zeros_like(x_BLD)
    for layer in range(LAYERS):
        encoder, decoder = clt_layer(layer, jumps)
        w = {name[: -len("_0")]: t.double() for name, t in (encoder | decoder).items()}
        pre = x_BLD[:, layer] @ w["W_enc"].T + w["b_enc"]
        z = pre * (pre > w["threshold"]) if jumps else pre.relu()
        x_hat[:, layer:] += torch.einsum("bf,ftd->btd", z, w["W_dec"])
        x_hat[:, layer] += w["b_dec"]
        codes.append(z)
    return torch.stack(codes, 1), x_hat


@pytest.mark.parametrize("jumps", [False, True])
def test_a_clt(tmp_path, jumps):
    path, x = clt(tmp_path / "clt", jumps), rows(LAYERS * WIDTH)
    code, x_hat = cross_layer(x.view(-1, LAYERS, WIDTH), jumps)
    agree(path, x, code.flatten(1), x_hat.flatten(1))
    origin = open_published(path).origin
    assert origin.base_model == "google/gemma-2-2b" and origin.layer is None
    assert origin.hook == "blocks.0.hook_resid_mid+blocks.1.hook_resid_mid+blocks.2.hook_resid_mid"


@pytest.mark.parametrize("kind", ["enc", "dec"])
def test_a_layer_of_a_clt(tmp_path, kind):
    path = clt(tmp_path / "clt") / f"W_{kind}_1.safetensors"
    origin, part = open_published(path).origin, saekit.load(path)
    assert (origin.layer, origin.hook) == (1, "blocks.1.hook_resid_mid")
    assert origin.target_hook == "blocks.1.hook_mlp_out+blocks.2.hook_mlp_out"
    assert origin.files.keys() == {"config.yaml", "W_enc_1.safetensors", "W_dec_1.safetensors"}
    assert (part.d_in, part.latents, part.d_out) == (WIDTH, LATENTS, 2 * WIDTH)
    whole = saekit.load(path.parent)
    assert torch.equal(whole.layers[1].W_dec, part.W_dec)


def test_half_precision_opens_with_the_same_values(tmp_path):
    path = clt(tmp_path / "clt", dtype=torch.bfloat16)
    theirs = load_file(path / "W_enc_2.safetensors")["W_enc_2"]
    assert torch.equal(saekit.load(path).layers[2].W_enc, theirs.float())


def test_a_clt_that_is_not_whole_is_refused(tmp_path):
    path = clt(tmp_path / "clt")
    wide = load_file(path / "W_dec_1.safetensors")["W_dec_1"].repeat(1, 2, 1)
    save_file({"W_dec_1": wide}, path / "W_dec_1.safetensors")
    with pytest.raises(DataError, match="d_out is 32, and by the other layers 16"):
        saekit.load(path)
    (path / "W_dec_1.safetensors").unlink()
    with pytest.raises(DataError, match=r"W_dec_1\.safetensors"):
        saekit.load(path)
    (path / "W_enc_1.safetensors").unlink()
    with pytest.raises(DataError, match=r"has the layers \[0, 2\]"):
        saekit.load(path)

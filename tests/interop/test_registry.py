"""Names of SAELens' registry: what the file says of a dictionary, and where it is on the hub."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from command import saekit
from hub_client import Client
from made_circuit_tracer import transcoder
from made_dictionaries import D, gemma_scope, saelens
from made_registry import registry
from stand_in_hub import stand_in_hub

from saekit import dictionaries
from saekit.errors import DataError, MissingError, UsageError
from saekit.interop.opening import FORMATS, format_of
from saekit.interop.registry import FORMAT_OF, resolve
from saekit.store.checkpoint import read_checkpoint
from saekit.training.checkpoints import load

JB = "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """SAEKIT_REGISTRY names a file of our own."""
    path = registry(tmp_path / "registry.yaml")
    monkeypatch.setenv("SAEKIT_REGISTRY", str(path))
    return path


# the list


def test_the_list_says_name_model_hook_width_and_l0(listed):
    rows = {row.name.split("/")[0].removeprefix("saelens:"): row for row in dictionaries()}
    assert rows["gpt2-small-res-jb"].name == JB
    jb, scope = rows["gpt2-small-res-jb"], rows["gemma-scope-2b-pt-res-canonical"]
    assert (jb.model, jb.hook, jb.latents, jb.l0) == (
        *("gpt2-small", "blocks.8.hook_resid_pre"),
        *(None, 18.0),  # the registry does not say how many latents
    )
    assert (scope.hook, scope.latents, scope.l0) == ("blocks.12.hook_resid_post", 16384, 82.0)
    assert rows["gpt2-small-mlp-tm"].latents == rows["gpt2-small-hook-z-kk"].latents == 24576
    assert rows["gpt2-small-hook-z-kk"].hook == "blocks.0.attn.hook_z"
    assert rows["mwhanna-qwen3-0.6b-transcoders-lowl0"].hook == "blocks.3.mlp.hook_in"


def test_a_query_is_words_that_must_all_occur(listed):
    assert [row.name for row in dictionaries("resid_pre JB", model="gpt2")] == [
        JB.replace("8", "7"),
        JB,
    ]
    assert dictionaries("resid_pre", model="gemma") == [] and dictionaries("nothing") == []


def test_the_command_line_prints_a_table_or_one_json_value(listed, capsys):
    status, out, _ = saekit(capsys, "dictionaries", "canonical")
    header, row = out.splitlines()
    assert status == 0 and header.split() == ["name", "model", "hook", "latents", "l0"]
    assert row.split()[2:] == ["blocks.12.hook_resid_post", "16,384", "82"]
    _, out, _ = saekit(capsys, "dictionaries", "--model", "gpt2-small", "res-jb", "--json")
    assert json.loads(out)[1] == {
        "name": JB,
        "model": "gpt2-small",
        "hook": "blocks.8.hook_resid_pre",
        "latents": None,
        "l0": 18.0,
    }


# names


def test_a_name_resolves_to_a_place_and_a_format(listed):
    entry = resolve("saelens:gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")
    assert entry.repo == "google/gemma-scope-2b-pt-res"
    assert entry.path == "layer_12/width_16k/average_l0_82" and format_of(entry) == "gemma_scope"
    assert format_of(resolve(JB)) == "saelens"


def test_unknown_names_are_refused_with_near_ones(listed):
    with pytest.raises(MissingError, match="no release gpt2-small-res-jp") as error:
        resolve("saelens:gpt2-small-res-jp/blocks.8.hook_resid_pre")
    assert "gpt2-small-res-jb" in error.value.hint
    with pytest.raises(MissingError, match=r"has no dictionary blocks\.9") as error:
        resolve("saelens:gpt2-small-res-jb/blocks.9.hook_resid_pre")
    assert "blocks.8.hook_resid_pre" in error.value.hint
    with pytest.raises(UsageError, match="is a release of 2 dictionaries") as error:
        resolve("saelens:gpt2-small-res-jb")
    assert "saelens:gpt2-small-res-jb/blocks" in error.value.hint
    with pytest.raises(UsageError, match="not a name in SAELens' registry"):
        resolve("saelens:")


def test_a_format_that_saekit_does_not_read_is_refused_by_name(listed):
    newer = replace(resolve("saelens:gpt2-small-hook-z-kk/blocks.0.hook_z"), loader="of_2027")
    with pytest.raises(DataError, match="in the format of_2027 of SAELens"):
        format_of(newer)
    with pytest.raises(DataError, match="mntss_clt_layer_transcoder") as error:
        format_of(resolve("saelens:mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_1"))
    assert "hf:mntss/clt-gemma-2-2b-2.5M/W_enc_1.safetensors" in error.value.hint
    assert set(FORMAT_OF.values()) <= FORMATS.keys()


def test_without_a_registry_the_error_says_where_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_REGISTRY", str(tmp_path / "absent.yaml"))
    with pytest.raises(MissingError, match=r"absent\.yaml, which is not a file"):
        dictionaries()
    if find_spec("sae_lens") is None:
        monkeypatch.delenv("SAEKIT_REGISTRY")
        with pytest.raises(MissingError, match="sae-lens is not installed") as error:
            load(JB)
        assert "pip install sae-lens" in error.value.hint


WRONG = "release: {repo_id: a/b, model: m, saes: [{id: a, path: b, l0: low}]}"


@pytest.mark.parametrize(
    "text",
    [
        *("[", "- a", "release: 3", "release: {saes: [{id: a}]}", WRONG),
        WRONG.replace("l0: low", "neuronpedia: [1]"),
        WRONG.replace("l0: low", "l0: 3").replace("model: m", "model: null"),
    ],
)
def test_a_damaged_registry_is_refused(listed, text):
    listed.write_text(text)
    with pytest.raises(DataError, match=r"registry\.yaml"):
        dictionaries("a", model="m")


# opened: the client's process takes seconds to start, and serves all names


def test_names_open_with_what_the_registry_adds(listed, tmp_path):
    source = saelens(
        tmp_path / "sae", "topk", normalize_activations="expected_average_only_in", metadata={}
    )
    npz = gemma_scope(tmp_path / "npz")
    layer = transcoder(tmp_path / "set")
    out, outs = tmp_path / "out", {}
    with stand_in_hub() as hub:
        jb = "jbloom/GPT2-Small-SAEs-Reformatted"
        hub.add(jb, source, "blocks.8.hook_resid_pre")
        hub.add("JoshEngels/Mistral-7B-Residual-Stream-SAEs", source, "mistral_7b_layer_8")
        path = "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1"
        hub.add("tommmcgrath/gpt2-small-mlp-out-saes", source, path)
        hub.add("google/gemma-scope-2b-pt-res", npz, "layer_12/width_16k/average_l0_82")
        hub.add("mwhanna/qwen3-0.6b-transcoders-lowl0", layer.parent)
        client = Client(hub.url, tmp_path / "home", SAEKIT_REGISTRY=os.fspath(listed))
        for name in (
            *(
                "gpt2-small-res-jb/blocks.8.hook_resid_pre",
                "gpt2-small-mlp-tm/blocks.0.hook_mlp_out",
            ),
            *("mistral-7b-res-wg/blocks.8.hook_resid_pre",),
            *("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical",),
            *("mwhanna-qwen3-0.6b-transcoders-lowl0/layer_3",),
        ):
            release = name.split("/")[0]
            status, _, err = client.saekit("import", f"saelens:{name}", out / release)
            assert status == 0, err
            outs[release] = read_checkpoint(out / release).config["published"]
        client.close()
    # its place, and what the files do not say
    jb_says = outs["gpt2-small-res-jb"]
    assert jb_says["source"] == JB and jb_says["repo"] == jb
    assert jb_says["neuronpedia"] == "gpt2-small/8-res-jb"
    assert jb_says["base_model"] == "gpt2-small" and jb_says["hook"] == "blocks.8.hook_resid_pre"
    scope = outs["gemma-scope-2b-pt-res-canonical"]
    assert scope["base_model"] == "google/gemma-2-2b", "the files' own word wins"
    assert scope["neuronpedia"] == "gemma-2-2b/12-gemmascope-res-16k"
    # settings of the registry in place of those of the files
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(5))
    plain = load(source)
    scaled, normed = load(out / "gpt2-small-mlp-tm"), load(out / "mistral-7b-res-wg")
    torch.testing.assert_close(scaled(x).x_hat, plain(1.25 * x).x_hat / 1.25)
    norm = x.norm(dim=1, keepdim=True) / D**0.5
    torch.testing.assert_close(normed(x).x_hat, plain(x / norm).x_hat * norm)

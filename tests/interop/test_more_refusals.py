"""What these formats may hold and saekit does not compute is refused by name, and no file runs
code."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_dictionaries import D, F, hook_z
from made_more import (
    deepseek_r1,
    goodfire,
    llama_scope,
    llamascopium,
    openai,
    qwen_scope,
    saev,
    saev_header,
    vit_prisma,
)

from saekit.errors import DataError
from saekit.interop.opening import open_published
from saekit.training.checkpoints import load

TARGET = {"hook_point_out": "blocks.6.hook_mlp_out"}
REFUSED: dict[str, Callable[[Path], Path]] = {
    'activation = "Identity"': lambda path: openai(path, "Identity"),
    'postact_fn = "Tanh"': lambda path: openai(path, after="Tanh"),
    "k = 0": lambda path: openai(path, k=0),
    'act_fn = "tanh"': lambda path: llama_scope(path, act_fn="tanh"),
    'norm_activation = "batch-wise"': lambda path: llama_scope(path, norm_activation="batch-wise"),
    "use_glu_encoder = True": lambda path: llama_scope(path, use_glu_encoder=True),
    "dataset_average_activation_norm = None": lambda path: llama_scope(
        path, dataset_average_activation_norm=None
    ),
    "dataset_average_activation_norm = 0": lambda path: llama_scope(
        path, dataset_average_activation_norm={"in": 0, "out": 0}
    ),
    "jump_relu_threshold = -1": lambda path: llama_scope(path, jump_relu_threshold=-1),
    "apply_decoder_bias_to_pre_encoder = True": lambda path: llama_scope(
        path, apply_decoder_bias_to_pre_encoder=True, **TARGET
    ),
    "d_model = 17": lambda path: llama_scope(path, d_model=D + 1),
    'sae_type = "crosscoder"': lambda path: llamascopium(path, sae_type="crosscoder"),
    'sae_type = "clt"': lambda path: llamascopium(path, sae_type="clt"),
    'sae_type = "molt"': lambda path: llamascopium(path, sae_type="molt"),
    'act_fn = "batchtopk"': lambda path: llamascopium(path, "batchtopk"),
    'norm_activation = "token-wise"': lambda path: llamascopium(
        path, norm_activation="token-wise", **TARGET
    ),
    "sae_weights.dcp is a distributed checkpoint": lambda path: llamascopium(path, suffix=".dcp"),
    'k = "unknown"': lambda path: qwen_scope(path, "downloads"),
    "top_k = None": lambda path: saev(path, saev_header("TopK")),
    'activation = "Softmax"': lambda path: saev(path, saev_header("Softmax")),
    "activation.threshold = nan": lambda path: saev(
        path, saev_header("BatchTopK"), **{"activation.threshold": torch.tensor(torch.nan)}
    ),
    "schema = 1": lambda path: saev(path, {"schema": 1, "cls": "Relu", "cfg": {"d_vit": D}}),
    "schema = 9": lambda path: saev(path, saev_header("Relu", schema=9)),
    'architecture = "jumprelu"': lambda path: vit_prisma(path, architecture="jumprelu"),
    "is_transcoder = True": lambda path: vit_prisma(path, is_transcoder=True),
    'normalize_activations = "l2"': lambda path: vit_prisma(path, normalize_activations="l2"),
    'activation_fn_str = "tanh-relu"': lambda path: vit_prisma(path, activation_fn_str="tanh-relu"),
    'activation_fn_str = "topk"': lambda path: vit_prisma(path, "gated", activation_fn_str="topk"),
    "k = None": lambda path: vit_prisma(path, activation_fn_str="topk"),
    "d_in = 17": lambda path: vit_prisma(path, d_in=D + 1),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_is_not_computed_is_named_with_its_value(tmp_path, setting):
    path = REFUSED[setting](tmp_path / "sae")
    with pytest.raises(DataError) as error:
        load(path)
    assert setting in str(error.value) and error.value.hint


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.marker)],)


def _rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    torch.save(change(torch.load(file, weights_only=True)), file)


@pytest.mark.parametrize(
    "write", [openai, goodfire, deepseek_r1, qwen_scope, hook_z], ids=lambda write: write.__name__
)
@pytest.mark.parametrize("format", ["zip", "pickle"])
def test_a_hostile_file_does_not_run(tmp_path, write, format):
    file, marker = write(tmp_path / "sae"), tmp_path / "ran"
    if format == "zip":
        _rewrite(file, lambda state: dict(state) | {"bias": Hostile(marker)})
    else:
        file.write_bytes(pickle.dumps({"bias": Hostile(marker)}))
    for opened in (load, open_published):
        with pytest.raises(DataError, match="does not load as plain tensors"):
            opened(file)
    assert not marker.exists()


@pytest.mark.parametrize("format", ["zip", "pickle"])
def test_a_hostile_file_in_a_folder_does_not_run(tmp_path, format):
    marker = tmp_path / "ran"
    hostile = {"sae": {"W_E": Hostile(marker)}}
    prisma, scopium = vit_prisma(tmp_path / "a"), llamascopium(tmp_path / "b", suffix=".pt")
    image = saev(tmp_path / "c")
    header = (image / "sae.pt").read_bytes().split(b"\n")[0] + b"\n"
    for file in (prisma / "weights.pt", scopium / "sae_weights.pt", image / "sae.pt"):
        if format == "zip":
            torch.save(hostile, file)
        else:
            file.write_bytes(pickle.dumps(hostile))
        if file.name == "sae.pt":
            file.write_bytes(header + file.read_bytes())
        with pytest.raises(DataError, match="does not load as plain tensors"):
            load(file.parent)
    assert not marker.exists()


def test_a_torchscript_archive_is_refused_with_the_reason(tmp_path):
    file = tmp_path / "6.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    with pytest.raises(DataError, match="TorchScript"):
        load(file)


@pytest.mark.parametrize(
    "write", [openai, goodfire, deepseek_r1, qwen_scope, hook_z], ids=lambda write: write.__name__
)
def test_a_truncated_file_is_refused(tmp_path, write):
    file = write(tmp_path / "sae")
    whole = file.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load(file)


def test_damaged_headers_and_archives_of_saev_are_refused(tmp_path):
    file = saev(tmp_path / "a") / "sae.pt"
    whole = file.read_bytes()
    line = whole.index(b"\n") + 1
    for damaged in (whole[: line + 100], whole[:line], b"{" * 5000 + b"\n", b"[]\n" + whole[line:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError):
            open_published(file, "saev")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"stray": torch.zeros(2)},
        lambda state: state | {"pre_bias": "zeros"},
        lambda state: state | {"pre_bias": torch.zeros(D).to_sparse()},
        lambda state: state | {"pre_bias": torch.zeros(D, device="meta")},
        lambda state: state | {"encoder.weight": torch.zeros(3)},
        lambda state: state | {"encoder.weight": torch.tensor(1.0)},
        lambda state: state | {"latent_bias": torch.zeros(F + 1)},
        lambda state: state | {"encoder.weight": state["encoder.weight"].double()},
        lambda state: {name: t for name, t in state.items() if name != "decoder.weight"},
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change):
    file = openai(tmp_path / "sae")
    _rewrite(file, lambda state: change(dict(state)))
    with pytest.raises(DataError):
        load(file)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (3, 4)])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc"])
def test_other_shapes_are_refused_by_every_format_with_these_names(tmp_path, name, shape):
    odd = torch.zeros(shape)
    prisma = vit_prisma(tmp_path / "a")
    _rewrite(prisma / "weights.pt", lambda state: dict(state) | {name: odd})
    for path in (prisma, saev(tmp_path / "b", **{name: odd})):
        with pytest.raises(DataError):
            load(path)


def test_a_threshold_that_is_missing_or_unexplained_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no tensor activation\.threshold"):
        load(saev(tmp_path / "a", saev_header("BatchTopK", top_k=5)))
    with pytest.raises(DataError, match=r"tensor activation\.threshold"):
        load(saev(tmp_path / "b", **{"activation.threshold": torch.tensor(0.3)}))


def test_a_folder_with_several_weights_asks_for_one(tmp_path):
    path = vit_prisma(tmp_path / "a", file="n_images_1.pt")
    (path / "n_images_2.pt").write_bytes((path / "n_images_1.pt").read_bytes())
    with pytest.raises(DataError, match="2 files of weights") as error:
        load(path)
    assert "path of one" in error.value.hint
    assert load(path / "n_images_2.pt").d_in == D


def test_a_folder_without_weights_names_the_file(tmp_path):
    path = llama_scope(tmp_path / "a")
    (path / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(DataError, match=r"sae_weights\.safetensors"):
        load(path)


def test_a_format_that_is_asked_for_is_tried(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "weights.pt").write_bytes(b"no archive")
    formats = ("openai", "qwen_scope", "goodfire", "deepseek_r1", "hook_z", "saev", "vit_prisma")
    for format in formats:
        with pytest.raises(DataError):
            open_published(tmp_path / "weights.pt", format)
    for format in ("llama_scope", "llamascopium", "saev"):
        with pytest.raises(DataError):
            open_published(tmp_path, format)

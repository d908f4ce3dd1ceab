"""What saekit's SAE does not compute is refused by name, and no file runs code."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from made_circuit_tracer import clt
from made_dictionaries import (
    D,
    F,
    dictionary_learning,
    gemma_scope,
    hook_z,
    old_saelens,
    saelens,
    sparsify,
)
from made_gemma import of_layers, scope_2
from safetensors.torch import load_file, save_file

from saekit.errors import DataError, MissingError, UsageError
from saekit.interop import opening
from saekit.interop.opening import open_published
from saekit.models.sparsity import VARIANTS
from saekit.training.checkpoints import load


def in_and_out(path: Path) -> Path:
    """A transcoder's: the file does not say which module it writes to."""
    settings = json.loads((path / "config.json").read_text())
    settings["buffer"]["io"] = "in_and_out"
    (path / "config.json").write_text(json.dumps(settings))
    return path


REFUSED = {
    'architecture = "matching_pursuit"': lambda path: saelens(path, "matching_pursuit"),
    'activation_fn = "tanh-relu"': lambda path: old_saelens(path, activation_fn_str="tanh-relu"),
    "k = 2.5": lambda path: saelens(path, "topk", k=2.5),
    'activation = "groupmax"': lambda path: sparsify(path, activation="groupmax"),
    "signed = True": lambda path: sparsify(path, signed=True, transcode=True),
    "skip_connection = True": lambda path: sparsify(path, skip=True),
    "threshold = nan": lambda path: dictionary_learning(
        path, "BatchTopKSAE", threshold=float("nan")
    ),
    "dict_size = 0": lambda path: hook_z(path, dict_size=0),
    'io = "in_and_out"': lambda path: in_and_out(dictionary_learning(path, "AutoEncoder")),
    'dict_class = "IdentityDict"': lambda path: dictionary_learning(path, "IdentityDict"),
    'dtype of W_enc = "float64"': lambda path: gemma_scope(path, W_enc=np.zeros((D, F))),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_is_not_computed_is_named_with_its_value(tmp_path, setting):
    path = REFUSED[setting](tmp_path / "sae")
    with pytest.raises(DataError) as error:
        load(path)
    assert setting in str(error.value) and error.value.hint


def test_a_scaling_factor_that_is_not_one_is_refused(tmp_path):
    path = old_saelens(tmp_path / "sae")
    file = path / "sae_weights.safetensors"
    save_file(load_file(file) | {"scaling_factor": torch.full((F,), 2.0)}, file)
    with pytest.raises(DataError, match="scaling_factor"):
        load(path)


def with_scalar(path: Path, name: str) -> Path:
    """The dictionary with a tensor of no dimension in place of one of its own."""
    for file in sorted(path.iterdir()):
        if file.suffix == ".safetensors" and name in (tensors := load_file(file)):
            save_file(tensors | {name: torch.zeros(())}, file)
        elif file.suffix == ".pt" and name in (tensors := torch.load(file, weights_only=True)):
            torch.save(tensors | {name: torch.zeros(())}, file)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: saelens(path, "topk", k=float("inf")),
        lambda path: saelens(path, apply_b_dec_to_input="no"),
        lambda path: saelens(path, normalize_activations=[1]),
        lambda path: gemma_scope(path, W_enc=np.array(["a"])),
        lambda path: gemma_scope(path, W_dec=np.zeros(F, np.float32)),
        lambda path: gemma_scope(path, threshold=np.float32(0.1)),
        lambda path: dictionary_learning(path, "AutoEncoderTopK", k=torch.zeros(3)),
        lambda path: dictionary_learning(path, "BatchTopKSAE", threshold=torch.zeros(3)),
        lambda path: dictionary_learning(path, "GatedAutoEncoder", r_mag=torch.zeros(3)),
        lambda path: dictionary_learning(path, ["AutoEncoder"]),
        lambda path: dictionary_learning(path, "AutoEncoderTopK", k=torch.tensor(float("nan"))),
        lambda path: dictionary_learning(path, "BatchTopKSAE", threshold=torch.tensor(1j)),
        lambda path: with_scalar(dictionary_learning(path, "GatedAutoEncoder"), "encoder.weight"),
        lambda path: with_scalar(dictionary_learning(path, "MatryoshkaBatchTopKSAE"), "W_enc"),
        lambda path: gemma_scope(path, b_dec=np.zeros(D, np.longdouble)),
        lambda path: gemma_scope(path, b_dec=np.zeros(D, ">f4")),
        lambda path: sparsify(path, k=0),
        lambda path: with_scalar(sparsify(path), "encoder.weight"),
        lambda path: with_scalar(scope_2(path), "w_dec"),
        lambda path: with_scalar(of_layers(path, "crosscoder"), "b_dec"),
        lambda path: with_scalar(of_layers(path, "clt"), "b_dec"),
        lambda path: with_scalar(clt(path), "b_dec_0"),
    ],
)
def test_values_of_other_kinds_and_sizes_are_refused(tmp_path, damage):
    with pytest.raises(DataError):
        load(damage(tmp_path / "sae"))


def test_shapes_and_names_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"by cfg\.json"):
        load(saelens(tmp_path / "a", d_in=D + 1))
    with pytest.raises(DataError, match="no tensor b_dec"):
        load(dictionary_learning(tmp_path / "b", "AutoEncoder", bias=None))
    with pytest.raises(DataError, match="tensor stray"):
        load(dictionary_learning(tmp_path / "c", "AutoEncoder", stray=torch.zeros(2)))
    with pytest.raises(DataError, match="b_enc has the shape"):
        load(gemma_scope(tmp_path / "d", b_enc=np.zeros(F + 1, np.float32)))


def test_text_that_would_change_the_terminal_counts_as_not_said(tmp_path):
    settings = {"model_name": "gpt2\x1b[31m", "hook_name": "blocks.1\n"}
    origin = open_published(saelens(tmp_path / "sae", metadata=settings)).origin
    assert origin.base_model is None and origin.hook is None


def test_the_root_of_the_disk_is_not_a_dictionary(monkeypatch):
    monkeypatch.setattr(opening, "LOOKED_AT", 0)
    with pytest.raises(DataError, match="/ is not a checkpoint"):
        load("/")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.marker)],)


def test_a_hostile_pickle_does_not_run(tmp_path):
    path, marker = dictionary_learning(tmp_path / "a", "AutoEncoder"), tmp_path / "ran"
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        save({"bias": Hostile(marker)}, path / "ae.pt")
        with pytest.raises(DataError, match="does not load as plain tensors"):
            load(path)
    folder = gemma_scope(tmp_path / "b", b_dec=np.array([Hostile(marker)], dtype=object))
    with pytest.raises(DataError, match="does not load as plain arrays"):
        load(folder)
    assert not marker.exists()


def test_damaged_files_are_named(tmp_path):
    sae = saelens(tmp_path / "a")
    whole = (sae / "sae_weights.safetensors").read_bytes()
    (sae / "sae_weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"sae_weights\.safetensors is damaged"):
        open_published(sae, "saelens")
    pickled = dictionary_learning(tmp_path / "b", "AutoEncoder")
    whole = (pickled / "ae.pt").read_bytes()
    (pickled / "ae.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"ae\.pt (does not load|cannot be read)"):
        load(pickled)


def test_other_files_are_refused_with_the_known_formats(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 3}))
    with pytest.raises(DataError) as error:
        open_published(tmp_path)
    assert "saelens, sparsify, dictionary_learning, gemma_scope" in error.value.hint
    with pytest.raises(MissingError):
        open_published(tmp_path / "absent")
    with pytest.raises(UsageError, match="format"):
        open_published(tmp_path, "onnx")


def test_weights_that_subtract_b_dec_are_not_trained():
    with pytest.raises(UsageError, match="not for training"):
        VARIANTS["topk"](d_in=8, latents=16, k=2, subtract_b_dec=True)


def test_an_incomplete_download_is_called_damaged(tmp_path):
    path = saelens(tmp_path / "sae")
    weights = path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:3_000])
    for open_it in (open_published, load):
        with pytest.raises(DataError, match=r"sae_weights\.safetensors is damaged"):
            open_it(path)


def test_a_folder_above_a_dictionary_names_it(tmp_path):
    path = gemma_scope(tmp_path / "res" / "layer_12" / "width_16k" / "average_l0_82")
    for open_it in (open_published, load):
        with pytest.raises(DataError, match="there are some inside") as error:
            open_it(tmp_path / "res")
        assert str(path) in error.value.hint


def test_another_format_than_asked_for_is_named(tmp_path):
    path = saelens(tmp_path / "sae")
    with pytest.raises(DataError, match=r"has no sae\.safetensors") as error:
        open_published(path, "sparsify")
    assert error.value.hint == 'format="saelens"'


def test_a_pickle_that_would_run_code_is_named_without_advice_to_run_it(tmp_path):
    path = dictionary_learning(tmp_path / "trainer_0", "AutoEncoder")
    torch.save({"encoder.weight": Runs()}, path / "ae.pt")
    with pytest.raises(DataError, match="opening it would run") as error:
        load(path)
    assert "weights_only" not in str(error.value) and "safetensors" in error.value.hint


class Runs:
    def __reduce__(self):
        return subprocess.call, (["false"],)

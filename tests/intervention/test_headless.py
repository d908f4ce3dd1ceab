"""A model whose file has no output head: hidden states are read, and nothing uses logits of a
head that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file, save_file

import saekit
from saekit.errors import DataError
from saekit.inspection.output_head import unembedding
from saekit.store.reader import Store


def test_harvest_goes_on_and_finetune_and_page_know_no_logits(made, words, tmp_path):
    folder = Path(tiny.save("llama", tmp_path / "headless"))
    weights = load_file(Path(made.model) / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "lm_head.weight"},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    told = []
    options = dict(hook="blocks.1", ctx=16, batch=8, dtype="float32", holdout=0.2)
    saekit.harvest(
        str(folder),
        made.text,
        tmp_path / "store",
        progress=lambda p: told.append(p.message),
        **options,
    )
    assert any("no output head" in (message or "") for message in told)
    assert (tmp_path / "store/shards/00000.safetensors").read_bytes() == (
        made.store / "shards/00000.safetensors"
    ).read_bytes()
    W_U_VD, why = unembedding(Store(tmp_path / "store"))
    assert W_U_VD is None and "no output tokens" in why
    saekit.train(tmp_path / "store", tmp_path / "run", latents=64, k=4, batch=128, rows=1280)
    with pytest.raises(DataError, match="has no output head") as raised:
        saekit.finetune(tmp_path / "run", tmp_path / "tuned")
    assert raised.value.hint and not (tmp_path / "tuned").exists()

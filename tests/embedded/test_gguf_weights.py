"""A GGUF that lacks a tensor: transformers would fill it with random numbers, and the cache would
keep them."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import DataError
from saekit.harvesting.models import load_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")
D, HEADS, FF, BLOCKS = 32, 4, 48, 2
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ["▁river"]


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(TOKENS), D), "output_norm": (D,), "output": (len(TOKENS), D)}
    block = {
        "attn_norm": (D,),
        "attn_q": (D, D),
        "attn_k": (D, D),
        "attn_v": (D, D),
        "attn_output": (D, D),
    }
    block |= {"ffn_norm": (D,), "ffn_gate": (FF, D), "ffn_up": (FF, D), "ffn_down": (D, FF)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(BLOCKS) for name, shape in block.items()}
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }


def write(path, leave_out: str) -> str:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in tensors().items():
        if name != leave_out:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))


def test_a_whole_file_has_its_values_and_its_head(tmp_path):
    live = load_model(write(tmp_path / "whole.gguf", ""))
    assert live.has_head
    torch.testing.assert_close(
        live.module.model.layers[1].mlp.up_proj.weight, tensors()["blk.1.ffn_up.weight"]
    )
    torch.testing.assert_close(live.output_head.weight, tensors()["output.weight"])


def test_a_missing_tensor_is_named_and_nothing_is_kept(tmp_path):
    path = write(tmp_path / "short.gguf", "blk.1.ffn_up.weight")
    for _ in range(2):  # the second call finds no cache of the first
        with pytest.raises(
            DataError, match=r"the file lacks 1 weight: model.layers.1.mlp.up_proj.weight"
        ):
            load_model(path)


def test_a_missing_head_is_tied_or_said_and_never_made_up(tmp_path):
    """llama.cpp reads a file without output.weight with the embedding as its head; so does
    transformers where the config ties them."""
    live = load_model(write(tmp_path / "headless.gguf", "output.weight"))
    assert not live.has_head or torch.equal(live.output_head.weight, tensors()["token_embd.weight"])

"""A tiny llama as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDTH, HIDDEN = 32, 48
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁river", "▁stone"]


def write(path: Path, seed: int = 0, blocks: int = 1, without: str = "") -> Path:
    """`without`: the name of a tensor to drop. Weights of blocks after the first are drawn by
    `seed`."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(PIECES))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0] * len(PIECES))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 2)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    rng = np.random.default_rng(seed)
    d, h = WIDTH, HIDDEN
    block = {
        "attn_norm": (d,), "attn_q": (d, d), "attn_k": (d, d), "attn_v": (d, d), "attn_output": (d,
        d),
        "ffn_norm": (d,), "ffn_gate": (h, d), "ffn_up": (h, d), "ffn_down": (d, h),
    }  # fmt: skip
    shapes = {"token_embd": (len(PIECES), d), "output_norm": (d,), "output": (len(PIECES), d)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32) / 10)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""A cache of the hub with small random models under the names of real ones, and a folder of random
pictures, for pages whose commands name them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
from made_dictionaries import weights

DICTIONARY = "layer_12/width_16k/average_l0_82"
SHAPE = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=12)


def put_clip(hub: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    config = CLIPConfig(
        vision_config=SHAPE | dict(image_size=64, patch_size=4),
        text_config=SHAPE | dict(vocab_size=50, bos_token_id=0, eos_token_id=1),
    )
    snapshot = put_repository(hub, "openai/clip-vit-base-patch16")
    CLIPModel(config).save_pretrained(snapshot)
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(snapshot)


def put_dinov2(hub: Path) -> None:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    snapshot = put_repository(hub, "facebook/dinov2-base")
    Dinov2Model(Dinov2Config(**SHAPE, image_size=32, patch_size=8)).save_pretrained(snapshot)
    BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(snapshot)


def put_repository(hub: Path, name: str) -> Path:
    """The folder of a repository's files in the cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def put_gemma(hub: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **tiny.SHAPE | dict(num_hidden_layers=14, num_key_value_heads=2, head_dim=8),
        vocab_size=tiny.VOCAB,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=5,
    )
    model = put_repository(hub, "google/gemma-2-2b")
    Gemma2ForCausalLM(config).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    dictionary = put_repository(hub, "google/gemma-scope-2b-pt-res") / DICTIONARY
    dictionary.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in weights(tiny.WIDTH).items()}
    np.savez(dictionary / "params.npz", **arrays)


def put_photos(folder: Path, count: int = 80) -> None:
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"{n}.jpg")

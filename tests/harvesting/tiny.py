"""Tiny random models of every family, with a tiny tokenizer or image processor, saved as folders
that load_model takes."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

LAYERS, WIDTH, SIDE, PATCH, REGISTERS = 3, 32, 16, 4, 2
SHAPE = dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=48
)
IMAGE = dict(SHAPE, image_size=SIDE, patch_size=PATCH)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "far",
    "away",
    "from",
    "it",
    "home",
]
SPECIALS = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "<pad>"]
VOCAB = len(WORDS) + len(SPECIALS)
GPT2 = dict(
    n_embd=WIDTH,
    n_layer=LAYERS,
    n_head=4,
    n_positions=64,
    vocab_size=VOCAB,
    bos_token_id=1,
    eos_token_id=2,
)

# family -> (model class, config class, config)
TEXT = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        dict(SHAPE, vocab_size=VOCAB, max_position_embeddings=64),
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(SHAPE, vocab_size=VOCAB)),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        dict(hidden_size=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=VOCAB),
    ),
    "bert": ("BertModel", "BertConfig", dict(SHAPE, vocab_size=VOCAB, max_position_embeddings=64)),
}
VISION = {
    "vit": ("ViTModel", "ViTConfig", IMAGE),
    "clip_vision": ("CLIPVisionModel", "CLIPVisionConfig", IMAGE),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        dict(vision_config=IMAGE, text_config=dict(SHAPE, vocab_size=VOCAB)),
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGE),
    "dinov2_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        dict(IMAGE, num_register_tokens=REGISTERS),
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", dict(IMAGE, num_register_tokens=REGISTERS)),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        dict(vision_config=IMAGE, text_config=dict(SHAPE, vocab_size=VOCAB)),
    ),
}
HAS_CLS = {family: family != "siglip" for family in VISION}
HAS_REGISTERS = {family: family in ("dinov2_registers", "dinov3") for family in VISION}
PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "clip_vision": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "dinov3": "DINOv3ViTImageProcessor",
}


def random_model(family: str) -> torch.nn.Module:
    import transformers

    model_class, config_class, config = (TEXT | VISION)[family]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**config)).eval()


def tokenizer(encoder: bool = False, bos: str | None = "<s>", eos: str | None = "</s>"):
    """A word-level tokenizer. As encoder it adds [CLS] and [SEP]; else it adds nothing, like GPT-2
    and SmolLM2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(SPECIALS + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(unk_token="<unk>", pad_token="<pad>")
    if encoder:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        names |= dict(cls_token="[CLS]", sep_token="[SEP]")
    else:
        names |= dict(
            pad_token=eos or "<pad>",
            **({"bos_token": bos} if bos else {}),
            **({"eos_token": eos} if eos else {}),
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def processor_config(family: str) -> dict:
    side = dict(height=SIDE, width=SIDE)
    clip = (
        dict(do_center_crop=True, crop_size=side, size=dict(shortest_edge=SIDE))
        if family.startswith("clip")
        else {}
    )
    return dict(
        image_processor_type=PROCESSORS.get(family, "ViTImageProcessor"), do_resize=True,
        size=side, do_rescale=True,
        rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        resample=2,
    ) | clip  # fmt: skip


def save(family: str, folder: Path, **tokenizer_options) -> str:
    """The folder of a tiny model of `family`, ready for load_model."""
    from saekit.embedded.silence import quiet_transformers

    with quiet_transformers():
        random_model(family).save_pretrained(folder)
        if family in TEXT:
            tokenizer(encoder=family == "bert", **tokenizer_options).save_pretrained(folder)
        else:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor_config(family)))
    return str(folder)


@functools.lru_cache
def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@functools.lru_cache
def ids(count: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(
        len(SPECIALS), VOCAB, (count, length), generator=torch.Generator().manual_seed(1)
    )

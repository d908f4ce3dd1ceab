"""A small GPT-2 of random weights whose tokens are letters, and texts for it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LETTERS = "abcd"
PADDED = 16  # rows of the head; two specials and four letters are tokens


def letters_model(folder: Path) -> tuple[str, str]:
    """(the model, the texts), in `folder`."""
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=PADDED,
        n_positions=128,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight[6:] *= 50  # rows without a token would win every ranking
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    (folder / "docs").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        (folder / f"docs/{i}.txt").write_text(
            "".join(LETTERS[j] for j in torch.randint(4, (50,), generator=generator))
        )
    return str(folder / "model"), str(folder / "docs")

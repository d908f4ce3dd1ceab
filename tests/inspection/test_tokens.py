"""Texts put together from token ids alone, for vocabularies of every kind."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saekit.inspection.tokens import TokenTexts


def wordpiece():
    pieces = ["[UNK]", "winter", "##ly", "##s", "un", "##like", "snow", ",", "."]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, "winterly snow, unlike winters."


def sentencepiece():
    pieces = [("<unk>", 0.0), ("▁win", -1.0), ("ter", -1.0), ("▁snow", -1.0), ("s", -2.0), ("▁", -3.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer, "winter snows ж winter"


def bytelevel():
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer, "naïve 漢字 🙂 \ufffd שלום"


@pytest.mark.parametrize("kind", [wordpiece, sentencepiece, bytelevel])
def test_a_window_reads_as_the_text_does(kind):
    tokenizer, text = kind()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=None)
    ids = whole(text, add_special_tokens=False)["input_ids"]
    shown = TokenTexts(whole)(ids)
    assert len(shown) == len(ids) and "".join(shown).strip() == text
    for start in range(1, len(ids)):  # cut anywhere, the rest is a part of the text
        assert text.endswith("".join(TokenTexts(whole)(ids)[start:]).lstrip())


def test_the_last_byte_of_a_character_has_it_and_what_is_cut_off_is_written_by_bytes():
    tokenizer, _ = bytelevel()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = tokenizer.encode("漢a").ids  # E6 BC A2 61
    assert texts(ids) == ["", "", "漢", "a"]
    assert texts(ids[:2]) == ["", "<0xE6><0xBC>"] and texts(ids[1:]) == ["<0xBC>", "<0xA2>", "a"]
    assert [texts.alone(i) for i in ids] == ["<0xE6>", "<0xBC>", "<0xA2>", "a"]

"""Tokens as they stand in a text: each kind of vocabulary, made here, on texts whose tokens are
known."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saekit.inspection.tokens import TokenTexts, characters, cut

POLISH = "Zażółć gęślą 🦊 jaźń"


def fast(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def word_piece(words: list[str], lowercase: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordPiece(
            {w: i for i, w in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}, unk_token="[UNK]"
        )
    )
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=lowercase),
        pre_tokenizers.BertPreTokenizer(),
    )
    backend.decoder = decoders.WordPiece()
    return fast(backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "Ġg", "ja", "<end>"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "g"), ("j", "a")]))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return fast(backend, eos_token="<end>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2: ▁ for spaces, one in front of the text, bytes for what has no token."""
    letters = [*"▁morelt", "▁m", "▁mo", "re", "le", "▁t"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "m"), ("▁m", "o"), ("r", "e"), ("l", "e"), ("▁", "t")]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = decoders.Sequence(steps)
    return fast(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def read(tokenizer, text: str) -> list[str]:
    return TokenTexts(tokenizer)(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_word_pieces_are_put_together():
    tokenizer = word_piece(["straw", "##berr", "##ies", "and", "cream"])
    assert read(tokenizer, "strawberries and cream") == ["straw", "berr", "ies", " and", " cream"]


def test_word_pieces_of_a_context_that_begins_inside_a_word():
    tokenizer = word_piece(["straw", "##berr", "##ies", "and", "cream"])
    texts = TokenTexts(tokenizer)
    inside = tokenizer.convert_tokens_to_ids(["[CLS]", "##ies", "and", "[SEP]", "straw", "##berr"])
    assert texts(inside) == ["[CLS]", "ies", " and", "[SEP]", "straw", "berr"]
    assert texts.alone(inside[1]) == "##ies", "by itself, a token says that it goes on a word"


def test_a_character_of_several_bytes_stands_at_the_first():
    texts = read(byte_level(), POLISH)
    assert "".join(texts) == POLISH
    assert texts[:6] == ["Z", "a", "ż", "", "ó", ""] and " g" in texts and "ja" in texts
    fox = texts.index("🦊")
    assert texts[fox + 1 : fox + 4] == ["", "", ""]


def test_bytes_of_no_character_are_told_apart():
    tokenizer = byte_level()
    ids = tokenizer("a🦊b")["input_ids"]
    texts = TokenTexts(tokenizer)
    assert texts(ids[:3]) == ["a", "\\xF0", "\\x9F"], "a context that ends inside a character"
    assert texts(ids[2:]) == ["\\x9F", "\\xA6", "\\x8A", "b"]
    assert len({texts.alone(i) for i in range(256)}) == 256


def test_added_tokens_are_spelled_as_in_the_text():
    tokenizer = byte_level()
    tokenizer.add_tokens(["é  é", "    "])
    assert read(tokenizer, "aé  é    b<end>") == ["a", "é  é", "    ", "b", "<end>"]


def test_sentence_pieces_keep_their_spaces_and_bytes_become_characters():
    tokenizer = sentence_piece()
    texts = read(tokenizer, "more 語 to")
    assert "".join(texts) == " more 語 to"
    assert texts == [" mo", "re", " ", "語", "", "", " t", "o"]
    ids = tokenizer("more more", add_special_tokens=False)["input_ids"]
    assert TokenTexts(tokenizer)([1, *ids[2:], 2]) == ["<s>", " mo", "re", "</s>"]
    assert TokenTexts(tokenizer)(ids[1:]) == ["re", " mo", "re"], (
        "a context that begins inside a word"
    )


def test_a_vocabulary_without_spaces_or_decoder():
    backend = Tokenizer(models.WordLevel({"?": 0, "A": 1, "C": 2, "G": 3, "T": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    assert read(fast(backend, unk_token="?"), "GATTACA") == list("GATTACA")
    backend = Tokenizer(models.WordLevel({"?": 0, "sol": 1, "y": 2, "mar": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read(fast(backend, unk_token="?"), "sol y mar") == ["sol", " y", " mar"]


def test_an_id_without_a_token_is_named():
    tokenizer = word_piece(["one"])
    assert TokenTexts(tokenizer)([3, 99, 3]) == ["one", "<99>", "one"]
    assert TokenTexts(tokenizer).ids() == [0, 1, 2, 3]


def test_bytes_are_cut_at_characters():
    whole = "aé日🦊".encode()
    for step in (1, 2, 3, 5):
        parts = [whole[at : at + step] for at in range(0, len(whole), step)]
        assert "".join(characters(parts)) == "aé日🦊"
    assert list(characters([b"\xc3", b"\xa9\xff", b""])) == ["é", "\\xFF", ""]


def test_what_lies_between_two_tokens_goes_to_the_later():
    assert cut("a  bc.", [1, 4, 4, 5]) == ["a", "  b", "", "c."]


@pytest.mark.parametrize("text", ["", " ", "straw", "  and   cream "])
def test_short_texts(text):
    for tokenizer in (word_piece(["straw", "and", "cream"]), byte_level(), sentence_piece()):
        assert len(read(tokenizer, text)) == len(
            tokenizer(text, add_special_tokens=False)["input_ids"]
        )

"""Special tokens, limits and embeddings, each from a tokenizer or model whose answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch

from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, UsageError
from saekit.harvesting.documents import Document, Documents
from saekit.harvesting.inputs import batches
from saekit.harvesting.models import load_model
from saekit.harvesting.tokens import (
    PositionKind,
    check_context,
    embedded_tokens,
    position_limit,
    special_tokens,
)


class Texts(Documents):
    name, modality = "given", "text"

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def documents(self, start=0):
        return iter(
            [Document(i, f"doc{i}", text=text) for i, text in enumerate(self.texts)][start:]
        )

    def digest(self):
        return None

    def image(self, ref):
        raise NotImplementedError


def with_tokenizer(loaded, tokenizer):
    return dataclasses.replace(loaded, processor=tokenizer)


def tokenizer_of(words, template=None, **names):
    """A word-level tokenizer without an unknown token unless `names` has one; `template` is put
    around texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)}
    options = {"unk_token": names["unk_token"]} if "unk_token" in names else {}
    backend = Tokenizer(models.WordLevel(ids, **options))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        marks = [(word, ids[word]) for word in template.split() if word != "$A"]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=list(dict.fromkeys(marks))
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


# -- special tokens --------------------------------------------------------------------------------


def test_special_tokens_where_the_first_probe_is_an_unknown_word_and_that_stands_around_texts(live):
    """'a' is unknown here, and the unknown token also opens each text: only a word of the
    vocabulary tells them apart."""
    tokenizer = tokenizer_of(
        ["<unk>", "[CLS]", "[SEP]", "blue", "sea"],
        "[CLS] <unk> $A [SEP]",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    frame = special_tokens(with_tokenizer(live("bert"), tokenizer))
    assert (frame.prefix, frame.suffix) == ([1, 0], [2])


def test_special_tokens_of_a_tokenizer_that_fails_on_unknown_words(live):
    tokenizer = tokenizer_of(
        ["[CLS]", "[SEP]", "blue", "sea"],
        "[CLS] $A [SEP] [SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    frame = special_tokens(with_tokenizer(live("bert"), tokenizer))
    assert (frame.prefix, frame.suffix) == ([0], [1, 1])


def test_a_tokenizer_of_which_nothing_can_be_told_is_refused(live):
    tokenizer = tokenizer_of(
        ["[CLS]", "[SEP]"],
        "[CLS] $A [SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[SEP]",
    )
    with pytest.raises(DataError, match=r"the special tokens of .* cannot be determined"):
        special_tokens(with_tokenizer(live("bert"), tokenizer))


def test_a_spelled_pad_token_is_no_content_and_all_else_is(live):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "<pad>"
    (batch,) = batches(
        with_tokenizer(live("llama"), tokenizer), Texts("the <pad> cat <unk>"), ctx=8, batch=1
    )
    assert batch.kind_BT.tolist() == [[PositionKind.BOS, 0, PositionKind.SPECIAL, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 5]  # it was read


def test_unknown_words_of_a_tokenizer_that_pads_with_the_unknown_token_are_content(live):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "<unk>"
    (batch,) = batches(with_tokenizer(live("llama"), tokenizer), Texts("the zebra"), ctx=8, batch=1)
    assert batch.rows_for_scope("content").sum() == 2


# -- tokens without an embedding -------------------------------------------------------------------


def test_padding_beyond_the_embedding_is_read_as_a_token_that_exists_and_changes_no_row(live):
    tokenizer = tiny.tokenizer()
    expected = list(
        batches(
            with_tokenizer(live("llama"), tokenizer),
            Texts("the cat", "a dog ran home"),
            ctx=8,
            batch=2,
        )
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == tiny.VOCAB == embedded_tokens(live("llama"))
    (batch,) = batches(
        with_tokenizer(live("llama"), tokenizer), Texts("the cat", "a dog ran home"), ctx=8, batch=2
    )
    assert batch.inputs["input_ids"].max() < tiny.VOCAB and torch.equal(
        batch.kind_BT, expected[0].kind_BT
    )
    live("llama").forward(batch.inputs)


@pytest.mark.parametrize("pack", [False, True])
def test_a_token_of_a_text_without_an_embedding_is_named_with_its_document(live, pack):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["ocelot", "okapi"])
    stream = batches(
        with_tokenizer(live("llama"), tokenizer),
        Texts("the cat", "the okapi sat"),
        ctx=8,
        batch=1,
        pack=pack,
    )
    with pytest.raises(
        DataError,
        match=r"doc1 holds token 21 \('okapi'\), and .* has embeddings of tokens 0 to 19 only",
    ):
        list(stream)


def test_a_bos_without_an_embedding_is_refused_before_any_text(live):
    tokenizer = tiny.tokenizer(bos=None)
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    with pytest.raises(DataError, match=r"adds token 20 \('<start>'\)"):
        check_context(with_tokenizer(live("llama"), tokenizer), 8, pack=False)


def test_a_text_that_the_tokenizer_cannot_read_is_named(live):
    tokenizer = tokenizer_of(["blue", "sea"])
    with pytest.raises(DataError, match=r"the tokenizer of .* fails on doc0 to doc1: "):
        list(
            batches(
                with_tokenizer(live("llama"), tokenizer), Texts("blue", "green"), ctx=8, batch=1
            )
        )


# -- limits ----------------------------------------------------------------------------------------


def loaded(folder, class_name, config_class, encoder=True, **config):
    import transformers

    torch.manual_seed(0)
    with quiet_transformers():
        getattr(transformers, class_name)(
            getattr(transformers, config_class)(**config)
        ).save_pretrained(folder)
    tiny.tokenizer(encoder=encoder).save_pretrained(folder)
    return load_model(str(folder))


SHAPE = dict(tiny.SHAPE, vocab_size=tiny.VOCAB)
# (class, config class, config, tokens that its positions are enough for; None: any number)
LIMITS = [
    ("RobertaModel", "RobertaConfig", dict(SHAPE, max_position_embeddings=40, pad_token_id=5), 34),
    ("RobertaModel", "RobertaConfig", dict(SHAPE, max_position_embeddings=40, pad_token_id=0), 39),
    ("BertModel", "BertConfig", dict(SHAPE, max_position_embeddings=40), 40),
    ("OPTModel", "OPTConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    ffn_dim=48, vocab_size=20,
                                  max_position_embeddings=40, word_embed_proj_dim=32), 40),
    ("BartModel", "BartConfig", dict(d_model=32, encoder_layers=2, decoder_layers=1,
    encoder_attention_heads=4, decoder_attention_heads=4,
                                    encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=20,
                                    max_position_embeddings=40), 40),
    ("T5Model", "T5Config", dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
    vocab_size=20), None),
    ("BloomModel", "BloomConfig", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=20), None),
]  # fmt: skip


@pytest.mark.parametrize(("class_name", "config_class", "config", "limit"), LIMITS)
def test_the_limit_is_what_the_model_really_takes(
    tmp_path, class_name, config_class, config, limit
):
    model = loaded(tmp_path, class_name, config_class, **config)
    assert position_limit(model) == limit
    longest = torch.full((1, limit or 300), 7)
    model.module.get_submodule(model.tower)(input_ids=longest)
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model.module.get_submodule(model.tower)(input_ids=torch.full((1, limit + 1), 7))
        with pytest.raises(DataError) as raised:
            check_context(model, limit + 1, pack=False)
        assert raised.value.hint == f"ctx={limit}"
        check_context(model, limit, pack=False)


def test_minus_one_is_no_limit(tmp_path):
    """XLNet's config says max_position_embeddings = -1."""
    model = loaded(
        tmp_path,
        "XLNetLMHeadModel",
        "XLNetConfig",
        encoder=False,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
        vocab_size=20,
    )
    assert position_limit(model) is None
    check_context(model, 5000, pack=False)


def test_a_context_without_room(live):
    with pytest.raises(UsageError, match="leaves no room"):
        check_context(live("bert"), 2, pack=False)

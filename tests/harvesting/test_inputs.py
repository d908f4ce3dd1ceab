from __future__ import annotations

from dataclasses import fields

import pytest
import tiny as tiny
import torch
from PIL import Image

from saekit.errors import DataError, UsageError
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import SORT_WINDOW, PositionKind, batches, check_scope
from saekit.harvesting.sources import Document, Documents, open_data

K = PositionKind


class Listed(Documents):
    """Documents as given, in their order."""

    name, modality = "given", "text"

    def __init__(self, texts=(), images=()):
        self.items = [
            Document(i, f"doc{i}", text=text, label=f"l{i}") for i, text in enumerate(texts)
        ]
        self.items += [
            Document(i, f"img{i}", image=image, label=f"l{i}") for i, image in enumerate(images)
        ]
        self.opened = 0

    def documents(self, start=0):
        for item in self.items[start:]:
            self.opened += 1
            yield item

    def digest(self):
        return None

    def image(self, ref):
        raise NotImplementedError


def words(count, first=0):
    return " ".join(tiny.WORDS[(first + i) % len(tiny.WORDS)] for i in range(count))


def same(left, right):
    for name in (each.name for each in fields(left)):
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, dict):
            assert all(torch.equal(a[key], b[key]) for key in a)
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_causal_contexts_have_a_bos_in_front_of_each(live):
    data = Listed([words(7), words(2)])
    (batch,) = batches(live("llama"), data, ctx=5, batch=8)
    # lengths 5, 4 (7 words in 4 + 3) and 3, sorted
    assert batch.refs == ["doc1", "doc0", "doc0"] and batch.labels == ["l1", "l0", "l0"]
    assert batch.example_id.tolist() == [2, 1, 0] and batch.doc_id.tolist() == [1, 0, 0]
    bos, eos = 1, 2
    assert [ids[0] for ids in batch.token_ids] == [bos] * 3
    assert batch.kind_BT.tolist() == [
        [K.BOS, K.CONTENT, K.CONTENT, K.PADDING, K.PADDING],
        [K.BOS, K.CONTENT, K.CONTENT, K.CONTENT, K.PADDING],
        [K.BOS, K.CONTENT, K.CONTENT, K.CONTENT, K.CONTENT],
    ]
    assert batch.inputs["attention_mask"].tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    # padded with EOS, but not in the mask
    assert batch.inputs["input_ids"][0].tolist() == [*batch.token_ids[0], eos, eos]
    assert batch.position_BT.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_tokenizer_without_bos_gets_none(live):
    (batch,) = batches(live("llama", bos=None), Listed([words(4)]), ctx=4, batch=8)
    assert batch.kind_BT.tolist() == [[K.CONTENT] * 4]


def test_encoders_keep_the_tokens_their_tokenizer_adds(live):
    (batch,) = batches(live("bert"), Listed([words(3), words(1)]), ctx=4, batch=8)
    assert batch.kind_BT.tolist() == [
        [K.CLS, K.CONTENT, K.EOS, K.PADDING],
        [K.CLS, K.CONTENT, K.EOS, K.PADDING],
        [K.CLS, K.CONTENT, K.CONTENT, K.EOS],
    ]
    assert batch.rows_for_scope("cls").sum().item() == 3 and batch.rows_for_scope("cls")[:, 0].all()
    assert batch.rows_for_scope("content").sum().item() == 4
    assert batch.rows_for_scope("all").sum().item() == 10


def test_special_tokens_that_a_text_spells_out_are_no_content(live):
    (batch,) = batches(live("llama"), Listed(["the </s> cat"]), ctx=8, batch=1)
    assert batch.kind_BT.tolist() == [[K.BOS, K.CONTENT, K.EOS, K.CONTENT]]


def test_one_token_for_bos_and_eos_is_bos_in_front_and_eos_within(live):
    (batch,) = batches(
        live("gpt2", bos="</s>"), Listed([words(2), words(2)]), ctx=8, batch=1, pack=True
    )
    assert batch.kind_BT.tolist() == [
        [K.BOS, K.CONTENT, K.CONTENT, K.EOS, K.CONTENT, K.CONTENT, K.EOS]
    ]


def test_packing_fills_contexts_and_keeps_each_tokens_document(live):
    data = Listed([words(3), words(4, 3), words(2, 7)])
    # 12 tokens with EOS, 5 a context
    first, second, third = batches(live("llama"), data, ctx=6, batch=1, pack=True)
    # sorted by length
    assert [len(batch.token_ids[0]) for batch in (first, second, third)] == [3, 6, 6]
    second, third, first = first, second, third
    by_number = sorted((first, second, third), key=lambda batch: batch.example_id.item())
    assert [batch.doc_id_BT[0].tolist() for batch in by_number] == [
        [0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 2],
        [2, 2, 2],
    ]
    assert [batch.kind_BT[0].tolist() for batch in by_number] == [
        [K.BOS, 0, 0, 0, K.EOS, 0],
        [K.BOS, 0, 0, 0, K.EOS, 0],
        [K.BOS, 0, K.EOS],
    ]
    assert [batch.refs[0] for batch in by_number] == ["doc0", "doc1", "doc2"]


def test_contexts_never_mix_documents_unless_packed(live):
    for batch in batches(
        live("llama"), Listed([words(n, n) for n in range(1, 30)]), ctx=8, batch=4
    ):
        assert (batch.doc_id_BT == batch.doc_id[:, None]).all()


def test_padding_changes_no_hidden_state(live):
    loaded = live("llama")
    (batch,) = batches(loaded, Listed([words(7), words(2)]), ctx=8, batch=8)
    with torch.no_grad(), capture(loaded, "blocks.1", stop=True) as states:
        loaded.forward(batch.inputs)
    for row, ids in enumerate(batch.token_ids):
        with torch.no_grad(), capture(loaded, "blocks.1", stop=True) as alone:
            loaded.forward({"input_ids": torch.tensor([ids])})
        torch.testing.assert_close(
            states["blocks.1"][row, : len(ids)], alone["blocks.1"][0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("pack", [False, True])
def test_starting_later_gives_the_same_later_batches(live, pack):
    data = Listed([words(1 + (7 * n) % 23, n) for n in range(300)])
    every = list(batches(live("llama"), data, ctx=8, batch=4, pack=pack))
    assert len(every) > SORT_WINDOW  # more than one window
    for start in (1, SORT_WINDOW, SORT_WINDOW + 3, len(every)):
        later = list(batches(live("llama"), data, ctx=8, batch=4, pack=pack, start_batch=start))
        assert len(later) == len(every) - start
        for left, right in zip(every[start:], later, strict=True):
            same(left, right)


def test_every_token_of_the_data_appears_once(live):
    texts = [words(1 + (7 * n) % 23, n) for n in range(100)]
    count = sum(
        batch.rows_for_scope("content").sum().item()
        for batch in batches(live("llama"), Listed(texts), ctx=8, batch=4)
    )
    assert count == sum(len(text.split()) for text in texts)


def test_sorting_keeps_padding_low(live):
    texts = [words(1 + (7 * n) % 23, n) for n in range(300)]
    kinds = torch.cat(
        [
            batch.kind_BT.flatten()
            for batch in batches(live("llama"), Listed(texts), ctx=32, batch=8)
        ]
    )
    assert (kinds == K.PADDING).float().mean() < 0.04  # unsorted: 45 %


def test_empty_documents_give_no_examples(live):
    assert list(batches(live("llama"), Listed(["", "  "]), ctx=8, batch=2)) == []


def test_a_context_too_short_or_too_long_is_refused(live):
    with pytest.raises(UsageError, match="ctx=2 leaves no room for text beside 2 special tokens"):
        list(batches(live("bert"), Listed(["a"]), ctx=2, batch=1))
    with pytest.raises(DataError, match="takes at most 64 tokens"):
        list(batches(live("gpt2"), Listed(["a"]), ctx=65, batch=1))


def test_packing_needs_an_end_of_text_token(live):
    with pytest.raises(DataError, match="pack=True: the tokenizer"):
        list(batches(live("llama", eos=None), Listed(["a"]), ctx=8, batch=1, pack=True))


# -- images ----------------------------------------------------------------------------------------


def pictures(count, size=(16, 16)):
    return [Image.new("RGB", size, (10 * i % 256, 20, 30)) for i in range(count)]


@pytest.mark.parametrize("family", tiny.VISION)
def test_kinds_and_positions_of_image_tokens(live, family):
    loaded = live(family)
    (batch,) = batches(loaded, Listed(images=pictures(3)), batch=4)
    cls, registers = tiny.HAS_CLS[family], tiny.REGISTERS * tiny.HAS_REGISTERS[family]
    assert batch.kind_BT[0].tolist() == [K.CLS] * cls + [K.REGISTER] * registers + [K.CONTENT] * 16
    assert batch.position_BT[2].tolist() == [-1] * cls + [-2, -3][:registers] + list(range(16))
    assert (
        batch.grid == (4, 4)
        and batch.refs == ["img0", "img1", "img2"]
        and batch.doc_id.tolist() == [0, 1, 2]
    )
    with torch.no_grad(), capture(loaded, "blocks.1", stop=True) as states:
        loaded.forward(batch.inputs)
    assert states["blocks.1"].shape[:2] == batch.kind_BT.shape
    assert [batch.rows_for_scope(scope).sum().item() for scope in ("content", "cls", "all")] == [
        48, 3 * cls, 3 * (16 + cls + registers),
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["vit", "dinov2_registers", "dinov3", "siglip"])
def test_a_patchs_position_is_where_it_lies_in_the_image(live, family):
    """Changing the pixels of one patch changes the embedding at its position and at no other."""
    loaded = live(family)
    plain, marked = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16))
    marked.paste((255, 255, 255), (8, 4, 12, 8))  # column 2, row 1 of the 4x4 grid
    (batch,) = batches(loaded, Listed(images=[plain, marked]), batch=2)
    with torch.no_grad(), capture(loaded, "blocks.0:in", stop=True) as states:
        loaded.forward(batch.inputs)
    changed_T = (states["blocks.0:in"][0] - states["blocks.0:in"][1]).abs().amax(-1) > 1e-6
    assert batch.position_BT[0][changed_T].tolist() == [1 * 4 + 2]


def test_image_batches_start_later_without_opening_the_images_before(live):
    every = list(batches(live("vit"), Listed(images=pictures(10)), batch=3))
    data = Listed(images=pictures(10))
    later = list(batches(live("vit"), data, batch=3, start_batch=2))
    assert data.opened == 4 and len(every) == 4
    for left, right in zip(every[2:], later, strict=True):
        same(left, right)


def test_images_of_any_size_and_mode_are_resized(live):
    images = [Image.new("L", (40, 20)), Image.new("RGBA", (7, 9)), Image.new("P", (16, 16))]
    (batch,) = batches(live("clip"), Listed(images=images), batch=4)
    assert batch.inputs["pixel_values"].shape == (3, 3, 16, 16)


def test_the_class_token_scope_is_refused_where_there_is_none(live):
    for family in ("vit", "bert", "dinov3"):
        check_scope(live(family), "cls")
    for family in ("siglip", "llama"):
        check_scope(live(family), "content")
        with pytest.raises(DataError, match="has no class token"):
            check_scope(live(family), "cls")


def test_a_shuffled_source_gives_the_same_batches_for_the_same_seed(live, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(words(2 + n % 5, n) for n in range(40)))
    first, again, other = (
        list(
            batches(
                live("llama"),
                open_data(str(tmp_path / "text.txt"), modality="text", seed=seed),
                ctx=8,
                batch=4,
            )
        )
        for seed in (0, 0, 1)
    )
    for left, right in zip(first, again, strict=True):
        same(left, right)
    assert [batch.refs for batch in first] != [batch.refs for batch in other]

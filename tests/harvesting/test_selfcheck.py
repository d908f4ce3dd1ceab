"""The check on the first contexts: models whose rows depend on padding, on the batch or on
chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import saekit
from saekit.errors import DataError, NumericsError
from saekit.harvesting.live import LiveSource
from saekit.harvesting.models import load_model
from saekit.harvesting.selfcheck import _groups as groups_of
from saekit.harvesting.selfcheck import _two_groups as groups_of_images
from saekit.harvesting.selfcheck import difference, pieces
from saekit.store.reader import open_store

SHAPE = dict(tiny.SHAPE, vocab_size=tiny.VOCAB, max_position_embeddings=64)
# encoders without a mask for what mixes tokens, with the weights that transformers starts them with
MIXING = {
    "fnet": ("FNetModel", "FNetConfig", SHAPE),
    "convbert": (
        "ConvBertModel",
        "ConvBertConfig",
        dict(SHAPE, embedding_size=tiny.WIDTH, head_ratio=2, conv_kernel_size=5),
    ),
    "nystromformer": (
        "NystromformerModel",
        "NystromformerConfig",
        dict(SHAPE, num_landmarks=4, segment_means_seq_len=4),
    ),
    "mobilebert": (
        "MobileBertModel",
        "MobileBertConfig",
        dict(SHAPE, embedding_size=16, intra_bottleneck_size=16),
    ),
}


@pytest.fixture(scope="module")
def docs(tmp_path_factory) -> str:
    rng, folder = np.random.default_rng(4), tmp_path_factory.mktemp("docs")
    for i, words in enumerate((4, 7, 11, 19, 26) * 4):
        (folder / f"{i:02}.txt").write_text(" ".join(rng.choice(tiny.WORDS, words)))
    return str(folder)


def saved(name: str, folder: Path) -> str:
    import transformers

    model_class, config_class, config = MIXING[name]
    torch.manual_seed(3)
    getattr(transformers, model_class)(
        getattr(transformers, config_class)(**config)
    ).save_pretrained(folder)
    tiny.tokenizer(encoder=True).save_pretrained(folder)
    return str(folder)


def harvested(model, data: str, out: Path, **options):
    said = []
    settings = {"hook": "blocks.1", "ctx": 32, "dtype": "float32", "device": "cpu", **options}
    result = saekit.harvest(
        model, data, out, progress=lambda p: p.message and said.append(p.message), **settings
    )
    return result, said


def rows(path: Path) -> dict[tuple, torch.Tensor]:
    store = open_store(path)
    batch = next(store.batches(10_000))
    return {
        (store.example_at(row)[0].ref, int(batch.position[row])): x for row, x in enumerate(batch.x)
    }


def manifest(path: Path) -> dict:
    return json.loads((path / "manifest.json").read_text())


@pytest.mark.parametrize("name", MIXING)
def test_where_padding_reaches_rows_none_is_used(name, docs, tmp_path):
    model = saved(name, tmp_path / "model")
    _, single_said = harvested(model, docs, tmp_path / "single", batch=1, scope="all")
    result, said = harvested(model, docs, tmp_path / "many", batch=6, scope="all")
    one, many = rows(tmp_path / "single"), rows(tmp_path / "many")
    assert one.keys() == many.keys() and len(one) == result.rows
    assert max(float((many[key] - x).norm() / x.norm()) for key, x in one.items()) < 1e-5
    assert "without padding" in said[0] and "padding" not in single_said[0]
    assert (
        manifest(tmp_path / "many")["plan"]["padding"] == "none"
        and "without padding" in result.self_check["batch"]
    )
    assert "padding" not in manifest(tmp_path / "single")["plan"]


def test_live_rows_of_a_store_without_padding_are_its_own(docs, tmp_path):
    harvested(saved("fnet", tmp_path / "model"), docs, tmp_path / "s", batch=4, holdout=0.2)
    store = open_store(tmp_path / "s")
    x = [
        torch.cat([b.x for b in source.batches(64, split="train")])
        for source in (store, LiveSource(store, device="cpu"))
    ]
    assert torch.equal(*x)


def test_what_was_shown_is_said_stored_and_returned_and_ordinary_batches_stay(live, docs, tmp_path):
    hooks = ["blocks.0.attn", "blocks.1", "blocks.1.mlp"]
    result, said = harvested(live("llama"), docs, tmp_path / "s", hook=hooks, batch=6)
    assert said[0].startswith(
        "self-check: the same input twice: equal bits; by itself as padded in a batch;"
        " blocks.0.attn, blocks.1.mlp add up"
    )
    assert result.self_check == {
        "repeat": "equal bits",
        "hooks": "each by itself as together",
        "sums": "blocks.0.attn, blocks.1.mlp",
        "batch": "by itself as padded in a batch",
    }
    for path in result.stores.values():
        stored = manifest(Path(path))
        assert stored["self_check"] == result.self_check and "padding" not in stored["plan"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return str(folder)


def test_one_image_alone_is_compared_with_the_first_batch(live, photos, tmp_path):
    result, said = harvested(live("dinov2"), photos, tmp_path / "s", hook="blocks.1.attn")
    assert result.self_check == {
        "sums": "blocks.1.attn",
        "batch": "one image as in a batch",
    }
    assert said[0].startswith(
        "self-check: one image as in a batch; blocks.1.attn add up (largest difference "
    )
    single, _ = harvested(
        live("dinov2"), photos, tmp_path / "single", hook="blocks.1.attn", batch=1
    )
    assert single.self_check == {"repeat": "equal within rounding", "sums": "blocks.1.attn"}


def test_the_check_of_images_runs_one_image_more_than_the_harvest(live, photos, tmp_path):
    loaded, images = live("vit"), []
    with_hook = loaded.module.register_forward_pre_hook(
        lambda _, __, inputs: images.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    try:
        harvested(loaded, photos, tmp_path / "one", hook="blocks.1", batch=2)
        assert images == [2, 1, 2, 1], "the first batch, one of its images, the other batches"
        images.clear()
        several, _ = harvested(
            loaded,
            photos,
            tmp_path / "three",
            hook=["blocks.0", "blocks.0.mlp", "blocks.1"],
            batch=4,
        )
        assert images == [4, 1, 1, 1]
        images.clear()
        many = ["blocks.0", "blocks.0.attn", "blocks.0.mlp", "blocks.1", "blocks.1.mlp"]
        result, _ = harvested(loaded, photos, tmp_path / "five", hook=many, batch=4)
        assert (
            images == [4, 1, 1, 1]
            and result.self_check["hooks"] == "the last by itself as together"
        )
    finally:
        with_hook.remove()
    last = [*several.stores.values()][-1]
    one, three = (
        torch.cat([b.x for b in open_store(path).batches(64)]) for path in (tmp_path / "one", last)
    )
    assert one.shape == three.shape and difference(one, three) < 1e-5, (
        "every image once, in its order"
    )


def test_each_hook_runs_without_those_that_fire_before_it():
    for count in range(1, 20):
        hooks = [f"h{i}" for i in range(count)]
        groups = [set(group) for group in groups_of(hooks)]
        assert len(groups) == count.bit_length() and set.union(*groups) == set(hooks)
        for later in range(count):
            for earlier in range(later):
                assert any(
                    hooks[later] in group and hooks[earlier] not in group for group in groups
                )
        two = groups_of_images(hooks)
        assert len(two) <= 2 and set().union(*two) == set(hooks)
        assert two == list(groups_of(hooks)) if count <= 3 else two == [hooks[-1:], hooks[:-1]]


class Noisy(nn.Module):
    """An embedding that draws random numbers in eval mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        x_BTD = self.inner(*args, **kwargs)
        return x_BTD + 0.01 * torch.randn_like(x_BTD)


class BatchMean(Noisy):
    """An embedding that takes the mean of its batch away, as a batch norm left in training mode
    does."""

    def forward(self, *args, **kwargs):
        x_BTD = self.inner(*args, **kwargs)
        return x_BTD - x_BTD.mean((0, 1))


@pytest.mark.parametrize(
    ("wrapper", "cause", "hint"),
    [
        (Noisy, "draws random numbers", "deterministic"),
        (BatchMean, "depends on the rest of its batch", "batch=1 runs"),
    ],
)
def test_chance_and_company_are_refused_before_anything_is_written(
    wrapper, cause, hint, docs, tmp_path
):
    live = load_model(tiny.save("llama", tmp_path / "model"))
    live.module.model.embed_tokens = wrapper(live.module.model.embed_tokens)
    with pytest.raises(DataError, match=cause) as raised:
        harvested(live, docs, tmp_path / "s", batch=4)
    assert (
        raised.value.exit_status == 3
        and hint in raised.value.hint
        and not (tmp_path / "s").exists()
    )
    if wrapper is BatchMean:
        assert harvested(live, docs, tmp_path / "s", batch=1)[0].rows > 0, "the hint works"


@pytest.mark.parametrize(
    ("wrapper", "cause"),
    [(Noisy, "draws random numbers"), (BatchMean, "depends on the rest of its batch")],
)
def test_chance_and_company_are_refused_for_images(wrapper, cause, photos, tmp_path):
    live = load_model(tiny.save("vit", tmp_path / "model"))
    live.module.embeddings.dropout = wrapper(live.module.embeddings.dropout)
    with pytest.raises(DataError, match=cause):
        harvested(live, photos, tmp_path / "s", hook="blocks.1", batch=4)
    assert not (tmp_path / "s").exists()


def test_a_sum_that_holds_on_the_probe_alone_is_refused(docs, tmp_path):
    """Beyond the five tokens of the probe, this block adds half of its input besides."""
    live = load_model(tiny.save("gpt2", tmp_path / "model"))
    block = live.module.transformer.h[1]
    plain = type(block).forward

    class Adding(type(block)):
        def forward(self, hidden_states, *args, **kwargs):
            out = plain(self, hidden_states, *args, **kwargs)
            return out + hidden_states.mul(0.5) if hidden_states.shape[1] > 5 else out

    block.__class__ = Adding
    with pytest.raises(
        DataError,
        match=(
            r"blocks.1.mlp of .* is not what block 1 adds to the residual stream on these contexts"
        ),
    ):
        harvested(live, docs, tmp_path / "s", hook="blocks.1.mlp", batch=4)


def test_the_check_leaves_model_and_random_state_alone(live, docs, tmp_path):
    loaded = live("llama")
    before = {name: value.clone() for name, value in loaded.module.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    harvested(loaded, docs, tmp_path / "s", batch=4)
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(value, before[name]) for name, value in loaded.module.state_dict().items()
    )


def test_pieces_are_two_short_parts_of_real_contexts():
    short, long = pieces([list(range(100, 140)), list(range(50))])
    assert long["input_ids"].tolist() == [list(range(16))] and short["input_ids"].tolist() == [
        list(range(100, 108))
    ]
    assert len(pieces([[5, 6]])) == 1


def test_the_difference_is_that_of_the_worst_row_by_its_own_norm():
    y = torch.tensor([[[3.0, 4.0], [0.0, 100.0]]])
    x = torch.tensor([[[3.0, 4.5], [0.0, 101.0]]])
    assert difference(x, y) == pytest.approx(0.1)


def test_nan_is_the_stores_to_refuse_not_a_difference(live, photos, docs, tmp_path):
    nan, one = float("nan"), torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    both, other = (torch.where(torch.tensor([[[False], [at]]]), nan, one) for at in (True, False))
    assert difference(both, both) == 0 and difference(both, other) == float("inf")
    for kind, data in (("vit", photos), ("llama", docs)):
        loaded = load_model(tiny.save(kind, tmp_path / kind))
        parameter = next(
            p for name, p in loaded.module.named_parameters() if "1." in name and p.ndim == 1
        )
        with torch.no_grad():
            parameter.fill_(nan)
        with pytest.raises(NumericsError, match="NaN"):
            harvested(loaded, data, tmp_path / f"{kind}-store")

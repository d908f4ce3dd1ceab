"""Models, texts and images in memory: the same rows as from disk, and rows without a folder."""

from __future__ import annotations

import copy
import inspect
import runpy
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

import saekit
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.images import image_processor
from saekit.harvesting.memory_data import as_image
from saekit.harvesting.memory_models import load_model_of, weights_digest
from saekit.harvesting.run import harvest
from saekit.harvesting.sources import open_data

TEXTS = [
    "the cat sat on a mat",
    "a dog ran far away from it",
    "home",
    "the dog sat on a cat and ran",
] * 3
OPTIONS = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return image_processor(tiny.save("vit", tmp_path_factory.mktemp("vit")))[0]


@pytest.fixture(scope="module")
def pixels_NHWC() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)


def in_memory(**options) -> saekit.harvesting.config.HarvestResult:
    return saekit.harvest(
        tiny.random_model("llama"), TEXTS, tokenizer=tiny.tokenizer(), **OPTIONS | options
    )


def test_objects_give_the_rows_of_the_same_model_and_texts_on_disk(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    saekit.harvest(folder, str(tmp_path / "texts.txt"), tmp_path / "store", **OPTIONS)
    stored = next(saekit.open_store(tmp_path / "store").batches(10_000))
    result = in_memory()
    (batch,) = result.batches.values()
    assert (
        result.path is None
        and result.stores == {}
        and result.rows == len(stored.x) == sum(len(text.split()) for text in TEXTS)
    )
    for name in ("x", "doc_id", "example_id", "position"):
        assert torch.equal(getattr(batch, name), getattr(stored, name)), name


def test_rows_in_memory_are_the_hidden_states_of_their_tokens():
    model, tokenizer = tiny.random_model("llama"), tiny.tokenizer()
    (batch,) = in_memory().batches.values()
    for row in range(0, len(batch.x), 7):
        ids = [tokenizer.bos_token_id, *tokenizer(TEXTS[batch.doc_id[row]])["input_ids"]]
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(
            batch.x[row], states[0, batch.position[row]], rtol=1e-4, atol=1e-5
        )


def test_the_module_is_left_as_it_was_and_its_own_hooks_take_part():
    model = tiny.random_model("llama").train()
    model.model.layers[2].eval()
    modes = [each.training for each in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    plain = saekit.harvest(model, TEXTS, tokenizer=tiny.tokenizer(), **OPTIONS)
    handle = model.model.layers[1].register_forward_hook(lambda _module, _args, output: output + 1)
    moved = saekit.harvest(model, TEXTS, tokenizer=tiny.tokenizer(), **OPTIONS)
    torch.testing.assert_close(moved.x, plain.x + 1)
    assert list(model.model.layers[1]._forward_hooks) == [handle.id]
    assert [each.training for each in model.modules()] == modes and all(
        p.requires_grad for p in model.parameters()
    )
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with pytest.raises(DataError):
        saekit.harvest(model, [3], tokenizer=tiny.tokenizer(), **OPTIONS)
    assert [each.training for each in model.modules()] == modes


def test_several_hooks_have_aligned_rows():
    result = in_memory(hook=["blocks.0", "blocks.1:in"])
    assert list(result.batches) == ["model.layers.0", "model.layers.1:in"]
    first, second = result.batches.values()
    assert torch.equal(first.x, second.x) and torch.equal(first.doc_id, second.doc_id)
    with pytest.raises(UsageError, match="several hooks"):
        _ = result.x


def test_rows_are_limited_and_labels_are_kept(tmp_path):
    assert in_memory(rows=10).x.shape == (10, tiny.WIDTH)
    saekit.harvest(
        tiny.random_model("llama"),
        ((text, len(text)) for text in TEXTS),
        tmp_path / "s",
        tokenizer=tiny.tokenizer(),
        **OPTIONS,
    )
    store = saekit.open_store(tmp_path / "s")
    assert store.spec.dataset == "12 texts in memory"
    numbers = next(store.batches(10_000)).doc_id.tolist()
    assert store.labels() == [str(len(TEXTS[number])) for number in numbers]


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {"layout": "sequence"}])
def test_what_needs_a_folder_is_refused_without_one(options):
    with pytest.raises(UsageError, match=r"folder|stores"):
        in_memory(**options)


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "texts", "weights", "config", "tokenizer"])
def test_resume_refuses_another_text_another_weight_another_tokenizer(tmp_path, what):
    model, texts, tokenizer = tiny.random_model("llama"), list(TEXTS), tiny.tokenizer()
    saekit.harvest(model, texts, tmp_path / "s", tokenizer=tokenizer, **OPTIONS)
    if what == "texts":
        texts[5] = "the mat"
    elif what == "weights":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    elif what == "config":
        model.config.rms_norm_eps *= 2
    elif what == "tokenizer":
        tokenizer = tiny.tokenizer(bos=None)
    again = {"tokenizer": tokenizer, "resume": True, **OPTIONS}
    if what == "nothing":
        assert saekit.harvest(model, iter(texts), tmp_path / "s", **again).rows_per_s == 0
        return
    with pytest.raises(
        DataError,
        match={"texts": "the data's content", "tokenizer": "processor"}.get(what, "revision"),
    ):
        saekit.harvest(model, texts, tmp_path / "s", **again)


def test_the_digest_of_weights_is_that_of_their_values_whatever_the_head_and_the_number_type():
    model = tiny.random_model("llama").bfloat16()
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model).float()) == digest == weights_digest(model.model)
    assert weights_digest(tiny.random_model("llama")) != digest, (
        "rounding to bfloat16 changes values"
    )


# -- models ----------------------------------------------------------------------------------------


def test_a_module_from_a_folder_finds_its_tokenizer_and_is_found_again_with_the_same_weights(
    folder, tmp_path
):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    saekit.harvest(model, TEXTS, tmp_path / "s", **OPTIONS)
    spec = saekit.open_store(tmp_path / "s").spec
    assert spec.model == folder and spec.revision == f"weights:{weights_digest(model)}"
    assert load_model_of(spec).revision == spec.revision
    assert load_model_of(spec, given=model).module is model
    with torch.no_grad():
        model.model.norm.weight += 1
    saekit.harvest(model, TEXTS, tmp_path / "tuned", **OPTIONS)
    with pytest.raises(MissingError, match="other weights") as refused:
        load_model_of(saekit.open_store(tmp_path / "tuned").spec)
    assert "save_pretrained" in refused.value.hint


def test_what_is_missing_beside_a_module_is_named(processor):
    model = tiny.random_model("llama")
    with pytest.raises(MissingError, match="has no tokenizer") as refused:
        saekit.harvest(model, TEXTS, **OPTIONS)
    assert "tokenizer=" in refused.value.hint
    with pytest.raises(MissingError, match="has no image processor"):
        saekit.harvest(tiny.random_model("vit"), [], hook="blocks.1")
    with pytest.raises(DataError, match="Linear is not a transformers model"):
        saekit.harvest(torch.nn.Linear(2, 2), TEXTS, **OPTIONS)
    with pytest.raises(UsageError, match="device cuda"):
        saekit.harvest(model, TEXTS, tokenizer=tiny.tokenizer(), device="cuda", **OPTIONS)
    with pytest.raises(UsageError, match="both given"):
        saekit.harvest(model, TEXTS, tokenizer=tiny.tokenizer(), processor=processor, **OPTIONS)


def test_a_bare_encoder_and_a_bare_decoder_are_read():
    for family, width in (("bert", tiny.WIDTH), ("gpt2", tiny.WIDTH)):
        model = tiny.random_model(family)
        bare = getattr(model, "base_model", model)
        tokenizer = tiny.tokenizer(encoder=family == "bert")
        whole = saekit.harvest(model, TEXTS, tokenizer=tokenizer, **OPTIONS)
        assert (
            torch.equal(saekit.harvest(bare, TEXTS, tokenizer=tokenizer, **OPTIONS).x, whole.x)
            and whole.x.shape[1] == width
        )


def test_what_reads_a_store_again_says_what_to_pass(tmp_path):
    in_memory(out=tmp_path / "s")
    spec = saekit.open_store(tmp_path / "s").spec
    with pytest.raises(
        MissingError, match="LlamaForCausalLM in memory was an object in memory"
    ) as refused:
        load_model_of(spec)
    assert "live=model" in refused.value.hint
    with pytest.raises(MissingError, match="12 texts in memory") as refused:
        open_data(spec.dataset, modality="text")
    assert "data=" in refused.value.hint


def test_inspect_takes_the_model_and_the_images_again(tmp_path, processor, pixels_NHWC):
    for name, model, data, beside in (
        ("text", tiny.random_model("llama"), TEXTS, {"tokenizer": tiny.tokenizer()}),
        ("image", tiny.random_model("vit"), list(pixels_NHWC), {"processor": processor}),
    ):
        saekit.harvest(
            model,
            data,
            tmp_path / name,
            hook="blocks.2",
            **({"ctx": 16} if name == "text" else {}),
            **beside,
        )
        saekit.train(tmp_path / name, tmp_path / f"{name}-run", latents=8, k=2, rows=256, batch=32)
        said = []
        ask = {
            "features": "all",
            "top": 2,
            "overwrite": True,
            "progress": lambda p, said=said: said.append(p.message or ""),
        }
        pair = tmp_path / f"{name}-run", tmp_path / name, tmp_path / f"{name}-page"
        if name == "text":
            saekit.inspect(*pair, **ask)
            assert any("no output tokens" in line and "live=model" not in line for line in said)
            said.clear()
            saekit.inspect(*pair, live=model, **ask)
            assert not any("no output tokens" in line for line in said)
            continue
        with pytest.raises(MissingError, match="6 images in memory"):
            saekit.inspect(*pair, **ask)
        with pytest.raises(DataError, match="not what the store was harvested from"):
            saekit.inspect(*pair, data=list(pixels_NHWC[::-1]), **ask)
        assert saekit.inspect(*pair, data=list(pixels_NHWC), **ask).features > 0


# -- images and datasets ---------------------------------------------------------------------------


def test_images_of_every_kind_give_the_same_rows(processor, pixels_NHWC):
    kinds = {
        "array": pixels_NHWC,
        "PIL": [Image.fromarray(pixels) for pixels in pixels_NHWC],
        "float tensors": torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 255,
        "pairs": [(pixels, "label") for pixels in pixels_NHWC],
        "dataset": datasets.Dataset.from_dict(
            {"image": [Image.fromarray(pixels) for pixels in pixels_NHWC]}
        ),
    }
    rows = {
        kind: saekit.harvest(tiny.random_model("vit"), data, hook="blocks.1", processor=processor)
        for kind, data in kinds.items()
    }
    (want,) = rows.pop("array").batches.values()
    for kind, result in rows.items():
        (batch,) = result.batches.values()
        order = torch.argsort(batch.doc_id * 1000 + batch.position)
        torch.testing.assert_close(
            batch.x[order], want.x[torch.argsort(want.doc_id * 1000 + want.position)], msg=kind
        )


@pytest.mark.parametrize(
    "value,match",
    [
        (np.full((4, 4, 3), 2.0), "values from 2 to 2"),
        (np.full((4, 4, 3), np.nan), "values from nan"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
        ("photo.png", "a str, not an image"),
    ],
)
def test_what_is_not_an_image_is_named(value, match):
    with pytest.raises(DataError, match=match):
        as_image(value, "item 3")


def test_an_image_keeps_its_pixels_in_every_layout():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    for value in (
        pixels,
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1).bfloat16() / 256,
        pixels / 255,
    ):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert np.array_equal(
                np.asarray(as_image(value, "x")),
                np.rint(value.float().permute(1, 2, 0).numpy() * 255).astype(np.uint8),
            )
        else:
            assert np.array_equal(np.asarray(as_image(value, "x")), pixels)
    assert as_image(pixels[:, :, :1], "x").mode == as_image(pixels[:, :, 0], "x").mode == "L"


def test_a_data_frame_is_read_like_a_dataset():
    frame = pd.DataFrame({"id": range(12), "said": TEXTS, "label": ["no", "yes"] * 6})
    chosen = frame.iloc[[7, 2]]
    data = open_data(chosen, modality="text", column="said")
    assert [(d.id, d.text, d.label) for d in data.documents()] == [
        (0, TEXTS[7], "yes"),
        (1, TEXTS[2], "no"),
    ]
    with pytest.raises(DataError, match="column"):
        open_data(frame, modality="text", column="other")


def test_a_dataset_is_read_as_it_was_selected_and_its_content_is_known():
    rows = datasets.Dataset.from_dict(
        {"text": TEXTS, "other": TEXTS, "label": [n % 2 for n in range(12)]},
        features=datasets.Features(
            {
                "text": datasets.Value("string"),
                "other": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
            }
        ),
    )
    chosen = rows.select([7, 2, 5])
    data = open_data(chosen, modality="text", column="other")
    assert [(d.id, d.text, d.label) for d in data.documents()] == [
        (0, TEXTS[7], "yes"),
        (1, TEXTS[2], "no"),
        (2, TEXTS[5], "yes"),
    ]
    assert [d.id for d in data.documents(2)] == [2] and list(data.documents(3)) == []
    assert (
        data.digest() == open_data(rows.select([7, 2, 5]), modality="text", column="other").digest()
    )
    assert (
        data.digest() != open_data(rows.select([7, 5, 2]), modality="text", column="other").digest()
    )
    stream = open_data(rows.to_iterable_dataset(), modality="text", column="text")
    assert [d.text for d in stream.documents(10)] == TEXTS[10:] and stream.digest() is None


@pytest.mark.parametrize(
    "data,match",
    [
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}),
            "several parts: train",
        ),
        (3, "data is a int"),
        ([], "holds no text documents"),
        ([b"bytes"], "item 0 is a bytes"),
        (["half \ud800"], "lone surrogate"),
    ],
)
def test_data_that_cannot_be_read_is_named(data, match):
    with pytest.raises(DataError, match=match):
        list(open_data(data, modality="text").documents())


def test_one_image_is_not_taken_for_several():
    with pytest.raises(DataError, match="one image"):
        open_data(np.zeros((4, 5, 3), np.uint8), modality="image")


def test_raw_pixels_and_words_take_objects_too(tmp_path, pixels_NHWC):
    (batch,) = saekit.harvest("raw:pixels", pixels_NHWC).batches.values()
    order = torch.argsort(batch.doc_id)
    assert torch.equal(
        batch.x[order], torch.from_numpy(pixels_NHWC.reshape(6, -1).astype(np.float32) / 255)
    )
    assert saekit.harvest("raw:tfidf", ["alpha beta", "beta gamma"], vocabulary=3).x.shape == (2, 3)
    with pytest.raises(UsageError, match="raw:array reads a"):
        saekit.harvest("raw:array", np.zeros((3, 2)))


# -- the signature ---------------------------------------------------------------------------------


def test_help_shows_the_options_with_their_defaults():
    parameters = inspect.signature(harvest).parameters
    assert (
        parameters["ctx"].default == HarvestConfig.ctx
        and parameters["dtype"].default is None
        and "hooks" not in parameters
    )
    assert list(parameters)[:3] == ["model", "data", "out"]


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,said",
    [
        ("harvest_in_memory", "16 rows of width 32"),
        ("hook_into_a_forward_pass", "blocks.1: (1, 6, 32)"),
    ],
)
def test_the_examples_run(folder, capsys, name, said):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](folder)
    assert said in capsys.readouterr().out

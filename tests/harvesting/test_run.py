"""The verb `harvest` on tiny models: the right rows, aligned stores, kills, limits."""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import killed_after
from PIL import Image
from tiny import LAYERS, PATCH, REGISTERS, SIDE, WIDTH, WORDS, save

import saekit
from saekit.errors import DataError, UsageError
from saekit.harvesting.models import load_model
from saekit.harvesting.run import plan_harvest
from saekit.store.reader import open_store

PATCHES = (SIDE // PATCH) ** 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """family -> folder of a tiny model."""
    folders = {}

    def get(family: str) -> str:
        if family not in folders:
            folders[family] = save(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return get


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """40 documents of 5 to 30 known words, a paragraph each."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(
        "\n\n".join(" ".join(rng.choice(WORDS, rng.integers(5, 31))) for _ in range(40))
    )
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for label in ("cats", "dogs"):
        (folder / label).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(
                folder / label / f"{i}.png"
            )
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_a_stored_row_is_the_hidden_state_of_its_token(models, text, tmp_path):
    result = saekit.harvest(
        models("llama"), text, tmp_path / "s", hook="blocks.1", ctx=16, batch=4, dtype="float32"
    )
    store, live = open_store(tmp_path / "s"), load_model(models("llama"))
    assert result.rows == len(store) and result.fingerprint == store.spec.fingerprint
    assert store.spec.hook == "model.layers.1" and store.spec.d_in == WIDTH
    batch = next(store.batches(10_000))
    for row in range(0, len(store), 37):
        example, _ = store.example_at(row)
        with torch.inference_mode():
            states = live.module(
                torch.tensor([example.tokens]), output_hidden_states=True
            ).hidden_states
        torch.testing.assert_close(
            batch.x[row], states[2][0, int(batch.position[row])], rtol=1e-4, atol=1e-5
        )
        assert batch.example_id[row] == example.id and batch.doc_id[row] == example.doc_id


@pytest.mark.parametrize("family,specials", [("gpt2", 1), ("llama", 1), ("bert", 2)])
def test_content_rows_are_all_tokens_but_special_ones(models, text, tmp_path, family, specials):
    saekit.harvest(models(family), text, tmp_path / "content", hook="blocks.0", ctx=16, batch=4)
    saekit.harvest(
        models(family), text, tmp_path / "all", hook="blocks.0", ctx=16, batch=4, scope="all"
    )
    words = len(Path(text).read_text().split())
    content, everything = open_store(tmp_path / "content"), open_store(tmp_path / "all")
    examples = sum(int((s.arrays["examples.rows"] > 0).sum()) for s in everything.shards)
    assert len(content) == words
    assert len(everything) == words + specials * examples
    assert 0 not in {int(p) for b in content.batches(1000) for p in b.position}, (
        "position 0 is BOS or CLS"
    )


@pytest.mark.parametrize(
    "family,cls,registers",
    [("vit", 1, 0), ("clip", 1, 0), ("dinov2_registers", 1, REGISTERS), ("siglip", 0, 0)],
)
def test_image_scopes(models, photos, tmp_path, family, cls, registers):
    def rows(scope):
        saekit.harvest(
            models(family), photos, tmp_path / scope, hook="blocks.2", batch=5, scope=scope
        )
        return next(open_store(tmp_path / scope).batches(10_000))

    content = rows("content")
    assert content.position.tolist() == list(range(PATCHES)) * 12
    assert len(rows("all").x) == 12 * (PATCHES + cls + registers)
    if cls:
        assert rows("cls").position.tolist() == [-1] * 12
    else:
        with pytest.raises(DataError, match="has no class token"):
            rows("cls")
    store = open_store(tmp_path / "content")
    assert store.spec.grid == (SIDE // PATCH, SIDE // PATCH)
    example, _ = store.example_at(5 * PATCHES)
    assert example.label == Path(example.ref).parts[0] in ("cats", "dogs")


def test_several_hooks_in_one_pass_give_row_aligned_stores_equal_to_single_ones(
    models, text, tmp_path
):
    hooks = ["blocks.0", "blocks.1.mlp", "blocks.1:in"]
    result = saekit.harvest(
        models("gpt2"), text, tmp_path / "many", hook=hooks, ctx=16, batch=4, shard_mb=1
    )
    assert (
        list(result.stores) == ["transformer.h.0", "transformer.h.1.mlp", "transformer.h.1:in"]
        and result.fingerprint is None
    )
    stores = {hook: open_store(path) for hook, path in result.stores.items()}
    batches = {hook: next(store.batches(10_000)) for hook, store in stores.items()}
    assert (
        len({b.doc_id.numpy().tobytes() + b.position.numpy().tobytes() for b in batches.values()})
        == 1
    )
    assert torch.equal(batches["transformer.h.0"].x, batches["transformer.h.1:in"].x), (
        "the input of a block is the output before it"
    )
    saekit.harvest(models("gpt2"), text, tmp_path / "one", hook="blocks.1.mlp", ctx=16, batch=4)
    assert torch.equal(
        next(open_store(tmp_path / "one").batches(10_000)).x, batches["transformer.h.1.mlp"].x
    )


def test_nothing_past_the_last_hooked_block_runs(models, text, tmp_path):
    live = load_model(models("llama"))
    calls = []
    for i, block in enumerate(live.module.model.layers):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    saekit.harvest(live, text, tmp_path / "s", hook="blocks.0", ctx=16, batch=4)
    assert set(calls) == {0} and LAYERS > 1


def test_exactly_the_rows_asked_for(models, text, photos, tmp_path):
    result = saekit.harvest(
        models("gpt2"), text, tmp_path / "t", hook="blocks.0", ctx=16, batch=4, rows=101
    )
    assert result.rows == len(open_store(tmp_path / "t")) == result.asked == 101
    whole = saekit.harvest(
        models("vit"),
        photos,
        tmp_path / "i",
        hook="blocks.0",
        rows=5 * PATCHES + 3,
        layout="grid",
        batch=4,
    )
    assert whole.rows == 5 * PATCHES, "a grid is stored whole or not at all"
    short = saekit.harvest(
        models("gpt2"), text, tmp_path / "short", hook="blocks.0", ctx=16, rows=10**6
    )
    assert short.rows < short.asked == 10**6


@pytest.mark.usefixtures("one_thread")
def test_a_harvest_killed_with_sigkill_resumes_to_the_same_bytes(
    models, text, tmp_path, monkeypatch
):
    from saekit.harvesting import run
    from saekit.store import writer

    opened, collected = writer.StoreWriter.__init__, run._block
    # Shards of one byte: every batch closes one, so that the kill falls between and within shards.
    monkeypatch.setattr(
        writer.StoreWriter,
        "__init__",
        lambda self, *a, **k: opened(self, *a, **{**k, "shard_bytes": 1}),
    )

    model = models("gpt2")

    def harvest(out):
        saekit.harvest(
            model, text, tmp_path / out, hook=["blocks.0", "blocks.1"], ctx=16, batch=2, resume=True
        )

    def slow(*arguments):
        time.sleep(0.05)
        return collected(*arguments)

    harvest("whole")
    with monkeypatch.context() as patched:
        patched.setattr(run, "_block", slow)
        killed_after(
            tmp_path / "broken" / "transformer.h.1" / "shards" / "00003.safetensors",
            0,
            lambda: harvest("broken"),
        )
    with pytest.raises(DataError, match="not finished"):
        open_store(tmp_path / "broken" / "transformer.h.0")
    harvest("broken")
    broken, whole = contents(tmp_path / "broken"), contents(tmp_path / "whole")
    assert broken == whole and len(whole) > 20


@pytest.mark.parametrize("layout", ["flat", "sequence"])
@pytest.mark.parametrize("rows", [101, None])
def test_a_harvest_killed_between_the_last_shard_and_the_report_resumes_to_the_same_bytes(
    models, text, tmp_path, monkeypatch, layout, rows
):
    import saekit.store.writer as writer

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    options = {"hook": "blocks.0", "ctx": 16, "batch": 4, "rows": rows, "layout": layout}
    saekit.harvest(models("gpt2"), text, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "health_report", killed)
        with pytest.raises(Killed):
            saekit.harvest(models("gpt2"), text, tmp_path / "broken", **options)
    saekit.harvest(models("gpt2"), text, tmp_path / "broken", **options, resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_wrong_arguments_do_not_cost_the_old_store(models, text, tmp_path):
    saekit.harvest(models("gpt2"), text, tmp_path / "s", hook="blocks.0", ctx=16)
    with pytest.raises(DataError, match="takes at most 64 tokens"):
        saekit.harvest(
            models("gpt2"), text, tmp_path / "s", hook="blocks.0", ctx=100_000, overwrite=True
        )
    assert len(open_store(tmp_path / "s")) > 0


def test_rows_of_huge_norm_are_dropped_and_counted(models, text, tmp_path):
    live = load_model(models("llama"))
    original = live.module.model.embed_tokens.weight.data
    huge = WORDS.index("dog") + len(live.tokenizer) - len(WORDS)
    original[huge] *= 500  # every "dog" becomes an outlier, as attention sinks are
    hooks = ["blocks.0", "blocks.1"]
    result = saekit.harvest(live, text, tmp_path / "s", hook=hooks, ctx=16, batch=4, max_norm=10.0)
    words = Path(text).read_text().split()
    assert result.dropped == words.count("dog") and result.rows == len(words) - words.count("dog")
    for path in result.stores.values():
        store = open_store(path)
        assert store.stats["dropped_rows"] == result.dropped and store.stats["high_norm_rows"] == 0
    store = open_store(result.stores["model.layers.0"])
    tokens = {
        store.example_at(r)[0].tokens[int(p)]
        for r, p in enumerate(next(store.batches(10_000)).position)
    }
    assert huge not in tokens


def test_the_same_harvest_twice_is_the_same_bytes(models, text, tmp_path):
    for name in ("a", "b"):
        saekit.harvest(models("gpt2"), text, tmp_path / name, hook="blocks.0", ctx=16, batch=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    "options,error,words",
    [
        (
            {"hook": "blocks.60"},
            DataError,
            r"blocks\.60 is not a module of .* \(3 blocks, blocks\.0 to blocks\.2\)",
        ),
        ({"hook": ()}, UsageError, "hook is missing"),
        ({"scope": "clss"}, UsageError, 'scope="clss": did you mean cls'),
        ({"dtype": "float8"}, UsageError, 'dtype="float8": did you mean float'),
        ({"layout": "grid"}, DataError, 'layout="grid" needs an image model'),
        ({"layout": "sequence", "max_norm": 3.0}, UsageError, "max_norm drops single rows"),
        ({"rows": 0}, UsageError, "rows=0 must be at least 1"),
        ({"scope": "cls"}, DataError, "has no class token"),
        ({"rows": 10**15}, DataError, "GB are needed, but only"),
    ],
)
def test_wrong_requests(models, text, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        saekit.harvest(
            models("gpt2"), text, tmp_path / "s", **{"hook": "blocks.0", "ctx": 16, **options}
        )
    assert not (tmp_path / "s").exists()


def test_the_plan_is_arithmetic(models, text, tmp_path):
    options = {"rows": 1_000_000, "ctx": 16, "dtype": "float16", "shard_mb": 16}
    hooks = ("blocks.0", "blocks.1")
    plan = plan_harvest(models("gpt2"), text, tmp_path / "s", hook=hooks, **options)
    assert plan.hooks == {"transformer.h.0": WIDTH, "transformer.h.1": WIDTH}
    assert plan.bytes == 2 * 1_000_000 * WIDTH * 2 and plan.shards == -(-plan.bytes // (16 << 20))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_recipe_of_the_vit_literature(tmp_path, photos):
    """ViT-B/16 from its config: patch tokens of block 10, 768 -> 24,576 latents, ReLU and L1."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = tmp_path / "vit"
    torch.manual_seed(0)
    ViTModel(ViTConfig()).save_pretrained(model)
    ViTImageProcessor().save_pretrained(model)
    recipe = Path(__file__).parents[2] / "recipes"
    harvest = tomllib.loads((recipe / "vit-b16-harvest.toml").read_text())
    train = tomllib.loads((recipe / "vit-b16-train.toml").read_text())
    hooks = harvest.pop("hook")
    assert hooks == ["blocks.10"]
    result = saekit.harvest(
        str(model), photos, tmp_path / "acts", hook=hooks, **{**harvest, "batch": 4}
    )
    store = open_store(tmp_path / "acts")
    assert (
        result.rows == 12 * 196
        and store.spec.hook == "layers.10"
        and store.spec.d_in == 768
        and store.spec.grid == (14, 14)
    )
    result = saekit.train(
        tmp_path / "acts", tmp_path / "sae", **{**train, "batch": 512, "rows": 8 * 512}
    )
    sae = saekit.load(tmp_path / "sae")
    assert sae.latents == 24_576 and sae.config.sparsity == "l1"
    assert result.metrics["fvu"] < 1, "better than the mean after eight steps"

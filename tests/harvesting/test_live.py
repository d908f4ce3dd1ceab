"""Training rows from the running model: the rows that a store would hold, none of a held-out
document, an order that can be continued."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PATCH, SIDE, WORDS, save

import saekit
from saekit.errors import DataError, MissingError, NumericsError
from saekit.harvesting.live import LiveSource
from saekit.harvesting.models import load_model
from saekit.store.reader import Store, open_store
from saekit.types import ActivationBatch

FIELDS = ("x", "doc_id", "example_id", "position")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 texts of 5 to 30 words, 30 pictures, a llama and a ViT."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("live")
    write_words(root / "words.txt", rng)
    (root / "photos").mkdir()
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(
            root / "photos" / f"{i:02}.png"
        )
    for family in ("llama", "vit"):
        save(family, root / family)
    return root


def write_words(path: Path, rng: np.random.Generator, documents: int = 60) -> None:
    path.write_text(
        "\n\n".join(" ".join(rng.choice(WORDS, rng.integers(5, 31))) for _ in range(documents))
    )


def stored(folder: Path, out: Path, family: str = "llama", **options) -> Store:
    data = folder / ("words.txt" if family == "llama" else "photos")
    # Batches of two: contexts are sorted within windows of 32 batches, so that the order of rows
    # tells the size of a batch.
    settings = {"hook": "blocks.1", "ctx": 16, "batch": 2, "holdout": 0.2, **options}
    if family == "vit":
        del settings["ctx"]
    saekit.harvest(str(folder / family), str(data), out, **settings)
    return open_store(out)


def lines(batches: list[ActivationBatch]) -> list[bytes]:
    """Every row with its origin, as bytes."""
    columns = [
        [bytes(row) for b in batches for row in byte_rows(getattr(b, name))] for name in FIELDS
    ]
    return [b"".join(row) for row in zip(*columns, strict=True)]


def byte_rows(values: torch.Tensor) -> np.ndarray:
    return values.reshape(len(values), -1).contiguous().view(torch.uint8).numpy()


def rows_of(
    source, count: int, seed: int | None = 0, start: int = 0, batch: int = 10
) -> list[bytes]:
    """`count` training rows as bytes."""
    return lines(list(islice(source.batches(batch, seed, start, "train"), -(-count // batch))))[
        :count
    ]


@pytest.mark.parametrize(
    "family,options",
    [
        ("llama", {}),
        ("llama", {"dtype": "bfloat16", "layout": "sequence", "seed": 3}),
        ("llama", {"pack": True, "scope": "all", "dtype": "float32"}),
        ("llama", {"max_norm": 1.1, "hook": "blocks.0.mlp"}),
        ("vit", {}),
        ("vit", {"layout": "grid", "dtype": "float32"}),
        ("vit", {"scope": "cls"}),
    ],
)
def test_an_epoch_is_the_training_side_of_the_store_bit_for_bit(folder, tmp_path, family, options):
    store = stored(folder, tmp_path / "s", family, **options)
    source = LiveSource(store, device="cpu")
    n = len(store.split("train"))
    assert n < len(store) and (options.get("max_norm") is None or store.stats["dropped_rows"] > 0)
    in_order = lines(list(store.batches(10_000, split="train")))
    assert lines(list(source.batches(10_000, split="train"))) == in_order
    # Batches of n rows: the first epoch and the second, shuffled.
    first, second = (lines([batch]) for batch in islice(source.batches(n, 0, split="train"), 2))
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert first != second != in_order != first


@pytest.mark.parametrize("family", ["llama", "vit"])
@pytest.mark.parametrize("buffer_rows", [7, 64])
def test_a_small_buffer_loses_and_repeats_no_row(folder, tmp_path, family, buffer_rows):
    store = stored(folder, tmp_path / "s", family)
    source = LiveSource(store, device="cpu", buffer_rows=buffer_rows)
    n = len(store.split("train"))
    expected = sorted(rows_of(store, n, seed=None))
    rows = rows_of(source, 2 * n)
    assert sorted(rows[:n]) == sorted(rows[n:]) == expected
    assert rows[:n] != rows[n:] and rows[:n] != rows_of(source, n, seed=None)


def test_rows_are_mixed_over_the_buffer(folder, tmp_path):
    """With slots for half the rows, the two ends of the first half epoch must come from all over
    the first rows of the data."""
    store = stored(folder, tmp_path / "s")
    n = len(store.split("train"))
    order = {row: i for i, row in enumerate(rows_of(LiveSource(store, device="cpu"), n, seed=None))}
    places = [order[row] for row in rows_of(LiveSource(store, device="cpu", buffer_rows=n // 2), n)]
    leaving = np.array(places[: n // 4])
    assert leaving.max() < n // 2 and leaving.min() < n // 16 and leaving.max() > n // 2 - n // 16
    assert abs(np.corrcoef(leaving, np.arange(len(leaving)))[0, 1]) < 0.25


def test_documents_beyond_the_stored_ones_come_and_held_out_ones_never(folder, tmp_path):
    store = stored(folder, tmp_path / "s", rows=300)
    source = LiveSource(store, device="cpu", buffer_rows=128)
    everything = stored(folder, tmp_path / "all")
    held_out = {int(d) for b in store.batches(100, split="holdout") for d in b.doc_id}
    documents = set(everything.column("doc_id").tolist())
    n = int((~np.isin(everything.column("doc_id"), list(held_out))).sum())
    seen = [batch.doc_id for batch in islice(source.batches(n, 0, split="train"), 2)]
    assert {int(d) for d in seen[0]} == {int(d) for d in seen[1]} == documents - held_out
    assert held_out and documents - held_out > set(store.column("doc_id").tolist()) - held_out
    stored_rows = set(rows_of(store, len(store.split("train")), seed=None))
    assert stored_rows < set(rows_of(source, n)), "a stored row is among them with the same bits"


def test_the_order_is_the_seeds_and_can_be_continued_anywhere(folder, tmp_path):
    store = stored(folder, tmp_path / "s")
    n, source = len(store.split("train")), LiveSource(store, device="cpu", buffer_rows=256)
    rows = rows_of(source, 2 * n)
    again = LiveSource(store, load_model(store.spec.model), buffer_rows=256)
    assert rows_of(again, 2 * n, batch=33) == rows, "neither the batch size nor the source matters"
    assert rows_of(source, n, seed=1) != rows[:n]
    for start in (1, 130, 256, n - 1, n, n + 200):
        assert rows_of(source, 50, start=start) == rows[start : start + 50], start
    assert rows_of(source, 50, seed=None, start=77) == rows_of(source, 127, seed=None)[77:]


def test_batches_are_full_and_of_the_stores_dtype(folder, tmp_path):
    source = LiveSource(
        stored(folder, tmp_path / "s", dtype="bfloat16"), device="cpu", buffer_rows=100
    )
    for batch in islice(source.batches(64, 0, split="train"), 40):
        assert batch.x.shape == (64, source.spec.d_in) and batch.x.dtype == torch.bfloat16
        assert batch.doc_id.shape == batch.example_id.shape == batch.position.shape == (64,)
        assert batch.rows is None and batch.mask is None and not batch.x.is_inference()
    sizes = [len(batch.x) for batch in source.batches(64, split="train")]
    assert set(sizes[:-1]) == {64} and sizes[-1] == source.count("train") % 64


def test_all_else_is_the_stores(folder, tmp_path):
    store = stored(folder, tmp_path / "s", "vit")
    source = LiveSource(store, device="cpu")
    assert source.count() == len(store) == 30 * (SIDE // PATCH) ** 2 and source.count(
        "train"
    ) == store.count("train")
    assert (
        source.spec is store.spec and source.path == store.path and source.content == store.content
    )
    assert source.locate(17) == store.locate(17) and source.target is None
    for split in ("holdout", "all"):
        assert lines(list(source.batches(50, split=split))) == lines(
            list(store.batches(50, split=split))
        )


@pytest.mark.parametrize(
    "value,dtype,words",
    [(float("nan"), "float16", "is NaN or inf"), (1e6, "float16", "overflows float16")],
)
def test_a_bad_state_names_model_hook_and_place(folder, tmp_path, value, dtype, words):
    store = stored(folder, tmp_path / "s", dtype=dtype)
    live = load_model(store.spec.model)
    live.module.model.layers[1].mlp.down_proj.weight.data[3] = value
    with pytest.raises(
        NumericsError, match=rf"{words}: .*llama at model.layers.1, document \d+, position \d+"
    ):
        next(LiveSource(store, live).batches(8, 0, split="train"))


def test_whole_examples_are_refused(folder, tmp_path):
    source = LiveSource(stored(folder, tmp_path / "s", layout="sequence"), device="cpu")
    with pytest.raises(DataError, match="not whole examples"):
        source.batches(4, 0, split="train", examples=True)
    assert next(source.batches(4, split="holdout", examples=True)).x.ndim == 3


def test_raw_data_has_no_model(folder, tmp_path):
    saekit.harvest("raw:pixels", str(folder / "photos"), tmp_path / "s")
    with pytest.raises(DataError, match="there is no model to run"):
        LiveSource(open_store(tmp_path / "s"))


def test_a_changed_model_or_data_is_refused_and_a_missing_one_too(folder, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    save("llama", own / "llama")
    write_words(own / "words.txt", np.random.default_rng(1))
    store = stored(own, tmp_path / "s")
    LiveSource(store, device="cpu")
    write_words(own / "words.txt", np.random.default_rng(2))
    with pytest.raises(DataError, match=r"another model or data: data .* -> "):
        LiveSource(store, device="cpu")
    write_words(own / "words.txt", np.random.default_rng(1))
    LiveSource(store, device="cpu")
    changed = load_model(str(own / "llama")).module
    changed.lm_head.weight.data += 1
    changed.save_pretrained(own / "llama")
    with pytest.raises(DataError, match=r"another model or data: revision files:.* -> files:"):
        LiveSource(store, device="cpu")
    (own / "llama").rename(own / "gone")
    with pytest.raises(MissingError, match="there is no model at"):
        LiveSource(store, device="cpu")


def test_data_that_has_lost_its_training_rows_ends_the_search(folder, tmp_path):
    texts = [tmp_path / "texts" / f"{i:02}.txt" for i in range(12)]
    texts[0].parent.mkdir()
    for i, text in enumerate(texts):
        text.write_text(" ".join(WORDS[i % 5 : i % 5 + 6]))
    saekit.harvest(
        str(folder / "llama"),
        str(texts[0].parent),
        tmp_path / "s",
        hook="blocks.0",
        ctx=16,
        batch=4,
    )
    store = open_store(tmp_path / "s")
    source = LiveSource(store, device="cpu")
    held_out = {int(d) for b in store.batches(100, split="holdout") for d in b.doc_id}
    for i, text in enumerate(texts):
        if i not in held_out:
            text.write_text("")
    with pytest.raises(DataError, match="gives no row to train on"):
        next(source.batches(4, 0, split="train"))

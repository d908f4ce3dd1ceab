"""Raw data as a store: what a row is, and what cannot be one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rawfiles import WORDS, array, pictures, texts, whole

import saekit
from saekit.errors import DataError, NumericsError
from saekit.harvesting.sources import shuffled
from saekit.store.reader import open_store

# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode,channels", [("RGB", 3), ("L", 1)])
def test_a_row_of_pixels_is_the_image_by_height_width_and_channel(tmp_path, mode, channels):
    pixels = pictures(tmp_path / "images", 12, mode=mode)
    result = saekit.harvest("raw:pixels", str(tmp_path / "images"), tmp_path / "s", batch=5)
    store, batch = open_store(tmp_path / "s"), whole(tmp_path / "s")
    assert result.rows == len(store) == 12 and list(result.stores) == ["pixels"]
    spec = store.spec
    assert (spec.model, spec.hook, spec.modality, spec.layout, spec.grid, spec.context) == (
        "raw:pixels", "pixels", "image", "flat", (2, 3), None,
    )  # fmt: skip
    assert (
        spec.d_in == 2 * 3 * channels and spec.dtype == "float32" and spec.shape == (2, 3, channels)
    )
    files = sorted((tmp_path / "images").rglob("*.png"))
    for row, index in enumerate(shuffled(12, 0)):
        example, first = store.example_at(row)
        name = files[index].relative_to(tmp_path / "images").as_posix()
        assert (example.ref, example.label, first) == (name, name.split("/")[0], row)
        assert (
            batch.doc_id[row] == example.doc_id == index
            and batch.example_id[row] == example.id == row
            and batch.position[row] == 0
        )
        expected = pixels[int(files[index].stem)].astype(np.float64) / 255
        np.testing.assert_allclose(batch.x[row].double(), expected.flatten(), rtol=1e-7)
    value = pixels[int(files[shuffled(12, 0)[0]].stem)][1, 2]
    assert batch.x[0, (1 * 3 + 2) * channels].item() == pytest.approx(np.ravel(value)[0] / 255)


def test_images_of_other_modes_become_colour(tmp_path):
    pixels = pictures(tmp_path / "images", 2, mode="RGBA")
    saekit.harvest("raw:pixels", str(tmp_path / "images"), tmp_path / "s")
    assert open_store(tmp_path / "s").spec.d_in == 2 * 3 * 3
    batch = whole(tmp_path / "s")
    assert np.allclose(batch.x[batch.doc_id.argsort()].view(2, 2, 3, 3), pixels[..., :3] / 255)


def test_an_image_of_another_size_or_mode_is_named(tmp_path):
    pictures(tmp_path / "images", 3)
    Image.new("RGB", (4, 2)).save(tmp_path / "images" / "wide.png")
    with pytest.raises(
        DataError,
        match=(
            r"image (wide.png is 4x2 RGB, and .*\.png 3x2 RGB|\S+ is 3x2 RGB, and wide.png 4x2 RGB)"
        ),
    ) as raised:
        saekit.harvest("raw:pixels", str(tmp_path / "images"), tmp_path / "s")
    assert "resize" in raised.value.hint
    Image.new("L", (3, 2)).save(tmp_path / "images" / "wide.png")
    with pytest.raises(DataError, match=r"3x2 L"):
        saekit.harvest("raw:pixels", str(tmp_path / "images"), tmp_path / "s", overwrite=True)


def test_images_of_more_than_eight_bits_are_refused_rather_than_clipped(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.array([[0, 60_000]], np.uint16)).save(tmp_path / "images" / "deep.png")
    with pytest.raises(DataError, match=r"image deep.png has mode I"):
        saekit.harvest("raw:pixels", str(tmp_path / "images"), tmp_path / "s")


def test_a_table_of_images_keeps_its_order_and_labels(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    images = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (0, 51, 255)]
    features = Features({"image": ImageFeature(), "label": Value("string")})
    Dataset.from_dict({"image": images, "label": ["a", "b", "c"]}, features=features).to_parquet(
        tmp_path / "t.parquet"
    )
    saekit.harvest("raw:pixels", str(tmp_path / "t.parquet"), tmp_path / "s", seed=7)
    batch = whole(tmp_path / "s")
    assert batch.doc_id.tolist() == [0, 1, 2] and torch.allclose(
        batch.x[:, 0], torch.tensor([0, 0.2, 1.0])
    )
    assert open_store(tmp_path / "s").labels() == ["a", "b", "c"]


@pytest.mark.parametrize("pair", [("photos-grey", "photos"), ("scenes", "scene-masks")])
def test_embedded_pairs_make_row_aligned_stores(tmp_path, pair):
    for name in pair:
        saekit.harvest(
            "raw:pixels", f"embedded:{name}", tmp_path / name, seed=3, rows=300, holdout=0.2
        )
    a, b = (whole(tmp_path / name) for name in pair)
    for column in ("doc_id", "example_id", "position"):
        assert torch.equal(getattr(a, column), getattr(b, column))
    refs = [
        [open_store(tmp_path / name).example_at(row)[0].ref for row in range(0, 300, 30)]
        for name in pair
    ]
    assert refs[0] == refs[1]
    held = [whole(tmp_path / name, split="holdout").rows for name in pair]
    assert torch.equal(held[0], held[1]) and len(held[0]) == 60


# -- arrays ----------------------------------------------------------------------------------------


def test_a_matrix_becomes_rows_in_the_order_of_the_seed(tmp_path):
    path, x = array(tmp_path / "x.npy", 40, 5)
    saekit.harvest("raw:array", path, tmp_path / "s", seed=2, batch=7)
    store, batch = open_store(tmp_path / "s"), whole(tmp_path / "s")
    assert (store.spec.layout, store.spec.modality, store.spec.grid, store.spec.d_in) == (
        "flat",
        "array",
        None,
        5,
    )
    assert batch.doc_id.tolist() == shuffled(40, 2) and np.array_equal(batch.x, x[batch.doc_id])
    assert store.example_at(3)[0].ref == f"x.npy#{shuffled(40, 2)[3]}"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, bool])
def test_numbers_of_every_kind_are_stored_as_floats(tmp_path, dtype):
    path, x = array(tmp_path / "x.npy", 6, 4, dtype=dtype)
    saekit.harvest("raw:array", path, tmp_path / "s")
    batch = whole(tmp_path / "s")
    assert batch.x.dtype == torch.float32 and np.array_equal(
        batch.x, x[batch.doc_id].astype(np.float32)
    )


def test_a_stack_of_sequences_becomes_examples(tmp_path):
    path, x = array(tmp_path / "x.npz", 20, 6, 4, y=np.arange(20) % 3)
    saekit.harvest("raw:array", path, tmp_path / "s", rows=50)
    store = open_store(tmp_path / "s")
    assert store.spec.layout == "sequence" and len(store) == 48 and store.count(examples=True) == 8
    batch = next(store.batches(8, examples=True))
    assert (
        batch.mask is None
        and np.array_equal(batch.x, x[batch.doc_id])
        and batch.doc_id.tolist() == shuffled(20, 0)[:8]
    )
    assert store.labels(examples=True) == [str(index % 3) for index in shuffled(20, 0)[:8]]
    assert whole(tmp_path / "s").position.tolist() == list(range(6)) * 8


def test_a_stack_of_maps_becomes_flat_rows_or_grids(tmp_path):
    path, x = array(tmp_path / "x.npy", 10, 3, 4, 2)
    saekit.harvest("raw:array", path, tmp_path / "flat")
    saekit.harvest("raw:array", path, tmp_path / "grid", layout="grid")
    flat, grid = open_store(tmp_path / "flat"), open_store(tmp_path / "grid")
    assert (flat.spec.d_in, flat.spec.grid, flat.spec.layout, len(flat)) == (24, (3, 4), "flat", 10)
    assert (grid.spec.d_in, grid.spec.grid, grid.spec.layout, len(grid)) == (2, (3, 4), "grid", 120)
    batch = whole(tmp_path / "flat")
    assert np.array_equal(batch.x, x[batch.doc_id].reshape(10, 24))
    batch = next(grid.batches(10, examples=True))
    assert np.array_equal(batch.x, x[batch.doc_id])


@pytest.mark.parametrize(
    "y,labels",
    [
        (np.array(["a", "b", "c"]), "abc"),
        (np.array([b"a", b"b", b"c"]), "abc"),
        (np.array([1, 0, 1]), "101"),
    ],
)
def test_labels_of_an_archive(tmp_path, y, labels):
    path, _ = array(tmp_path / "x.npz", 3, 4, y=y)
    saekit.harvest("raw:array", path, tmp_path / "s")
    assert open_store(tmp_path / "s").labels() == [labels[i] for i in shuffled(3, 0)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_named_by_its_row(tmp_path, value):
    x = np.zeros((9, 4))
    x[5, 2] = value
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(NumericsError, match=r"row 5 of .*x\.npy holds NaN or inf"):
        saekit.harvest("raw:array", str(tmp_path / "x.npy"), tmp_path / "s")
    x[5, 2], x[3, 1] = 0, 1e300
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(
        NumericsError, match=rf"overflows float32 \(example {shuffled(9, 0).index(3)}, position 0\)"
    ):
        saekit.harvest("raw:array", str(tmp_path / "x.npy"), tmp_path / "s", overwrite=True)
    sequences = np.zeros((3, 4, 2))
    sequences[1, 2, 0] = value
    np.save(tmp_path / "t.npy", sequences)
    with pytest.raises(NumericsError, match="row 2 of example 1 of"):
        saekit.harvest("raw:array", str(tmp_path / "t.npy"), tmp_path / "t")


# -- texts -----------------------------------------------------------------------------------------


def test_rows_of_texts_are_tf_idf_by_hand(tmp_path):
    documents = texts(tmp_path / "t.txt")
    result = saekit.harvest("raw:tfidf", str(tmp_path / "t.txt"), tmp_path / "s", vocabulary=6)
    kept = [i for i in shuffled(60, 0) if i != 4]
    counts = {
        word: [
            d.lower().replace("'", " ").replace("glacier_2", "").split().count(word)
            for d in documents
        ]
        for word in WORDS
    }
    columns = sorted(sorted(WORDS, key=lambda word: -sum(counts[word]))[:6])
    tf = np.array([counts[word] for word in columns], np.float64).T
    # smoothed, as if one more document held every word
    idf = np.log((1 + 60) / (1 + (tf > 0).sum(0))) + 1
    rows = tf * idf
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    kept = [i for i in kept if lengths[i] > 0]
    batch, store = whole(tmp_path / "s"), open_store(tmp_path / "s")
    assert (
        batch.doc_id.tolist() == kept
        and result.rows == len(kept) == 60 - result.dropped
        and result.dropped >= 1
    )
    np.testing.assert_allclose(batch.x, (rows / np.where(lengths > 0, lengths, 1))[kept], atol=1e-6)
    assert float(batch.x.min()) == 0 and float(batch.x.max()) <= 1
    assert (store.spec.modality, store.spec.hook, store.spec.context, store.spec.d_in) == (
        "text",
        "tfidf",
        None,
        6,
    )
    saved = json.loads((tmp_path / "s" / "vocabulary.json").read_text())
    assert saved["words"] == columns and np.allclose(saved["idf"], idf)
    assert store.stats["dropped_rows"] == result.dropped


def test_rows_of_texts_equal_scikit_learns_and_do_not_depend_on_the_seed(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = texts(tmp_path / "t.txt")
    x = (
        TfidfVectorizer(token_pattern=r"\b[a-z]{2,}\b", stop_words="english", max_features=7)
        .fit_transform(documents)
        .toarray()
    )
    for seed in (0, 9):
        saekit.harvest(
            "raw:tfidf",
            str(tmp_path / "t.txt"),
            tmp_path / str(seed),
            vocabulary=7,
            seed=seed,
            batch=4,
        )
        batch = whole(tmp_path / str(seed))
        np.testing.assert_allclose(batch.x, x[batch.doc_id], atol=1e-6)
    assert sorted(batch.doc_id.tolist()) == [i for i in range(60) if x[i].any()]


def test_documents_left_out_and_a_small_vocabulary_are_said(tmp_path):
    texts(tmp_path / "t.txt")
    said = []
    saekit.harvest(
        "raw:tfidf",
        str(tmp_path / "t.txt"),
        tmp_path / "s",
        progress=lambda p: said.append(p.message),
    )
    assert "the documents hold 8 different words of the 2,000 asked for" in said
    assert "1 documents hold no word of the vocabulary and are left out" in said


def test_texts_without_words_are_refused(tmp_path):
    (tmp_path / "t.txt").write_text("the of\n\n12 34")
    with pytest.raises(DataError, match="holds no word that is not a stop word"):
        saekit.harvest("raw:tfidf", str(tmp_path / "t.txt"), tmp_path / "s")

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.sources import open_data, shuffled


def picture(path, value=100, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def by_id(data):
    return sorted(data.documents(), key=lambda document: document.id)


def test_paragraphs_of_a_text_file_are_its_documents(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("one\nstill one\n\n  \ntwo\n\n\n\nthree\n")
    data = open_data(str(path), modality="text")
    assert [(d.id, d.name, d.text.strip()) for d in by_id(data)] == [
        (0, "notes.txt#0", "one\nstill one"), (1, "notes.txt#1", "two"), (2, "notes.txt#2",
        "three"),
    ]  # fmt: skip
    assert data.name == str(path) and len(data) == 3


def test_listed_data_is_visited_in_an_order_that_the_seed_decides(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n\n".join(f"paragraph {i}" for i in range(50)))
    orders = [
        [d.id for d in open_data(str(path), modality="text", seed=seed).documents()]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50)) != orders[0]
    late = [d.id for d in open_data(str(path), modality="text", seed=0).documents(start=47)]
    assert late == orders[0][47:]


def test_the_order_never_changes_between_versions():
    assert shuffled(8, 0) == [3, 7, 5, 4, 2, 6, 0, 1]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables_are_streamed_in_file_order(tmp_path, suffix):
    import pandas

    path = tmp_path / f"table.{suffix}"
    frame = pandas.DataFrame(
        {"id": [5, 6, 7], "title": ["a", "b", "c"], "text": ["first", "second", "third"]}
    )
    if suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        getattr(frame, f"to_{suffix}")(path)
    data = open_data(str(path), modality="text", seed=3)
    assert [(d.id, d.text) for d in data.documents()] == [(0, "first"), (1, "second"), (2, "third")]
    assert [(d.id, d.text) for d in data.documents(start=2)] == [(2, "third")]
    assert [d.text for d in open_data(str(path), modality="text", column="title").documents()] == [
        "a",
        "b",
        "c",
    ]
    with pytest.raises(
        DataError, match=r"has no column titel; its columns are .*title, text"
    ) as raised:
        open_data(str(path), modality="text", column="titel")
    assert (
        raised.value.hint == 'did you mean title? column="text"' and raised.value.exit_status == 3
    )


def test_without_a_text_column_the_first_one_with_strings_is_taken(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text(
        "\n".join(json.dumps({"n": i, "body": f"b{i}", "label": "x"}) for i in range(2))
    )
    data = open_data(str(path), modality="text")
    assert data.column == "body" and [(d.text, d.label) for d in data.documents()] == [
        ("b0", "x"),
        ("b1", "x"),
    ]


def test_a_table_without_text_is_refused(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"has no column with text; its columns are a"):
        open_data(str(path), modality="text")
    with pytest.raises(DataError, match=r"column a of .* holds int, not text"):
        open_data(str(path), modality="text", column="a")


def test_a_broken_table_names_the_file(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"a": \n not json')
    with pytest.raises(DataError, match=r"table.jsonl cannot be read as json"):
        open_data(str(path), modality="text")


def test_a_row_that_breaks_later_is_named(tmp_path):
    from datasets import Dataset

    path = tmp_path / "pictures.parquet"
    good = {"bytes": b"", "path": None}
    Dataset.from_dict({"image": [good, good]}).to_parquet(path)
    data = open_data(str(path), modality="image")
    with pytest.raises(DataError, match=r"row 0 of .*pictures.parquet cannot be read"):
        list(data.documents())


def test_a_folder_of_texts_is_one_document_a_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("second")
    (tmp_path / "a.txt").write_text("first\n\nstill first")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    data = open_data(str(tmp_path), modality="text")
    assert [(d.name, d.text) for d in by_id(data)] == [
        ("a.txt", "first\n\nstill first"),
        ("b/two.md", "second"),
    ]


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt is not UTF-8 text \(byte 3\)"):
        open_data(str(tmp_path / "latin.txt"), modality="text")


def test_class_folders_of_images_become_labels(tmp_path):
    picture(tmp_path / "dog" / "2.png", 20)
    picture(tmp_path / "cat" / "1.png", 10)
    picture(tmp_path / "loose.jpg", 30)
    data = open_data(str(tmp_path), modality="image")
    assert [(d.id, d.name, d.label) for d in by_id(data)] == [
        (0, "cat/1.png", "cat"), (1, "dog/2.png", "dog"), (2, "loose.jpg", None),
    ]  # fmt: skip
    assert data.image("dog/2.png").getpixel((0, 0)) == (20, 0, 0)
    with pytest.raises(MissingError, match=r"has no image dog/3.png"):
        data.image("dog/3.png")


def test_an_unreadable_image_is_named(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    data = open_data(str(tmp_path), modality="image")
    for name in ("bad.png", "cut.png"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image"):
            data.image(name)


@pytest.mark.parametrize(
    "name", ["./absent", "absent.jsonl", "/no/such/folder", "absent/notes.txt"]
)
def test_missing_data_is_named(name):
    with pytest.raises(MissingError, match=r"there is no data at") as raised:
        open_data(name, modality="text")
    assert name in str(raised.value) and raised.value.exit_status == 4


def test_data_of_the_other_modality_is_refused(tmp_path):
    for name, modality in (("embedded:digits", "text"), ("embedded:pydocs", "image")):
        with pytest.raises(
            DataError,
            match=rf"holds {'text' if modality == 'image' else 'image'}s, not {modality}s",
        ):
            open_data(name, modality=modality)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"holds no image files"):
        open_data(str(tmp_path), modality="image")
    with pytest.raises(UsageError) as raised:
        open_data("embedded:digit", modality="image")
    assert raised.value.hint.startswith("did you mean digits?")


def test_a_hub_name_goes_through_datasets_with_its_split(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    folder = tmp_path / "set"
    folder.mkdir()
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(folder / "train.parquet")
    Dataset.from_dict({"text": ["c"]}).to_parquet(folder / "test.parquet")
    data = open_data(f"{folder}:test", modality="text")
    assert (
        [d.text for d in data.documents()] == ["c"]
        and len(data.digest()) == 16
        and data.name == f"{folder}:test"
    )
    with pytest.raises(DataError, match=r"no_such"):
        open_data(f"{folder}:no_such", modality="text")

    images = tmp_path / "pictures.parquet"
    arrays = [Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)) for value in (1, 2)]
    Dataset.from_dict(
        {"image": arrays, "label": ["x", "y"]},
        features=Features({"image": ImageFeature(), "label": Value("string")}),
    ).to_parquet(images)
    data = open_data(str(images), modality="image")
    assert [(d.image.getpixel((0, 0)), d.label) for d in data.documents()] == [
        ((1, 1, 1), "x"),
        ((2, 2, 2), "y"),
    ]
    assert data.image("1").getpixel((0, 0)) == (2, 2, 2)


def test_a_hub_dataset_that_is_not_cached_says_that_offline_mode_is_on(monkeypatch):
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingError,
        match=r"dataset nobody/nothing is not a folder here and not in the local cache",
    ):
        open_data("nobody/nothing:train", modality="text")


def test_digests_follow_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    first = open_data(str(path), modality="text").digest()
    assert first == open_data(str(path), modality="text", seed=4).digest()
    path.write_text("one\n\nTWO")
    assert first != open_data(str(path), modality="text").digest()
    picture(tmp_path / "x" / "1.png")
    folder = open_data(str(tmp_path / "x"), modality="image").digest()
    picture(tmp_path / "x" / "2.png")
    assert folder != open_data(str(tmp_path / "x"), modality="image").digest()

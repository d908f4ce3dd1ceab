"""Tables: what is read is what stands there, from the column that is meant."""

from __future__ import annotations

import json
import random
import re

import pytest

from saekit.errors import DataError, SaekitError
from saekit.harvesting.sources import open_data


def lines(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def texts(data):
    return [document.text for document in data.documents()]


WORDS = ["NA", "null", "nan", "None", "", "007", "1.50", "true", "#N/A", "the end"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_no_word_means_that_a_value_is_missing(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix in ("csv", "tsv"):
        separator = "," if suffix == "csv" else "\t"
        path.write_text(
            f"text{separator}n\n"
            + "".join(f"{word}{separator}{i}\n" for i, word in enumerate(WORDS))
        )
    elif suffix == "jsonl":
        lines(path, *({"text": word} for word in WORDS))
    elif suffix == "json":
        path.write_text(json.dumps([{"text": word} for word in WORDS], indent=2))
    else:
        from datasets import Dataset

        Dataset.from_dict({"text": WORDS}).to_parquet(path)
    assert texts(open_data(str(path), modality="text")) == WORDS


def test_other_columns_may_be_of_any_type_and_differ_between_files(tmp_path):
    from datasets import Dataset

    lines(tmp_path / "a.jsonl", {"text": None, "meta": 1}, {"text": "one", "meta": {"x": [1]}})
    lines(tmp_path / "b.jsonl", {"meta": "m", "text": "two", "more": 2.5}, {"other": 3})
    assert texts(open_data(str(tmp_path), modality="text")) == ["", "one", "two", ""]
    (tmp_path / "p").mkdir()
    Dataset.from_dict({"text": [None, None], "n": [1, 2]}).to_parquet(tmp_path / "p" / "0.parquet")
    Dataset.from_dict({"n": ["a", "b"], "text": ["x", None]}).to_parquet(
        tmp_path / "p" / "1.parquet"
    )
    assert texts(open_data(str(tmp_path / "p"), modality="text")) == ["", "", "x", ""]


def test_the_type_is_told_past_nulls(tmp_path):
    path = lines(
        tmp_path / "t.jsonl",
        *[{"body": None, "n": i} for i in range(300)],
        {"body": "late", "n": 1},
    )
    data = open_data(path, modality="text")
    assert data.column == "body" and texts(data)[-1] == "late"


def test_numbers_in_a_column_of_text_are_text(tmp_path):
    assert texts(
        open_data(lines(tmp_path / "t.jsonl", {"text": 7}, {"text": "b"}), modality="text")
    ) == ["7", "b"]
    (tmp_path / "t.csv").write_text("text,n\n1.50,2\n007,3\n")
    assert texts(open_data(str(tmp_path / "t.csv"), modality="text")) == ["1.50", "007"]


def test_utf16_is_told_with_a_command_that_converts_it(tmp_path):
    for suffix, content in (("jsonl", '{"text": "a"}\n'), ("csv", "text\na\n")):
        path = tmp_path / f"t.{suffix}"
        path.write_bytes(content.encode("utf-16"))
        with pytest.raises(DataError, match=r"it looks like UTF-16") as raised:
            open_data(str(path), modality="text")
        assert f"`iconv -f UTF-16 -t UTF-8 t.{suffix} > utf8.{suffix}`" in raised.value.hint


def test_the_column_taken_is_said_and_an_ambiguous_one_asked_for(tmp_path):
    row = {"id": "a1", "url": "http://x", "content": "a long text of many words", "n": 1}
    path = lines(tmp_path / "t.jsonl", row, row)
    with pytest.raises(
        DataError, match="has several columns with text: id, url, content"
    ) as raised:
        open_data(path, modality="text")
    assert raised.value.hint == 'column="content"'
    assert open_data(path, modality="text", column="content").notes == ()
    data = open_data(
        lines(tmp_path / "u.jsonl", {"n": 1, "story": "s", "label": "x"}), modality="text"
    )
    assert data.column == "story" and data.notes == (
        f"the texts of {tmp_path}/u.jsonl are read from its column story",
    )


@pytest.mark.parametrize("suffix", ["parquet", "saved"])
def test_labels_have_their_names_and_minus_one_is_none(tmp_path, suffix):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    table = Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], "label": [1, -1, 0, None]}, features=features
    )
    path = tmp_path / f"t.{suffix}"
    table.to_parquet(path) if suffix == "parquet" else table.save_to_disk(path)
    assert [d.label for d in open_data(str(path), modality="text").documents()] == [
        "dog",
        None,
        "cat",
        None,
    ]


def test_integers_and_words_are_labels_as_they_stand(tmp_path):
    path = lines(
        tmp_path / "t.jsonl",
        *({"text": "a", "label": label} for label in (3, "x", None, -1, 0, True)),
    )
    assert [d.label for d in open_data(path, modality="text").documents()] == [
        "3",
        "x",
        None,
        "-1",
        "0",
        "True",
    ]


def test_the_splits_of_a_saved_dataset(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_dict({"text": [name, "more"]}) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert texts(open_data(str(tmp_path / "d"), modality="text")) == ["train", "more"]
    assert texts(open_data(f"{tmp_path}/d:test", modality="text")) == ["test", "more"]
    with pytest.raises(DataError, match="has no split dev; its splits are train, test"):
        open_data(f"{tmp_path}/d:dev", modality="text")


def test_pictures_of_a_large_parquet_file_are_found_again_by_their_row(tmp_path):
    from datasets import Dataset

    import pyarrow.parquet as parquet  # isort: skip

    table = Dataset.from_dict({"text": [f"row {i}" for i in range(1000)]}).data.table
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=150)
    data = open_data(str(tmp_path / "t.parquet"), modality="text")
    for start in (0, 149, 150, 151, 640, 999, 1000):
        assert texts_from(data, start) == [f"row {i}" for i in range(start, 1000)]


def texts_from(data, start):
    documents = list(data.documents(start))
    assert [d.id for d in documents] == list(range(start, start + len(documents)))
    return [d.text for d in documents]


DEEP = '{"text": "x", "a": ' + "[" * 50_000 + "]" * 50_000 + "}"


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("e.jsonl", "", "e.jsonl has no rows"),
        ("e.json", "[]", "e.json has no rows"),
        ("b.jsonl", "\n \n", "b.jsonl has no rows"),
        ("d.jsonl", DEEP, "d.jsonl cannot be read as json: line 1 is nested too deeply"),
        ("d.json", "[" * 60_000, "d.json cannot be read as json"),
        ("l.jsonl", "[1, 2]\n", "line 1 is not an object with columns but a list"),
        ("o.json", '{\n "text": "a"\n}', "o.json cannot be read as json: line 1"),
        ("n.csv", "text,n\na\0b,1\n", "line 2 holds NUL bytes"),
        ("t.csv", "text,text\na,b\n", "has two columns 'text'"),
        ("e.csv", "", "e.csv has no rows"),
        ("q.csv", 'text,n\n"open,1\n', "q.csv cannot be read as csv"),
        ("x.parquet", "PAR1 not one PAR1", "x.parquet cannot be read as parquet"),
        ("e.parquet", "", "e.parquet cannot be read as parquet"),
        ("s.jsonl", '{"text": "a\\ud800b"}\n', "row 0 of .* holds half of a character"),
        (
            "p.jsonl",
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            r"p\.jsonl is a pointer of git-lfs",
        ),
        (
            "p.parquet",
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            r"p\.parquet is a pointer of git-lfs",
        ),
        (
            "c.csv",
            "text;n\na;1\n",
            "has the one column 'text;n': its values are not separated by commas",
        ),
        ("h.csv", "text,n\n", "h.csv has no rows"),
        ("z.jsonl", '{"text": null}\n', "z.jsonl has no column with text: text holds only nulls"),
        (
            "v.jsonl",
            '{"text": "a"}\n{"text": [1]}\n',
            "row 1 of .* holds a list in column text, not text",
        ),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as raised:
        list(open_data(str(tmp_path / name), modality="text").documents())
    assert name in str(raised.value) and raised.value.hint


def test_broken_rows_are_left_out_on_request_and_keep_their_numbers(tmp_path):
    path = lines(
        tmp_path / "t.jsonl",
        {"text": "a"},
        "{broken",
        {"text": "b"},
        DEEP,
        {"text": ["x"]},
        {"text": "c"},
    )
    data = open_data(path, modality="text", skip_broken=True)
    assert [(d.id, d.text) for d in data.documents()] == [(0, "a"), (2, "b"), (5, "c")]
    assert list(data.skipped) == ["row 1", "row 3", "row 4"]
    assert [(d.id, d.text) for d in data.documents(start=2)] == [(5, "c")]
    (tmp_path / "t.csv").write_text("text,n\na,1\nb,2,3\nc\n")
    data = open_data(str(tmp_path / "t.csv"), modality="text", skip_broken=True)
    assert [(d.id, d.text) for d in data.documents()] == [(0, "a"), (2, "c")]
    with pytest.raises(
        DataError, match=r"row 1 of .*t\.csv cannot be read: .* line 3 has 3 values for 2 columns"
    ):
        list(open_data(str(tmp_path / "t.csv"), modality="text").documents())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_mutated_tables_end_in_user_errors(tmp_path, suffix):
    rng, path = random.Random(1), tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        lines(path, *({"text": f"word {i}", "label": i, "m": {"a": [i]}} for i in range(4)))
    elif suffix == "csv":
        path.write_text('text,label\n"the, cat",1\r\nNA,2\n"a ""q""",-1\n')
    else:
        from datasets import Dataset

        Dataset.from_dict(
            {"text": [f"word {i}" * 3 for i in range(40)], "label": list(range(40))}
        ).to_parquet(path)
    whole, outcomes = path.read_bytes(), {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([1, 4])] = rng.choice(
                [b"\xff\xff\xff\x7f", b"\0", b"", b"[", b'"', b"\x80"]
            )
        path.write_bytes(data)
        try:
            list(open_data(str(path), modality="text").documents())
            outcomes["read"] += 1
        except SaekitError as error:
            assert re.search(r"t\.\w+", str(error))
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20

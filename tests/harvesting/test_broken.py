"""Broken inputs: an error that leads on, or left out, counted and named; and the same bytes after a
kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from rawfiles import contents, pictures
from saekit_cli import app
from tiny import save

import saekit
from saekit.errors import DataError
from saekit.store.reader import open_store
from saekit.store.writer import StoreWriter


@pytest.fixture
def damaged(tmp_path):
    """20 pictures, of which three cannot be read."""
    pictures(tmp_path / "im", 20, size=(5, 4))
    files = sorted((tmp_path / "im").rglob("*.png"))
    files[2].write_bytes(b"")
    files[9].write_bytes(files[9].read_bytes()[:60])
    files[15].write_bytes(b"GIF89a" + bytes(30))
    return tmp_path / "im", [files[i].relative_to(tmp_path / "im").as_posix() for i in (2, 9, 15)]


def small_shards(monkeypatch):
    opened = StoreWriter.__init__
    monkeypatch.setattr(
        StoreWriter, "__init__", lambda self, *a, **k: opened(self, *a, **{**k, "shard_bytes": 1})
    )


@pytest.mark.parametrize("model", ["raw:pixels", "vit"])
def test_broken_pictures_are_left_out_counted_and_named(tmp_path, damaged, model):
    folder, broken = damaged
    options = {} if model == "raw:pixels" else {"hook": "blocks.0"}
    model = model if model == "raw:pixels" else save("vit", tmp_path / "vit")
    said = []
    result = saekit.harvest(
        model,
        str(folder),
        tmp_path / "s",
        skip_broken=True,
        batch=4,
        progress=lambda p: said.append(p.message),
        **options,
    )
    store = open_store(tmp_path / "s")
    assert (
        result.skipped == 3
        and store.stats["skipped"]["count"] == 3
        and set(store.stats["skipped"]["first"]) == set(broken)
    )
    (line,) = [line for line in said if line and "left out: 3" in line]
    assert all(name in line for name in broken)
    refs = {store.example_at(row)[0].ref for row in range(len(store))}
    assert len(refs) == 17 and not refs & set(broken)
    assert [store.example_at(row)[0].id for row in range(0, len(store), len(store) // 17)] == list(
        range(17)
    )


@pytest.mark.parametrize("model", ["raw:pixels", "vit"])
def test_a_harvest_that_met_a_broken_picture_goes_on_with_skip_broken_to_the_same_bytes(
    tmp_path, monkeypatch, damaged, model
):
    folder, broken = damaged
    options = {"batch": 2} if model == "raw:pixels" else {"batch": 2, "hook": "blocks.0"}
    model = model if model == "raw:pixels" else save("vit", tmp_path / "vit")
    small_shards(monkeypatch)
    with pytest.raises(DataError, match="cannot be read as an image") as raised:
        saekit.harvest(model, str(folder), tmp_path / "s", **options)
    assert (
        any(name in str(raised.value) for name in broken)
        and "skip_broken=True" in raised.value.hint
    )
    saekit.harvest(model, str(folder), tmp_path / "s", resume=True, skip_broken=True, **options)
    saekit.harvest(model, str(folder), tmp_path / "whole", skip_broken=True, **options)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_once_rows_are_stored_changed_data_is_told_and_before_that_taken(
    tmp_path, monkeypatch, damaged
):
    folder, broken = damaged
    options = {"batch": 2}
    with pytest.raises(DataError):
        saekit.harvest("raw:pixels", str(folder), tmp_path / "s", **options)
    for name in broken:
        (folder / name).unlink()
    assert (
        saekit.harvest("raw:pixels", str(folder), tmp_path / "s", resume=True, **options).rows == 17
    )
    path = next(folder.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(DataError, match=r"the data's content") as raised:
        saekit.harvest("raw:pixels", str(folder), tmp_path / "s", resume=True, **options)
    assert "overwrite=True" in raised.value.hint


@pytest.mark.parametrize("rows", [None, 8])
def test_a_harvest_killed_before_its_report_still_knows_what_it_left_out(
    tmp_path, monkeypatch, damaged, rows
):
    import saekit.store.writer as writer

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    options = {"batch": 4, "rows": rows, "skip_broken": True}
    small_shards(monkeypatch)
    whole = saekit.harvest("raw:pixels", str(damaged[0]), tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "health_report", killed)
        with pytest.raises(Killed):
            saekit.harvest("raw:pixels", str(damaged[0]), tmp_path / "s", **options)
    assert (
        saekit.harvest(
            "raw:pixels", str(damaged[0]), tmp_path / "s", resume=True, **options
        ).skipped
        == whole.skipped
        > 0
    )
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_broken_rows_of_a_table_are_left_out_of_a_text_harvest(tmp_path):
    rows = [json.dumps({"text": f"cat dog {i}", "label": i}) for i in range(12)]
    rows[3], rows[7] = rows[3][:-4], "[]"
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    model, options = save("gpt2", tmp_path / "m"), {"hook": "blocks.0", "ctx": 8}
    with pytest.raises(DataError, match=r"row 3 of .*t\.jsonl cannot be read: .* line 4"):
        saekit.harvest(model, str(tmp_path / "t.jsonl"), tmp_path / "s", **options)
    result = saekit.harvest(
        model, str(tmp_path / "t.jsonl"), tmp_path / "s", resume=True, skip_broken=True, **options
    )
    store = open_store(tmp_path / "s")
    assert (result.skipped, result.rows, store.spec.column) == (2, 30, "text")
    assert store.stats["skipped"] == {"count": 2, "first": ["row 3", "row 7"]}
    assert sorted({store.example_at(row)[0].doc_id for row in range(30)}) == [
        0,
        1,
        2,
        4,
        5,
        6,
        8,
        9,
        10,
        11,
    ]


def test_from_the_command_line(capsys, tmp_path, damaged):
    folder, _ = damaged
    arguments = [
        "harvest",
        "raw:pixels",
        str(folder),
        str(tmp_path / "s"),
        "--skip-broken",
        "--dtype",
        "auto",
        "-q",
    ]
    assert app._status(arguments) == 0
    err = capsys.readouterr().err
    assert (
        "broken inputs left out: 3 (" in err
        and "--dtype auto: float16, whose rounding costs" in err
    )
    assert f"20 files taken from {folder}, none left out" in err
    again = [
        "harvest",
        "raw:pixels",
        str(folder),
        str(tmp_path / "again"),
        "--config",
        str(tmp_path / "s" / "config.toml"),
        "-q",
    ]
    assert app._status(again) == 0
    assert (
        open_store(tmp_path / "again").manifest.content
        == open_store(tmp_path / "s").manifest.content
    )


def test_nothing_that_can_be_read_is_said(tmp_path):
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="holds no image that can be read"):
        saekit.harvest("raw:pixels", str(tmp_path / "im"), tmp_path / "s", skip_broken=True)

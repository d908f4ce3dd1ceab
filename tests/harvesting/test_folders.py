"""Which files of a folder are data, and that the rest is said."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from saekit.errors import DataError
from saekit.harvesting.folders import walk
from saekit.harvesting.sources import open_data


def put(root, *names, content=b"some words"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(data):
    return sorted(document.name for document in data.documents())


def test_hidden_files_and_those_of_the_system_are_no_data(tmp_path):
    put(
        tmp_path,
        "a.txt",
        "b/C.TXT",
        ".git/x.txt",
        "b/.hidden.txt",
        "__MACOSX/a.txt",
        "Thumbs.db",
        "table.xlsx",
        "noise",
    )
    data = open_data(str(tmp_path), modality="text")
    assert names(data) == ["a.txt", "b/C.TXT"]
    assert data.notes == (
        f"2 files taken from {tmp_path}, 6 left out (4 hidden, 1 .xlsx, 1 without suffix)",
    )


def test_classes_come_from_visible_folders(tmp_path):
    for name in ("cat/1.PNG", "dog/2.png", ".ipynb_checkpoints/3.png", "__MACOSX/cat/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name, "PNG")
    assert sorted((d.name, d.label) for d in open_data(str(tmp_path),
    modality="image").documents()) == [
        ("cat/1.PNG", "cat"), ("dog/2.png", "dog"),
    ]  # fmt: skip


def test_a_hidden_folder_that_was_asked_for_is_read(tmp_path):
    put(tmp_path / ".cache" / "texts", "a.txt")
    assert names(open_data(str(tmp_path / ".cache" / "texts"), modality="text")) == ["a.txt"]


def test_links_are_followed_once_and_cycles_end(tmp_path):
    put(tmp_path / "elsewhere", "deep/b.txt")
    put(tmp_path / "data", "a.txt")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "c.txt").symlink_to(tmp_path / "elsewhere" / "deep" / "b.txt")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dead.txt").symlink_to(tmp_path / "nothing")
    data = open_data(str(tmp_path / "data"), modality="text")
    assert names(data) == ["a.txt", "c.txt", "linked/deep/b.txt"]
    assert "2 left out (1 broken link, 1 link to a folder above it)" in data.notes[0]


def test_names_that_are_not_utf8_are_kept_and_found_again(tmp_path):
    folder = os.fsencode(tmp_path) + b"/gr\xfcn"
    os.mkdir(folder)
    Image.new("RGB", (2, 2), (7, 0, 0)).save(os.fsdecode(folder + b"/\xe9.png"))
    data = open_data(str(tmp_path), modality="image")
    (document,) = data.documents()
    assert (document.name, document.label) == (r"gr\xfcn/\xe9.png", r"gr\xfcn")
    assert data.image(document.name).getpixel((0, 0)) == (7, 0, 0)
    document.name.encode()


def test_pipes_and_sockets_are_not_opened(tmp_path):
    put(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert names(open_data(str(tmp_path), modality="text")) == ["a.txt"]
    with pytest.raises(DataError, match=r"pipe\.txt is neither a file nor a folder"):
        open_data(str(tmp_path / "pipe.txt"), modality="text")


def test_the_order_is_that_of_the_paths_parts(tmp_path):
    put(tmp_path, "b.txt", "a/z.txt", "a.txt", "a-b/c.txt")
    assert [file.relative_to(tmp_path).as_posix() for file in walk(tmp_path).files] == [
        "a/z.txt",
        "a-b/c.txt",
        "a.txt",
        "b.txt",
    ]


def test_a_folder_digest_follows_contents_of_equal_length(tmp_path):
    put(tmp_path, "a.txt", "b.txt")
    first = open_data(str(tmp_path), modality="text").digest()
    put(tmp_path, "b.txt", content=b"Some words")
    second = open_data(str(tmp_path), modality="text").digest()
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert len({first, second, open_data(str(tmp_path), modality="text").digest()}) == 3


@pytest.mark.parametrize(
    "content",
    [b"one\n\ntwo", b"\xef\xbb\xbfone\n\ntwo", b"one\r\n\r\ntwo", b"\xef\xbb\xbfone\r\n \r\ntwo"],
)
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, content):
    put(tmp_path, "t.txt", content=content)
    assert sorted(
        d.text for d in open_data(str(tmp_path / "t.txt"), modality="text").documents()
    ) == ["one", "two"]


def test_utf16_is_told_with_a_command_that_converts_it(tmp_path):
    put(tmp_path, "t.txt", content="one".encode("utf-16"))
    with pytest.raises(
        DataError, match=r"t\.txt is not UTF-8 text \(it looks like UTF-16\)"
    ) as raised:
        open_data(str(tmp_path / "t.txt"), modality="text")
    assert "iconv -f UTF-16 -t UTF-8 t.txt > utf8.txt" in raised.value.hint


def test_lines_without_blank_lines_between_are_said_to_be_one_document(tmp_path):
    put(tmp_path, "t.txt", content=b"first line\nsecond line\nthird")
    (note,) = open_data(str(tmp_path / "t.txt"), modality="text").notes
    assert (
        "holds one document (3 lines, no blank line between them)" in note
        and "`sed G t.txt > documents.txt`" in note
    )
    os.system(f"cd {tmp_path} && sed G t.txt > documents.txt")
    assert len(open_data(str(tmp_path / "documents.txt"), modality="text")) == 3

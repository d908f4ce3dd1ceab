"""GGUF files: content decides what is loaded, and damage ends in an error of the user's."""

from __future__ import annotations

import json
import random
import struct

import made_ggufs
import pytest
import torch

from saekit.embedded.dequantize import dequantized_folder
from saekit.embedded.digests import file_digest
from saekit.embedded.gguf_header import check_gguf
from saekit.errors import DataError, SaekitError

pytest.importorskip("gguf")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def weight(folder, name="model.layers.0.mlp.up_proj.weight"):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")[name]


def test_a_change_in_the_middle_of_a_large_file_changes_its_digest(tmp_path):
    path = tmp_path / "weights"
    content = bytearray(5 << 20)
    digests = set()
    for at in (None, 2 << 20, (2 << 20) + 77, 3 << 20):
        if at is not None:
            content[at] ^= 1
        path.write_bytes(content)
        digests.add(file_digest(path))
    assert len(digests) == 4


def test_two_files_alike_but_for_one_weight_in_the_middle_are_two_models(cache, tmp_path):
    one = made_ggufs.write(tmp_path / "model.gguf")
    (tmp_path / "other").mkdir()
    data = bytearray(one.read_bytes())
    at = data.rindex(struct.pack("<f", float(weight(dequantized_folder(one))[0, 0])))
    data[at : at + 4] = struct.pack("<f", 0.5)
    other = tmp_path / "other" / "model.gguf"
    other.write_bytes(data)
    assert weight(dequantized_folder(other))[0, 0] == 0.5 != weight(dequantized_folder(one))[0, 0]


def test_a_damaged_cache_is_made_again(cache, tmp_path):
    gguf = made_ggufs.write(tmp_path / "model.gguf")
    folder = dequantized_folder(gguf)
    right = weight(folder)
    file = folder / "model.safetensors"
    for damage in (lambda data: data[:-100], lambda data: data[:-8] + bytes(8)):
        file.write_bytes(damage(file.read_bytes()))
        assert dequantized_folder(gguf) == folder and torch.equal(weight(folder), right)
    (folder / "config.json").unlink()
    assert (dequantized_folder(gguf) / "config.json").is_file()
    assert [each.name for each in cache.iterdir()] == [folder.name], (
        "nothing else is left in the cache"
    )
    before = file.stat().st_mtime_ns
    assert dequantized_folder(gguf) == folder and file.stat().st_mtime_ns == before, (
        "a whole one is not made again"
    )
    assert "model.safetensors" in json.loads((folder / "contents.json").read_text())


def test_a_file_without_one_of_the_weights_is_refused(cache, tmp_path):
    gguf = made_ggufs.write(tmp_path / "model.gguf", without="blk.0.ffn_up")
    with pytest.raises(DataError, match=r"model\.gguf .*lacks .*layers\.0\.mlp\.up_proj"):
        dequantized_folder(gguf)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "header,words",
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), r"states 1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), r"states 1,099,511,627,776 settings"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), r"version 9 of the format"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50) + bytes(20),
            r"states 1,125,899,906,842,624 characters",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 1 << 33),
            r"states 8,589,934,592 entries of a list",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 77) + bytes(9),
            r"type 77 of a value is unknown",
        ),
        (b"GGML" + bytes(40), r"does not begin with GGUF"),
        (b"GG", r"does not begin with GGUF"),
    ],
)
def test_counts_are_held_against_the_file(tmp_path, header, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(header)
    with pytest.raises(
        DataError, match=rf"model\.gguf cannot be read as a language model: .*{words}"
    ):
        check_gguf(path)


def test_a_download_that_was_cut_off_is_named(cache, tmp_path):
    gguf = made_ggufs.write(tmp_path / "model.gguf")
    gguf.write_bytes(gguf.read_bytes()[:-9000])
    with pytest.raises(DataError, match=r"model\.gguf cannot be read as a language model"):
        dequantized_folder(gguf)


def test_mutated_headers_end_in_user_errors(tmp_path):
    rng, path = random.Random(3), tmp_path / "model.gguf"
    whole = made_ggufs.write(path).read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        at = rng.randrange(5000)
        data[at : at + rng.choice([1, 4, 8])] = rng.choice([b"\xff" * 8, b"\0" * 4, b"\x80", b""])
        path.write_bytes(data)
        try:
            check_gguf(path)
        except SaekitError:
            refused += 1
    assert refused > 100

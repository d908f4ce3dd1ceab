"""Array files of hostile or broken headers."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import pytest
import torch
from rawfiles import whole

import saekit
from saekit.errors import DataError, SaekitError
from saekit.harvesting.arrays import load_array


def npy(shape: str, descr: str = "'<f8'", order: str = "False", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "content,words",
    [
        (npy("(1099511627776, 4)"), r"declares 35,184,372,088,832 bytes of values, but it has 0"),
        (npy("(2, 4)", data=bytes(63)), r"declares 64 bytes of values, but it has 63"),
        (npy("(2, 4)", data=bytes(65)), r"declares 64 bytes of values, but it has 65"),
        (npy("(-2, 4)", data=bytes(64)), r"its shape is \(-2, 4\)"),
        (npy("(1, 1)", descr="'|O'", data=bytes(8)), r"it holds Python objects"),
        (npy("(1,)", descr="'<f99'"), r"x\.npy cannot be read as an array"),
        (npy("[1, 1]", data=bytes(8)), r"x\.npy cannot be read as an array"),
        (npy("(" * 900), r"x\.npy cannot be read as an array"),
        (b"\x93NUMPY\x09\x00" + bytes(80), r"x\.npy cannot be read as an array"),
        (b"", r"x\.npy cannot be read as an array"),
    ],
)
def test_a_header_is_held_against_the_file(tmp_path, content, words):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_array(tmp_path / "x.npy")


def test_an_archive_that_grows_out_of_proportion_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(npy("(1048576, 80)"))
        for _ in range(640):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"x\.npz: array x grows from [\d,]+ to 671,08\d,\d+ bytes"):
        load_array(path)


def test_a_sparse_matrix_is_told_with_a_line_that_makes_it_dense(tmp_path, monkeypatch):
    import scipy.sparse

    monkeypatch.chdir(tmp_path)
    scipy.sparse.save_npz("s.npz", scipy.sparse.eye(4, format="csr"))
    with pytest.raises(DataError, match=r"s\.npz holds a sparse matrix of SciPy") as raised:
        load_array(tmp_path / "s.npz")
    exec("import numpy, scipy.sparse\n" + raised.value.hint.removesuffix(" makes it dense"))
    assert np.array_equal(load_array(tmp_path / "x.npy")[0], np.eye(4))


def test_arrays_by_columns_are_read_by_rows(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    saekit.harvest("raw:array", str(tmp_path / "x.npy"), tmp_path / "s")
    batch = whole(tmp_path / "s")
    assert torch.equal(batch.x, torch.from_numpy(x[batch.doc_id]).float())


def test_entries_that_are_no_numbers_are_left_out_on_request(tmp_path):
    x = np.arange(40.0).reshape(10, 4)
    x[3, 1], x[7, 0] = np.nan, np.inf
    np.save(tmp_path / "x.npy", x)
    said = []
    result = saekit.harvest(
        "raw:array",
        str(tmp_path / "x.npy"),
        tmp_path / "s",
        batch=2,
        skip_broken=True,
        progress=lambda p: said.append(p.message),
    )
    assert sorted(whole(tmp_path / "s").doc_id.tolist()) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert (result.rows, result.dropped, result.skipped) == (8, 2, 2)
    (line,) = [line for line in said if line and "left out" in line]
    assert (
        line.startswith("broken inputs left out: 2 (entry ")
        and "entry 3" in line
        and "entry 7" in line
    )


def test_mutated_arrays_end_in_user_errors(tmp_path):
    rng, refused = random.Random(5), 0
    x = np.arange(24.0).reshape(6, 4)
    packed, plain = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, x=x, y=np.array(list("abcdef")))
    np.save(plain, x)
    for _ in range(500):
        suffix, content = rng.choice([("npy", plain), ("npz", packed)])
        data = bytearray(content.getvalue())
        for _ in range(rng.choice([1, 3])):
            at = rng.randrange(min(len(data), 400))
            data[at : at + rng.choice([1, 4])] = rng.choice(
                [b"\xff\xff\xff\x7f", b"\0", b"", b"(", b"9", b"\x80"]
            )
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(data)
        try:
            load_array(path)
        except SaekitError:
            refused += 1
    assert refused > 100

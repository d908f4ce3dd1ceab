"""A store or a checkpoint that was changed: refused by name, repaired if possible, never
opened when it is not a file."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import trained
from made_stores import write_store
from saekit_cli import app
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saekit.errors import DataError, MissingError, SaekitError
from saekit.harvesting.run import harvest
from saekit.store.checkpoint import read_checkpoint
from saekit.store.files import sha256_of
from saekit.store.manifest import Manifest, checksum
from saekit.store.reader import open_store
from saekit.training.checkpoints import load
from saekit.types import ActivationSpec


def edited(folder: Path, change, seal: bool = False) -> None:
    """Change manifest.json; `seal`: its digests are made right again."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    if seal:
        data["fingerprint"] = ActivationSpec(**data["spec"]).fingerprint
        data["checksum"] = checksum(data)
    (folder / "manifest.json").write_text(json.dumps(data))


# -- the manifest ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["plan"].update(holdout=0.2),
        lambda m: m["spec"].update(seed=7),
        lambda m: m["stats"]["mean"].reverse(),
        lambda m: m["shards"][1].update(batches=99),
        lambda m: m.update(norm_limit=3.0),
        lambda m: m.update(complete=False),
    ],
    ids=["holdout", "seed", "mean", "batches", "norm_limit", "complete"],
)
def test_an_edit_of_the_manifest_is_seen_by_its_checksum(store, change):
    edited(store.path, change)
    with pytest.raises(DataError, match=r"manifest\.json is damaged: its checksum"):
        open_store(store.path)


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda m: m["spec"].update(d_in=0), r"spec\.d_in is 0"),
        (lambda m: m["spec"].update(d_in=10**12), r"spec\.d_in is 1000000000000"),
        (lambda m: m["spec"].update(seed="0"), r"spec\.seed is '0'; it must be a whole number"),
        (
            lambda m: m["spec"].update(dtype="float8"),
            r"spec\.dtype is 'float8'; it must be float16 or bfloat16 or float32",
        ),
        (lambda m: m["spec"].update(layout="hexagons"), r"spec\.layout is 'hexagons'"),
        (lambda m: m["plan"].update(holdout=1.0), r"plan\.holdout is 1\.0"),
        (
            lambda m: m["plan"].update(holdout=float("nan")),
            r"plan\.holdout nan is not a finite number",
        ),
        (lambda m: m["shards"][0].update(rows=-1), r"shards\[0\]"),
        (lambda m: m["shards"][0].update(rows=True), r"shards\[0\]\.rows is True"),
        (lambda m: m["shards"].reverse(), r"shards\[0\]\.name"),
        (lambda m: m["shards"].pop(), r"rows is 2000, but its shards hold"),
        (
            lambda m: m["stats"].update(std=m["stats"]["std"][1:]),
            r"stats\.std has 15 values for d_in 16",
        ),
        (lambda m: m["stats"]["mean"].__setitem__(3, "x"), r"stats\.mean\[3\] is 'x'"),
        (lambda m: m.update(complete="false"), r"complete is 'false'"),
        (lambda m: m.pop("plan"), "it has no plan"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_with_the_field(store, change, words):
    edited(store.path, change, seal=False)
    edited(store.path, lambda m: m.update(checksum=checksum(m)))
    data = json.loads((store.path / "manifest.json").read_text())
    # the fingerprint too is that of the changed spec, where there is one
    if isinstance(data.get("spec"), dict):
        try:
            data["fingerprint"] = ActivationSpec(**data["spec"]).fingerprint
        except (TypeError, ValueError):
            pass
        data["checksum"] = checksum(data)
        (store.path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=words) as error:
        open_store(store.path)
    assert str(store.path / "manifest.json") in str(error.value) and error.value.hint


def test_a_store_of_before_there_was_a_checksum_is_read_and_held_to_its_fingerprint(store):
    edited(store.path, lambda m: m.pop("checksum"))
    assert len(open_store(store.path)) == 2000
    edited(store.path, lambda m: m["spec"].update(seed=7))
    with pytest.raises(DataError, match="fingerprint"):
        open_store(store.path)


@pytest.mark.parametrize(
    "name",
    [
        "../../x.safetensors",
        "/dev/zero",
        "..",
        "",
        "a\\b.safetensors",
        "00000.safetensors\x00",
        "00001.safetensors",
    ],
)
def test_a_shards_name_cannot_leave_its_folder(store, name):
    edited(store.path, lambda m: m["shards"][0].update(name=name), seal=True)
    with pytest.raises(DataError, match=r"shards\[0\]\.name"):
        open_store(store.path)


@pytest.mark.parametrize("content", ["{", '{"spec": 1}', None])
def test_the_hint_of_a_damaged_manifest_mends_it(tmp_path, content):
    harvest("raw:pixels", "embedded:digits", tmp_path / "s", rows=100)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(
        path.read_text().replace('"seed": 0', '"seed": 1') if content is None else content
    )
    with pytest.raises(DataError) as error:
        open_store(tmp_path / "s")
    if content is None:
        assert "overwrite=True" in error.value.hint
        harvest("raw:pixels", "embedded:digits", tmp_path / "s", rows=100, overwrite=True)
    else:
        assert f"remove {tmp_path / 's'}" in error.value.hint
        subprocess.run(["rm", "-r", tmp_path / "s"], check=True)
        harvest("raw:pixels", "embedded:digits", tmp_path / "s", rows=100)
    assert len(open_store(tmp_path / "s")) == 100


# -- other things than a file ---------------------------------------------------------------------


def put(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        os.chdir(path.parent)  # names of sockets are short
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "shards/00001.safetensors"])
def test_what_is_no_file_is_not_opened(store, monkeypatch, kind, name):
    monkeypatch.chdir(store.path)
    put(store.path / name, kind)
    with pytest.raises(DataError, match=f"{name}.*not a regular file"):
        open_store(store.path)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_nor_is_it_in_a_checkpoint(tmp_path, kind, name):
    run = Path(trained(write_store(tmp_path / "s"), tmp_path / "r", "pca", latents=2))
    put(run / name, kind)
    with pytest.raises(DataError, match=f"{name}.*not a regular file"):
        load(run)


def test_a_shard_that_is_a_link_is_refused_and_the_hint_mends_it(store, tmp_path):
    path = store.shards[0].path
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="not a regular file") as error:
        open_store(store.path)
    assert "cp -rL" in error.value.hint
    subprocess.run(["cp", "-rL", store.path, tmp_path / "copy"], check=True)
    assert len(open_store(tmp_path / "copy")) == 2000


# -- shards ----------------------------------------------------------------------------------------


def rewritten(store, change) -> None:
    """Change the first shard's tensors, and let the manifest agree."""
    path = store.shards[0].path
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    manifest = Manifest.read(store.path)
    manifest.shards[0] = replace(
        manifest.shards[0], bytes=path.stat().st_size, sha256=sha256_of(path)
    )
    manifest.write(store.path)


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda t: t.pop("doc_id"), "it has no tensor doc_id"),
        (lambda t: t.update(x=t["x"][:, :-1]), r"x has shape \[\d+, 15\]"),
        (lambda t: t.update(x=t["x"][1:]), "x has shape"),
        (lambda t: t.update(x=t["x"].float()), "x is F32"),
        (lambda t: t.update(position=t["position"].long()), "position is I64"),
        (
            lambda t: t["examples.token_ptr"].__setitem__(1, 10**9),
            "examples.token_ptr does not divide",
        ),
        (lambda t: t["examples.ref_ptr"].__setitem__(0, -1), "examples.ref_ptr does not divide"),
        (lambda t: t["examples.first_row"].__setitem__(2, 10**6), "examples.first_row"),
        (lambda t: t["examples.rows"].__setitem__(0, 2**62), "examples.first_row"),
        (lambda t: t["examples.labels"].fill_(255), "examples.labels is not UTF-8"),
    ],
)
def test_a_shard_of_another_form_is_refused_with_the_tensor(store, change, words):
    rewritten(store, change)
    with pytest.raises(DataError, match=rf"00000\.safetensors is not one of saekit's: {words}"):
        list(open_store(store.path).batches(64))


def test_grids_that_are_no_grids_are_refused(tmp_path):
    path = write_store(tmp_path / "g", 96, layout="grid", grid=(2, 4))
    assert next(open_store(path).batches(2, examples=True)).x.shape == (2, 2, 4, 16)
    edited(path, lambda m: m["spec"].update(grid=[3, 3]), seal=True)
    with pytest.raises(DataError, match=r"not a grid of \(3, 3\)"):
        list(open_store(path).batches(2, examples=True))


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "link"])
@pytest.mark.parametrize("number", [0, 2, 3])
def test_resume_writes_a_bad_shard_again_to_the_same_bytes(tmp_path, damage, number):
    x = np.random.default_rng(3).standard_normal((3000, 300)).astype("f4")
    np.save(tmp_path / "a.npy", x)
    said = []

    def harvested(**options) -> Path:
        harvest(
            "raw:array",
            str(tmp_path / "a.npy"),
            tmp_path / "s",
            shard_mb=1,
            batch=100,
            progress=said.append,
            **options,
        )
        return tmp_path / "s"

    store = harvested()
    before = {path.name: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert len(list(store.glob("shards/*"))) == 4
    path = store / "shards" / f"{number:05d}.safetensors"
    if damage in ("missing", "link"):
        path.rename(tmp_path / "moved")
        if damage == "link":
            path.symlink_to(tmp_path / "moved")
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data[:1000] if damage == "cut" else data)
    with pytest.raises(DataError, match=rf"{number:05d}\.safetensors") as error:
        list(open_store(store).batches(1000))
    if damage != "link":
        assert "resume=True" in error.value.hint
    harvested(resume=True)
    assert {path.name: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert any(
        f"{number:05d}.safetensors" in report.message and "again" in report.message
        for report in said
        if report.message
    )


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return Path(trained(write_store(folder / "s"), folder / "r", "sae", latents=8, k=2))


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    subprocess.run(["cp", "-r", run, tmp_path / "r"], check=True)
    return tmp_path / "r"


@pytest.mark.parametrize(
    "keys,value,words",
    [
        (("config", "latents"), 10**11, "config.latents is 100000000000"),
        (("config", "d_in"), 2**40, "config.d_in"),
        (("config", "k"), 10**12, "does not fit|k"),
        (("config", "k"), "two", "config.k is 'two'; it must be a whole number"),
        (("config", "latents"), 9, "W_... has the shape"),
        (("config", "sparsity"), "sparse", "sparse"),
        (("config", "sparsity"), None, "config.sparsity is None; it must be text"),
        (("config", "sparsity"), ["topk"], "config.sparsity"),
        (("model",), ["sae"], "model"),
        (("spec", "d_in"), float("inf"), "spec.d_in"),
        (("result", "metrics"), {"fvu": "low"}, "result.metrics.fvu is not a number"),
        (("result", "step"), 1e400, "result.step"),
        (("schema_version",), "1", "schema_version"),
        (("schema_version",), 99, "later saekit"),
    ],
)
def test_a_config_that_lies_is_refused_before_anything_is_allocated(checkpoint, keys, value, words):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SaekitError, match=words):
        load(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "kB"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_other_content_is_named(checkpoint, name, content):
    (checkpoint / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load(checkpoint)


def test_weights_that_are_not_those_of_the_config_are_named(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "b_dec"},
        checkpoint / "model.safetensors",
    )
    with pytest.raises(DataError, match="b_dec is missing"):
        load(checkpoint)
    save_file(tensors | {"W_more": tensors["W_dec"].clone()}, checkpoint / "model.safetensors")
    with pytest.raises(DataError, match="W_more is not one of its tensors"):
        load(checkpoint)


def test_a_truncated_header_does_not_say_where_it_ends(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        read_checkpoint(checkpoint)


def test_nothing_is_missing_rather_than_damaged(tmp_path):
    with pytest.raises(MissingError):
        read_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("read", [open_store, load, read_checkpoint])
def test_a_path_that_the_system_refuses_is_named(tmp_path, read):
    with pytest.raises(DataError, match="cannot be read: File name too long") as error:
        read(tmp_path / ("x" * 300))
    assert "check the path" in error.value.hint
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "none" / "deeper", f"{tmp_path}/nul\0byte"):
        with pytest.raises(SaekitError):
            read(path)


# -- what the command line makes of it -------------------------------------------------------------


def test_a_damaged_store_is_exit_3_in_every_verb(store, checkpoint, tmp_path, capsys):
    store.shards[1].path.unlink()
    grid = tmp_path / "grid.toml"
    grid.write_text("k = [2, 4]\n")
    for arguments in (
        ("train", store.path, tmp_path / "o"),
        ("sweep", store.path, tmp_path / "o", "--grid", grid),
        ("evaluate", checkpoint, "--store", store.path),
        ("inspect", checkpoint, "--store", store.path, "--out", tmp_path / "o"),
        ("features", checkpoint, "--store", store.path, "--index", 0),
        ("compare", checkpoint, "--store", store.path, "--out", tmp_path / "o"),
    ):
        status = app._status([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert status == 3 and "00001.safetensors is missing" in err and "--resume" in err, (
            arguments,
            err,
        )


def test_the_tensors_of_a_shard_are_read_as_safetensors_reads_them(store):
    with safe_open(store.shards[0].path, "np") as file:
        for name in ("doc_id", "examples.tokens", "norm"):
            assert np.array_equal(file.get_tensor(name), store.shards[0].arrays[name])


def test_of_two_hooks_one_bad_shard_is_written_again_to_the_same_bytes(tmp_path):
    def harvested(**way) -> None:
        hooks = ["blocks.0", "blocks.1"]
        harvest(
            "embedded:digits-vit",
            "embedded:digits",
            tmp_path / "s",
            hook=hooks,
            rows=5000,
            batch=64,
            dtype="float32",
            shard_mb=1,
            **way,
        )

    harvested()
    stores = [tmp_path / "s" / "layers.0", tmp_path / "s" / "layers.1"]
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    shards = sorted(stores[1].glob("shards/*"))
    assert len(shards) > 1 and all(
        path in before for store in stores for path in store.glob("shards/*")
    )
    shards[-1].write_bytes(b"")
    harvested(resume=True)
    assert {
        path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()
    } == before

"""How an index is made: in bounded memory, after kills, with a store that has grown, and what is
refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as command
from kills import content, killed_after, killed_before
from made_codes import planted
from made_stores import make_rows, write_store
from safetensors.torch import load_file, save_file

import saekit
from saekit.errors import DataError, MissingError, NumericsError, SaekitError, UsageError
from saekit.indexing import build
from saekit.indexing.beside import found_index, has_other_index
from saekit.indexing.manifest import index_folder
from saekit.indexing.maxima import indexed_maxima
from saekit.indexing.reader import read_index
from saekit.indexing.runs import BYTES_PER_ENTRY
from saekit.inspection.opening import open_pair
from saekit.store.files import sha256_of
from saekit.store.folder_kinds import RUN
from saekit.store.reader import open_store

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, TOKENS, CHUNK = 4000, 40, 250
OPTIONS = {"sparsity": "topk", "k": 32, "expansion": 16, "batch": 256, "rows": 2000}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(build, "CHUNK_ROWS", CHUNK)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 4,000 rows with 128,000 activations, which take six runs of a budget of 1 MB, and
    a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    write_store(folder / "store", ROWS, tokens=TOKENS)
    saekit.train(folder / "store", folder / "run", **OPTIONS)
    return folder


def copied(made: Path, folder: Path) -> Path:
    """The checkpoint without an index."""
    return Path(shutil.copytree(made / "run", folder / "run"))


def files(run: Path) -> dict[str, bytes]:
    """All of an index but the settings."""
    found = content(run / "index")
    return {name: data for name, data in found.items() if not name.endswith("config.toml")}


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The files of an index that nothing interrupted, made in one run."""
    folder = copied(made, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CHUNK_ROWS", CHUNK)
        saekit.index(folder, made / "store")
    return files(folder)


def test_the_bytes_do_not_depend_on_the_budget(made, whole, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(
        build,
        "merge",
        lambda folder, manifest, *rest, merge=build.merge: (
            runs.extend(manifest.runs) or merge(folder, manifest, *rest)
        ),
    )
    run = copied(made, tmp_path)
    saekit.index(run, made / "store", budget=1)
    assert len(runs) == 6 and files(run) == whole
    assert all(entry.entries * BYTES_PER_ENTRY <= 1_000_000 for entry in runs)
    (folder,) = {name.split("/")[0] for name in whole}
    names = {name.split("/")[1] for name in whole}
    assert folder == open_store(made / "store").content[:16]
    assert names == {"index.json"} | {
        f"{name}.safetensors" for name in ("by_feature", "by_row", "origin", "features", "shown")
    }
    manifest = json.loads(whole[f"{folder}/index.json"])
    for name, digest in manifest["files"].items():
        assert sha256_of(run / "index" / folder / name) == digest


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_an_index_killed_anywhere_resumes_to_the_same_bytes(made, whole, tmp_path, stride):
    run = copied(made, tmp_path)
    expected = content(run)

    def begin() -> None:
        saekit.index(run, made / "store", budget=1)

    operation = 0
    while killed_before(operation, run, begin):
        assert RUN.sort(run)[1] == [], "all that is left is known to be ours"
        readable = found_index(open_pair(run, made / "store"))
        if readable is not None:  # whole, except that its runs are not removed yet
            assert whole.items() <= files(run).items() and readable.activations(0).rows.size
        saekit.index(run, made / "store", budget=1, resume=True)
        assert files(run) == whole, f"killed before operation {operation}"
        shutil.rmtree(run / "index")
        assert content(run) == expected, "nothing else in the checkpoint changes"
        operation += stride
    assert operation > 20


def test_an_index_that_is_replaced_is_the_old_or_the_new_one_at_every_moment(made, whole, tmp_path):
    run = copied(made, tmp_path)
    saekit.index(run, made / "store")
    seen, operation = set(), 0

    def begin() -> None:
        saekit.index(run, made / "store", budget=1, values="float16", overwrite=True)

    while killed_before(operation, run, begin):
        seen.add(saekit.open_index(run, made / "store").manifest.values)
        assert RUN.sort(run)[1] == []
        operation += 17
    assert operation > 50 and "float32" in seen
    assert saekit.open_index(run, made / "store").manifest.values == "float16"
    assert [path.name for path in (run / "index").iterdir()] == [whole_name(whole)]


def whole_name(whole: dict[str, bytes]) -> str:
    """The folder of an index."""
    return next(iter(whole)).split("/")[0]


def test_an_index_killed_in_the_middle_of_an_operation_goes_on_with_its_runs(made, whole, tmp_path):
    run = copied(made, tmp_path)
    folder = index_folder(run, [open_store(made / "store").content])
    killed_after(
        folder / "runs" / "00001.safetensors",
        0.0,
        lambda: saekit.index(run, made / "store", budget=1),
    )
    done = []
    saekit.index(run, made / "store", budget=2, resume=True, progress=done.append)
    first = next(p.done for p in done if p.phase == "index")
    assert first > CHUNK, "finished runs are not encoded again"
    assert files(run) == whole


def test_a_damaged_run_is_made_again(made, whole, tmp_path, monkeypatch):
    run = copied(made, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        saekit.index(run, made / "store", budget=1)
    (damaged,) = run.glob("index/*/runs/00002.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\7")
    said = []
    saekit.index(run, made / "store", budget=1, resume=True, progress=said.append)
    (message,) = [p.message for p in said if p.message]
    assert "00002.safetensors is missing or damaged" in message
    assert next(p.done for p in said if p.phase == "index" and not p.message) > 2 * CHUNK
    assert files(run) == whole


def test_a_store_that_has_grown_is_indexed_to_the_same_bytes_from_what_is_there(made, tmp_path):
    x = make_rows(6000)
    small = write_store(tmp_path / "small", 3900, tokens=TOKENS, x=x[:3900])
    large = write_store(tmp_path / "large", 6000, tokens=TOKENS, x=x)
    saekit.train(small, tmp_path / "run", **OPTIONS)
    fresh = Path(shutil.copytree(tmp_path / "run", tmp_path / "fresh"))
    saekit.index(fresh, large)
    saekit.index(tmp_path / "run", small, budget=1)
    said = []
    saekit.index(tmp_path / "run", large, budget=1, progress=said.append)
    (message,) = [p.message for p in said if p.message]
    # whole shards of both, in whole chunks
    shards = [shard.rows for shard in open_store(small).manifest.shards]
    assert message.startswith(f"{sum(shards[:-1]) // CHUNK * CHUNK:,} rows are copied from")
    name = open_store(large).content[:16]
    grown = {n: data for n, data in files(tmp_path / "run").items() if n.startswith(name)}
    assert grown == files(fresh)
    # both stay
    assert saekit.open_index(tmp_path / "run", small).rows == 3900
    # what is damaged is not copied
    damaged = index_folder(tmp_path / "run", [open_store(small).content]) / "by_row.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    saekit.index(tmp_path / "run", large, overwrite=True, progress=said.append)
    assert len([p for p in said if p.message]) == 1
    assert {n: d for n, d in files(tmp_path / "run").items() if n.startswith(name)} == files(fresh)


def test_what_an_index_is_refused_for(made, tmp_path):
    run = copied(made, tmp_path)
    saekit.train(made / "store", tmp_path / "pca", model="pca", latents=4)
    rounded = {"values": "float16"}
    in_memory = saekit.train(made / "store", latents=8, k=2).model
    write_store(tmp_path / "wide", 400, width=8)
    write_store(tmp_path / "elsewhere", 400, hook="blocks.3")
    refusals = [
        (DataError, "the code of .*pca is dense", (tmp_path / "pca", made / "store"), rounded),
        (DataError, "takes 16 values per row", (run, tmp_path / "wide"), {}),
        (DataError, "hook blocks.0; .* holds hook blocks.3", (run, tmp_path / "elsewhere"), {}),
        (DataError, "model in memory", (in_memory, made / "store"), {}),
        (UsageError, "rows in memory", (run, torch.zeros(9, 16)), {}),
        (UsageError, "budget=0 must be at least", (run, made / "store"), {"budget": 0}),
        (UsageError, "choose float32 or float16", (run, made / "store"), {"values": "int8"}),
        (UsageError, "contradict", (run, made / "store"), {"resume": True, "overwrite": True}),
    ]
    for kind, words, arguments, options in refusals:
        with pytest.raises(kind, match=words):
            saekit.index(*arguments, **options)
    assert not (run / "index").exists()
    with pytest.raises(MissingError, match="has no index") as error:
        saekit.open_index(run, made / "store")
    assert f"saekit index {run} --store {made / 'store'}" in error.value.hint


def test_an_index_that_is_there_stays_unless_it_is_to_be_replaced(made, whole, tmp_path):
    run = copied(made, tmp_path)
    saekit.index(run, made / "store")
    with pytest.raises(DataError, match="exists and is not empty"):
        saekit.index(run, made / "store")
    encoded = []
    saekit.index(run, made / "store", resume=True, progress=encoded.append)
    assert not encoded and files(run) == whole
    # of other weights: neither read nor continued
    assert not has_other_index(open_pair(run, made / "store"))
    saekit.train(made / "store", run, overwrite=True, **OPTIONS | {"seed": 3})
    assert not (run / "index").exists(), "an index goes with the weights that it is of"
    shutil.copytree(copied(made, tmp_path / "other"), tmp_path / "again")
    saekit.index(tmp_path / "again", made / "store")
    shutil.copy(run / "model.safetensors", tmp_path / "again" / "model.safetensors")
    assert found_index(open_pair(tmp_path / "again", made / "store")) is None
    assert has_other_index(open_pair(tmp_path / "again", made / "store"))
    with pytest.raises(DataError, match="indexed with other settings: weights"):
        saekit.index(tmp_path / "again", made / "store", resume=True)
    saekit.index(tmp_path / "again", made / "store", overwrite=True)
    assert found_index(open_pair(tmp_path / "again", made / "store")) is not None
    assert [p.name for p in (tmp_path / "again" / "index").iterdir()] == [
        open_store(made / "store").content[:16]
    ]


def test_damage_is_named_when_a_file_is_first_read(made, tmp_path):
    run = copied(made, tmp_path)
    path = Path(saekit.index(run, made / "store").path)
    data = bytearray((path / "by_feature.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "by_feature.safetensors").write_bytes(data)
    index = saekit.open_index(run, made / "store")
    assert index.active.sum() == 128_000, "another file"
    with pytest.raises(DataError, match=r"by_feature\.safetensors is damaged") as error:
        index.activations(0)
    assert "overwrite=True" in error.value.hint
    (path / "by_row.safetensors").unlink()
    with pytest.raises(DataError, match=r"by_row\.safetensors is missing"):
        read_index(path)
    text = (path / "index.json").read_text().replace('"latents": 256', '"latents": 257')
    (path / "index.json").write_text(text)
    with pytest.raises(DataError, match="checksum does not match"):
        read_index(path)


def test_float16_states_its_error_and_keeps_counts(tmp_path):
    gen = torch.Generator().manual_seed(0)
    z = torch.rand(240, 6, generator=gen) * (torch.rand(240, 6, generator=gen) < 0.3)
    z[3, 0] = 1e-9  # less than float16 has
    made = planted(tmp_path, z, torch.zeros(240, dtype=torch.int64), 8)
    result = saekit.index(made.run, made.store, values="float16")
    index = result.index
    rounded = z.numpy().astype(np.float16).astype(np.float32)
    rounded[3, 0] = np.finfo(np.float16).smallest_subnormal
    for j in range(6):
        own = index.activations(j)
        assert np.array_equal(own.rows, z[:, j].numpy().nonzero()[0])
        assert np.array_equal(own.values, rounded[own.rows, j])
    error = (rounded.astype(np.float64) - z.numpy()).ravel()
    norm = np.linalg.norm(z.double().numpy())
    assert result.rounding == {
        "largest": np.abs(error).max(),
        "relative": pytest.approx(np.linalg.norm(error) / norm, rel=1e-12),
        "raised": 1,
    }
    assert 0 < result.rounding["relative"] < 2**-11
    z[5, 1] = 7e4
    made = planted(tmp_path / "large", z, torch.zeros(240, dtype=torch.int64), 8)
    with pytest.raises(NumericsError, match="7e\\+04 is above 65,504") as failed:
        saekit.index(made.run, made.store, values="float16")
    assert failed.value.hint == 'values="float32"'


def test_rows_of_images_do_not_follow_one_another(digits, tmp_path):
    saekit.train(digits, tmp_path / "run", latents=64, k=4, rows=800, batch=64)
    index = saekit.index(tmp_path / "run", digits).index
    assert index.origin.labels == [str(digit) for digit in range(10)]
    labels = [index.origin.labels[n] for n in index.origin.example_label]
    assert labels == open_store(digits).labels()
    with pytest.raises(SaekitError, match="do not follow one another"):
        index.coactivation(0, lag=1)


def test_the_command_prints_its_keys(made, tmp_path, capsys):
    run = copied(made, tmp_path)
    status, out, err = command(capsys, "index", run, "--store", made / "store", "--json", "-q")
    assert status == 0, err
    value = json.loads(out)
    assert set(value) >= {"path", "latents", "rows", "bytes", "seconds", "entries", "rounding"}
    assert (value["latents"], value["rows"], value["entries"]) == (256, ROWS, 128_000)
    status, out, _ = command(capsys, "index", run, "--store", made / "store", "--resume", "-q")
    assert status == 0 and "128,000 activations of 256 latents on 4,000 rows" in out
    assert (run / "index" / Path(value["path"]).name / "config.toml").read_text()


def test_steering_finds_the_largest_activations_in_an_index(made, tmp_path):
    run = copied(made, tmp_path)
    config = json.loads((run / "config.json").read_text())
    assert indexed_maxima(run, config, 256) is None
    result = saekit.index(run, made / "store")
    maxima = indexed_maxima(run, config, 256)
    assert maxima is not None and np.array_equal(maxima.numpy(), result.index.max)
    manifest = Path(result.path) / "index.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    assert indexed_maxima(run, config, 256) is None


def test_an_infinite_activation_is_named_with_its_row(tmp_path):
    z = torch.rand(64, 4)
    made = planted(tmp_path, z, torch.zeros(64, dtype=torch.int64), 8)
    tensors = load_file(made.run / "model.safetensors")
    tensors["b_enc"][2] = torch.inf
    save_file(tensors, made.run / "model.safetensors")
    with pytest.raises(NumericsError, match=r"gives inf for .*shard 00000\.safetensors row 0"):
        saekit.index(made.run, made.store)


def test_a_published_dictionary_is_imported_first(made, tmp_path):
    saekit.export_dictionary(made / "run", tmp_path / "theirs", format="sparsify")
    theirs = next(tmp_path.glob("theirs/**/cfg.json")).parent
    with pytest.raises(DataError, match="not a folder that saekit wrote") as error:
        saekit.index(theirs, made / "store", any_store=True)
    assert error.value.hint.startswith(f"saekit import {theirs} OUT")
    saekit.import_dictionary(theirs, tmp_path / "ours")
    index = saekit.index(tmp_path / "ours", made / "store", any_store=True).index
    own = saekit.index(copied(made, tmp_path), made / "store").index
    assert np.array_equal(index.active, own.active)
    np.testing.assert_allclose(index.max, own.max, rtol=1e-5)  # that format subtracts b_dec first


def test_a_crosscoder_has_one_index_of_its_stores(tmp_path):
    first = write_store(tmp_path / "0", 800)
    second = write_store(tmp_path / "1", 800, x=make_rows(800, seed=1), hook="blocks.1")
    stores, options = [first, second], {"latents": 32, "k": 4, "rows": 800, "batch": 100}
    saekit.train(first, tmp_path / "run", stores=[second], **options)
    result = saekit.index(tmp_path / "run", stores)
    contents = [open_store(store).content for store in stores]
    assert Path(result.path) == index_folder(tmp_path / "run", contents)
    assert len(Path(result.path).name) == 16 and result.entries == 4 * 800
    assert saekit.open_index(tmp_path / "run", stores).active.sum() == 4 * 800
    with pytest.raises(DataError, match="reads 2 stores"):
        saekit.index(tmp_path / "run", stores[0])

"""Every reader of files that saekit wrote or that a user gives, and how to reach it: a line
each."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import made_ggufs
import numpy as np
import tiny
import torch
from fuzz.harness import Reader
from fuzz.mutations import digest, of_bytes, of_json, of_lines, of_tensors, of_toml
from fuzz.published import PUBLISHED
from made_runs import Killed
from made_stores import make_rows, write_store
from saekit_cli import app

from saekit.config import read_toml
from saekit.embedded.dequantize import _convert
from saekit.embedded.gguf_header import check_gguf
from saekit.evaluation.models import open_runs
from saekit.harvesting.inputs import check_context
from saekit.harvesting.models import load_model
from saekit.harvesting.run import harvest
from saekit.harvesting.sources import open_data
from saekit.indexing.build import index
from saekit.indexing.reader import read_index
from saekit.store import folder_kinds
from saekit.store.checkpoint import read_checkpoint
from saekit.store.lock import holder
from saekit.store.manifest import Manifest, checksum
from saekit.store.reader import Store, open_store
from saekit.sweeps.grid import read_grid
from saekit.sweeps.run import sweep
from saekit.training.checkpoints import load
from saekit.training.config import TrainConfig
from saekit.training.logging import MetricsFile
from saekit.training.loop import Trainer
from saekit.training.run import TrainRun, train
from saekit.types import canonical_json

ROWS = 96

# -- stores
# --------------------------------------------------------------------------------------------------


def _store_of(folder: Path, **options) -> Path:
    folder.mkdir(parents=True)
    return write_store(folder / "store", ROWS, shard_bytes=1000, **options)


def _whole_store(folder: Path) -> Store:
    """All that is read of a store."""
    store = open_store(folder)
    for split in ("train", "holdout"):
        for batch in store.batches(32, split=split):
            assert batch.x.shape[1] == store.spec.d_in and len(batch.doc_id) == len(batch.x)
        store.labels(split)
    if store.spec.layout != "flat":
        list(store.batches(4, examples=True))
    next(store.batches(16, seed=0, split="train"))
    (
        store.example_at(0),
        store.locate(len(store) - 1),
        store.take(np.arange(3)),
        store.documents_of([0]),
    )
    return store


def _sealed_shard(path: Path) -> None:
    """Give the manifest the size and digest of the shard as it is now: what is checked after these
    is reached."""
    folder = path.parent.parent
    manifest = Manifest.read(folder)
    n = int(path.stem)
    manifest.shards[n] = replace(
        manifest.shards[n], bytes=path.stat().st_size, sha256=digest(path.read_bytes())
    )
    manifest.write(folder)


def _shard(layout: str) -> Reader:
    return Reader(
        make=lambda folder: (
            _store_of(folder, layout=layout, grid=(2, 4) if layout == "grid" else None)
            / "shards"
            / "00000.safetensors"
        ),
        mutate=of_tensors,
        read=lambda path: _whole_store(path.parent.parent),
        after=_sealed_shard,
    )


def of_manifest(data: bytes, rng: random.Random) -> bytes:
    """Wrong, but with the digests and the sum of rows that are right for what is wrong."""
    wrong = of_json(data, rng)
    try:
        value = json.loads(wrong)
        if rng.random() < 0.8:
            value["fingerprint"] = digest(canonical_json(value["spec"]).encode())
            value["rows"] = sum(shard["rows"] for shard in value["shards"])
        if rng.random() < 0.9:
            value["checksum"] = checksum(value)
        return json.dumps(value).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return wrong


# -- checkpoints and runs
# ------------------------------------------------------------------------------------------------

MODELS = {
    "topk": {"latents": 8, "k": 2},
    "jumprelu": {"sparsity": "jumprelu", "latents": 8},
    "gated": {"sparsity": "gated", "latents": 8},
    "matryoshka": {"sparsity": "matryoshka", "latents": 32, "k": 2},
    "pca": {"model": "pca", "latents": 3},
    "kmeans": {"model": "kmeans", "latents": 3},
    "dense": {"model": "dense", "hidden": (6, 3)},
    "vae": {"model": "vae", "latents": 3},
    "conv": {"model": "conv", "channels": (4,)},
    "recurrent": {"model": "recurrent", "latents": 4},
}
SHORT = {"rows": 16, "batch": 4}


def _config(name: str) -> TrainConfig:
    options = MODELS[name]
    return TrainConfig.from_flat(
        options if options.get("model") in ("pca", "kmeans") else {**SHORT, **options}
    )


def _run_of(folder: Path, name: str) -> Path:
    layout = {"recurrent": "sequence", "conv": "grid"}.get(name, "flat")
    store = _store_of(
        folder, layout=layout, grid=(2, 4) if layout == "grid" else None, dtype="float32"
    )
    train(store, folder / "run", config=_config(name))
    return folder / "run"


def _opened_run(run: Path) -> None:
    """As `load`, and as evaluate, compare and inspect open it."""
    checkpoint = read_checkpoint(run)
    model = load(run)
    if model.takes == "rows":
        with torch.no_grad():
            model.encode(make_rows(4, model.d_in))
    open_runs([run], Store(run.parent / "store"), None)
    assert isinstance(checkpoint.config["spec"], dict)


def _indexed(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = _run_of(folder, "topk")
        return Path(index(run, Store(folder / "store")).path) / name

    return make


def _read_index(path: Path) -> None:
    opened = read_index(path.parent)
    assert opened.rows == ROWS and len(opened.shown.top.ptr) == len(opened.active) + 1


def _of_run(name: str, file: str, mutate) -> Reader:
    return Reader(
        lambda folder: _run_of(folder, name) / file, mutate, lambda path: _opened_run(path.parent)
    )


def _killed_run(folder: Path) -> Path:
    """A run of four steps that ended after two, with its state."""
    store = _store_of(folder, dtype="float32")
    run = TrainRun(open_store(store), folder / "run", _config("topk"))

    def dies(self, raw, original=Trainer.train_step):
        if self.step == 2:
            self.save()
            raise Killed
        return original(self, raw)

    original, Trainer.train_step = Trainer.train_step, dies
    try:
        run.execute(False, False, lambda _: None)
    except Killed:
        return folder / "run"
    finally:
        Trainer.train_step = original
    raise AssertionError("the run ended")


def _resumed(run: Path) -> None:
    train(run.parent / "store", run, config=_config("topk"), resume=True)


def _killed(file: str, mutate) -> Reader:
    return Reader(
        lambda folder: _killed_run(folder) / file,
        mutate,
        lambda path: _resumed(path.parents[file.count("/")]),
        fresh=True,
    )


def _metrics(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"step": step, "rows": step * 16, "loss": 1.5, "fvu": 0.5}) for step in range(5)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metrics.jsonl"


def _read_metrics(path: Path) -> None:
    MetricsFile(path, 3).close()
    assert all(json.loads(line)["step"] <= 3 for line in path.read_text().splitlines())


# -- grids, sweeps, config files
# -----------------------------------------------------------------------------------------

GRID = (
    "rows = 64\nbatch = 16\nlatents = 8\nk = [2, 4]\nseed = 0\nlr = 0.001\nschedule ="
    ' "linear"\n[[runs]]\nsparsity = "topk"\n'
)


def _written(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
        return folder / name

    return make


def _swept(folder: Path) -> Path:
    store = _store_of(folder, dtype="float32")
    (folder / "grid.toml").write_text(GRID)
    sweep(store, folder / "sweep", folder / "grid.toml")
    return folder / "sweep"


CONFIG = (
    'model = "sae"\nlatents = 8\nk = 2\nlr = 0.001\nseed = 0\nset = ["revive=aux",'
    ' "aux_coef=0.1"]\nstore = "s"\n'
)


def _read_config(path: Path) -> None:
    known = {"model", "latents", "k", "lr", "seed", "set", "store"}
    settings = read_toml(path, known)
    assert settings.keys() <= known


def _command(*arguments: str) -> Callable[[Path], None]:
    """The command line with a --config file; 1 would be a bug."""

    def read(path: Path) -> None:
        places = {"STORE": path.parent / "store", "OUT": path.parent / "out"}
        status = app._status(
            [str(places.get(each, each)) for each in (*arguments, "--config", path)]
        )
        assert status != 1, "exit 1"

    return read


def _config_of(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _store_of(folder)
        (folder / "options.toml").write_text(text)
        return folder / "options.toml"

    return make


TRAIN = CONFIG.replace('store = "s"\n', "") + 'rows = 64\nbatch = 16\nnormalize = "none"\n'
HARVEST = 'rows = 64\nbatch = 8\ndtype = "float32"\nshard-mb = 1\nlayout = "flat"\nholdout = 0.25\n'

# -- what stands beside a folder
# -----------------------------------------------------------------------------------------


def _exchange(folder: Path) -> Path:
    """A store whose replacement was cut short after it was decided."""
    from saekit.store.swap import Stage

    store = _store_of(folder)
    stage = Stage(store.resolve())
    shutil.copytree(store, stage.new)
    stage.commit.write_text(
        json.dumps({"schema_version": 1, "pairs": [[str(stage.target), 12345]]})
    )
    return stage.commit


def _lock(folder: Path) -> Path:
    store = _store_of(folder)
    (folder / ".store.lock").write_text(json.dumps({"pid": 12, "command": "saekit train"}))
    assert holder(store) is None
    return folder / ".store.lock"


def _named_holder(path: Path) -> None:
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "process" in holder(path.parent / "store")


def _kind(kind: folder_kinds.FolderKind, marker: dict) -> Reader:
    def make(folder: Path) -> Path:
        (folder / "out").mkdir(parents=True)
        return _at(folder / "out" / kind.marker, marker)

    return Reader(
        make, of_json, lambda path: (kind.read_marker(path.parent), kind.sort(path.parent))
    )


def _at(path: Path, marker: dict) -> Path:
    path.write_text(json.dumps({"schema_version": 1, **marker}))
    return path


# -- users' data
# --------------------------------------------------------------------------------------------------


def _array(folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.arange(60, dtype=np.float32).reshape(12, 5))
    return folder / "a.npy"


def _arrays(folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "a.npz", x=np.arange(60, dtype=np.float32).reshape(12, 5), y=np.arange(12))
    return folder / "a.npz"


def _read_array(path: Path) -> None:
    harvest("raw:array", str(path), path.parent / "store", overwrite=True)


def _table(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir(parents=True)
    pa.parquet.write_table(
        pa.table({"text": ["one", "two", "three"] * 4, "label": [0, 1, 2] * 4}),
        folder / "a.parquet",
    )
    return folder / "a.parquet"


def _picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        (folder / "images").mkdir(parents=True)
        path = folder / "images" / f"a{suffix}"
        Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)).save(path)
        return path

    return make


def _documents(modality: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        for number, _ in enumerate(open_data(str(path), modality=modality).documents()):
            if number > 1000:
                break

    return read


# -- models
# --------------------------------------------------------------------------------------------------


def _gguf(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return made_ggufs.write(folder / "a.gguf")


def _read_gguf(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _convert(path, Path(folder))


def _model(
    name: str, mutate: Callable[[bytes, random.Random], bytes], family: str = "gpt2"
) -> Reader:
    def make(folder: Path) -> Path:
        return Path(tiny.save(family, folder / "model")) / name

    def read(path: Path) -> None:
        live = load_model(str(path.parent))
        live.probe(["blocks.0"])
        if live.modality == "text":
            check_context(live, 8, False)

    return Reader(make, mutate, read)


PICTURES = ("png", "jpg", "gif", "bmp", "webp")
LINES = "".join(json.dumps({"text": f"document {n}", "label": n % 3}) + "\n" for n in range(8))
CSV = "text,label\n" + "".join(f'"document, {n}",{n % 3}\n' for n in range(8))

OWN: dict[str, Reader] = {
    "manifest": Reader(
        lambda f: _store_of(f) / "manifest.json",
        of_manifest,
        lambda path: _whole_store(path.parent),
    ),
    "manifest-of-sequences": Reader(
        lambda f: _store_of(f, layout="sequence") / "manifest.json",
        of_manifest,
        lambda path: _whole_store(path.parent),
    ),
    "shard": _shard("flat"),
    "shard-of-sequences": _shard("sequence"),
    "shard-of-grids": _shard("grid"),
    **{f"config-{name}": _of_run(name, "config.json", of_json) for name in MODELS},
    **{f"weights-{name}": _of_run(name, "model.safetensors", of_tensors) for name in MODELS},
    "run.json": _killed("run.json", of_json),
    "train_state": _killed("train_state/state.safetensors", of_tensors),
    "metrics": Reader(_metrics, of_lines, _read_metrics),
    "metrics-of-a-killed-run": _killed("metrics.jsonl", of_lines),
    "index.json": Reader(_indexed("index.json"), of_json, _read_index),
    "index-shown": Reader(_indexed("shown.safetensors"), of_tensors, _read_index),
    "index-features": Reader(_indexed("features.safetensors"), of_tensors, _read_index),
    "sweep.toml": Reader(_written("grid.toml", GRID), of_toml, read_grid),
    "config.toml": Reader(_written("config.toml", CONFIG), of_toml, _read_config),
    "options-of-train": Reader(
        _config_of(TRAIN), of_toml, _command("train", "STORE", "OUT", "--dry-run")
    ),
    "options-of-harvest": Reader(
        _config_of(HARVEST),
        of_toml,
        _command("harvest", "raw:pixels", "embedded:digits", "OUT", "--dry-run"),
    ),
    "exchange": Reader(
        _exchange, of_json, lambda path: _whole_store(path.parent.parent / "store"), fresh=True
    ),
    "lock": Reader(_lock, of_json, _named_holder),
    "gguf-header": Reader(_gguf, of_bytes, check_gguf),
    "model-config": _model("config.json", of_json),
    "model-weights": _model("model.safetensors", of_tensors),
    "model-tokenizer": _model("tokenizer.json", of_json),
    "model-processor": _model("preprocessor_config.json", of_json, "vit"),
    "marker-of-a-store": _kind(
        folder_kinds.STORE,
        {"spec": {}, "plan": {}, "shards": [{"name": "a"}], "complete": True, "extras": ["b"]},
    ),
    "marker-of-a-sweep": _kind(folder_kinds.SWEEP, {"members": ["a", "b"]}),
}
SLOW: dict[str, Reader] = {
    "gguf": Reader(_gguf, of_bytes, _read_gguf),
    "sweep.json": Reader(
        lambda f: _swept(f) / "sweep.json",
        of_json,
        lambda path: sweep(
            path.parent.parent / "store", path.parent, path.parent.parent / "grid.toml", resume=True
        ),
        fresh=True,
    ),
}
DATA: dict[str, Reader] = {
    "npy": Reader(_array, of_bytes, _read_array),
    "npz": Reader(_arrays, of_bytes, _read_array),
    "jsonl": Reader(_written("a.jsonl", LINES), of_lines, _documents("text")),
    "csv": Reader(_written("a.csv", CSV), of_bytes, _documents("text")),
    "txt": Reader(_written("a.txt", "one\n\ntwo\n"), of_bytes, _documents("text")),
    "parquet": Reader(_table, of_bytes, _documents("text")),
    **{
        kind: Reader(_picture(f".{kind}"), of_bytes, lambda path: _documents("image")(path.parent))
        for kind in PICTURES
    },
}
READERS = {**OWN, **SLOW, **DATA, **PUBLISHED}

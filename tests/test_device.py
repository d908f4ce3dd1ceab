"""Models and rows are where the user says, and kernels are launched there."""

from __future__ import annotations

import threading

import pytest
import torch
from batches import batch_of
from made_stores import make_rows, write_store

import saekit
from saekit.device import pick_device
from saekit.errors import BackendError, UsageError
from saekit.models.catalog import build
from saekit.sweeps.run import _one_thread_each
from saekit.training.config import TrainConfig
from saekit.training.fit import on_device
from saekit.training.run import prepare

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
META = torch.device("meta")  # a device that every machine has


@pytest.fixture
def current(monkeypatch):
    """{thread: its current device} of a machine with two GPUs."""
    devices = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: devices.update({threading.get_ident(): device})
    )
    return devices


def test_a_numbered_gpu_becomes_the_current_one(current):
    """Triton launches on the current device, whichever one the tensors are on."""
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu") and current == {}
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert current == {threading.get_ident(): torch.device("cuda:1")}


def test_a_gpu_that_is_not_there_is_refused_by_number(current):
    with pytest.raises(BackendError, match='device="cuda:2": torch sees 2 CUDA devices'):
        pick_device("cuda:2")
    assert current == {}


def test_the_threads_of_a_sweep_use_its_gpu(current):
    thread = threading.Thread(target=_one_thread_each(torch.device("cuda:1")))
    thread.start()
    thread.join()
    assert list(current.values()) == [torch.device("cuda:1")]
    assert threading.get_ident() not in current


def test_a_run_that_was_prepared_elsewhere_uses_its_gpu(current, monkeypatch):
    """Kernels of a step are launched by the thread that executes the run."""
    run = prepare(make_rows(600), config=TrainConfig().with_options({"latents": 32, "k": 4}))
    run.device, before = torch.device("cuda:1"), []

    def fit(*_):
        before.append(dict(current))
        raise KeyboardInterrupt

    def execute():
        with pytest.raises(KeyboardInterrupt):
            run.execute()

    monkeypatch.setattr("saekit.training.run.fit", fit)
    thread = threading.Thread(target=execute)
    thread.start()
    thread.join()
    assert [list(seen.values()) for seen in before] == [[torch.device("cuda:1")]]
    assert threading.get_ident() not in current


def test_a_batch_takes_along_what_a_model_reads():
    x = torch.zeros(3, 4)
    batch = batch_of(x, mask=x[:, 0] > 0, target=x, previous=x, has_previous=x[:, 0] > 0)
    moved = batch.on(META)
    for name in ("x", "mask", "target", "previous", "has_previous"):
        assert getattr(moved, name).device == META, name
    assert moved.doc_id is batch.doc_id and batch.x.device.type == "cpu"


def test_a_model_is_copied_to_a_device_where_it_is_not():
    model = build("sae", 4, {"sparsity": "batchtopk", "latents": 8, "k": 2})
    assert on_device(model, torch.device("cpu")) is model
    copy = on_device(model, META)
    assert {t.device for t in copy.state_dict().values()} == {META}
    assert model.W_enc.device.type == "cpu" and on_device(copy, META) is copy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(checkpoint, store)."""
    folder = tmp_path_factory.mktemp("device")
    store = write_store(folder / "store", 2000)
    saekit.train(store, folder / "run", latents=32, k=4, rows=4096, batch=256)
    return folder / "run", store


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["evaluate", "compare", "inspect"])
def test_every_pass_over_a_store_takes_a_device(verb, trained, tmp_path):
    run, store = trained
    out = {"out": tmp_path / "page"} if verb == "inspect" else {}
    with pytest.raises(BackendError, match='device="cuda": torch sees no CUDA device'):
        getattr(saekit, verb)(run, store, **out, device="cuda")
    with pytest.raises(UsageError, match='device="tpu"'):
        getattr(saekit, verb)(run, store, **out, device="tpu")
    assert not (tmp_path / "page").exists()


def test_figures_on_the_cpu_are_those_of_the_default(trained):
    run, store = trained
    here, default = (saekit.evaluate(run, store, **on)[0] for on in ({"device": "cpu"}, {}))
    assert here.metrics == default.metrics or torch.cuda.is_available()


@pytest.mark.gpu
@needs_gpu
def test_figures_and_pages_on_a_gpu_are_those_of_the_cpu(trained, tmp_path):
    run, store = trained
    rows = make_rows(500)
    for evaluated in (store, rows):
        cpu, cuda = (saekit.evaluate(run, evaluated, device=d)[0] for d in ("cpu", "cuda"))
        for name in ("fvu", "mse", "cosine", "l0", "dead"):
            assert cuda.metrics[name] == pytest.approx(cpu.metrics[name], rel=1e-3), name
    cpu, cuda = (saekit.compare(run, store, device=d).rows for d in ("cpu", "cuda"))
    assert [row.metrics["fvu"] for row in cuda] == pytest.approx(
        [row.metrics["fvu"] for row in cpu], rel=1e-3
    )
    pages = [
        saekit.inspect(run, store, tmp_path / d, device=d, features="all") for d in ("cpu", "cuda")
    ]
    assert pages[0].features == pages[1].features

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# A worker of pytest-xdist has one core, and so do the processes that its tests start; where a test
# asks for more threads, those that wait do not spin. torch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import torch

# Without a CUDA device Triton kernels run in triton's interpreter, which is chosen by this variable
# when triton is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        import interpreted

        interpreted.patch_once()

from made_runs import digits_store
from made_stores import write_store
from torch_threads import torch_threads

from saekit.store.reader import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(write_store(tmp_path / "store"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A store of 400 images of 8x8 pixels with their labels, 100 of them held out."""
    return digits_store(tmp_path_factory.mktemp("digits") / "store")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Sums in one order, in any process."""
    with torch_threads(1):
        yield


@pytest.fixture
def two_threads():
    """For code that runs in parallel only where torch has several threads."""
    with torch_threads(2):
        yield

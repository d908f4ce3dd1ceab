from __future__ import annotations

import pytest
import torch
from made_stores import write_store

from saekit.store.reader import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(write_store(tmp_path / "store"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

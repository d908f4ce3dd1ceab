"""A sweep on the running model: one forward pass for all members, whose rows are those of a store
that holds them."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import WORDS, save

import saekit
from saekit.errors import DataError
from saekit.harvesting.live import LiveSource
from saekit.sweeps.run import sweep

GRID = {"batch": 32, "rows": 3200, "latents": 32, "k": [2, 4]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("live-sweep"), np.random.default_rng(0)
    words = (" ".join(rng.choice(WORDS, rng.integers(5, 31))) for _ in range(60))
    (root / "words.txt").write_text("\n\n".join(words))
    save("llama", root / "llama")
    saekit.harvest(
        str(root / "llama"),
        str(root / "words.txt"),
        root / "store",
        hook="blocks.1",
        ctx=16,
        holdout=0.2,
    )
    return root / "store"


def test_members_learn_from_one_forward_pass(store, tmp_path, monkeypatch):
    passes = []
    original = LiveSource.batches

    def counted(self, *args, **kwargs):
        passes.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LiveSource, "batches", counted)
    live = sweep(store, tmp_path / "live", GRID, live=True)
    assert len(passes) == 1, "the members read the rows together"
    with pytest.raises(DataError, match="live"):
        sweep(store, tmp_path / "live", GRID | {"rows": 3200}, resume=True)
    stored = sweep(store, tmp_path / "stored", GRID)
    for a, b in zip(live.members, stored.members):
        assert a.metrics["l0"] == b.metrics["l0"] and a.metrics["fvu"] == pytest.approx(
            b.metrics["fvu"], rel=0.2
        )
        assert a.metrics["fvu"] != b.metrics["fvu"], "the order of live rows is another one"


def test_neighbours_are_not_to_be_had_live(store, tmp_path):
    flat = {"sparsity": "temporal", "batch": 32, "rows": 3200, "latents": 32, "k": 2}
    with pytest.raises(DataError):
        sweep(store, tmp_path / "out", flat, live=True)

"""The formulas of docs/sizing.md, against files and allocations at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import sizing
import torch
from made_runs import break_off
from made_stores import D, write_store

import saekit
from saekit.store.reader import Store
from saekit.training.config import TrainConfig
from saekit.training.loop import Trainer
from saekit.training.run import prepare

F, BATCH = 96, 64
PAGE = Path(sizing.__file__).with_suffix(".md")
OPTIONS = dict(latents=F, k=4, rows=4 * BATCH, batch=BATCH)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(write_store(tmp_path_factory.mktemp("store") / "acts"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    saekit.train(store.path, folder, **OPTIONS)
    return folder


def header(path) -> int:
    """Bytes of a safetensors file before its tensors."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("float32", 4)])
def test_a_store(tmp_path, dtype, item):
    """The rest is the names of documents and labels, and sums of each shard."""
    path = write_store(tmp_path / "acts", rows=2000, tokens=8, dtype=dtype, width=D)
    shards = sorted((path / "shards").iterdir())
    names = sum(len(f"document {example // 3}") + 1 for example in range(250))
    sums = len(shards) * (16 * D + 24)
    files = sum(file.stat().st_size - header(file) for file in shards)
    rounded = files - sizing.store(2000, D, item, examples=250, tokens=2000) - names - sums
    # where values were rounded, sums of the errors too
    assert rounded in (0, len(shards) * (32 * D + 24))


def test_a_checkpoint_and_its_state(store, run, tmp_path):
    weights = run / "model.safetensors"
    assert weights.stat().st_size - header(weights) == sizing.checkpoint(D, F)
    break_off(store.path, tmp_path / "run", TrainConfig.from_flat(OPTIONS), step=2)
    state = tmp_path / "run" / "train_state" / "state.safetensors"
    size = state.stat().st_size - header(state)
    # and the generator, the mean row, Adam's step counts
    generator = torch.Generator().get_state().numel()
    assert 0 <= size - sizing.train_state(D, F) - generator <= 4 * D + 64


def test_memory_of_training(store, monkeypatch):
    """The dry run says what the formula says; weights, gradients and moments are what it counts."""
    config = TrainConfig.from_flat(OPTIONS)
    assert prepare(store, config=config).plan().memory_bytes == sizing.training(D, F, BATCH)
    allocated: list[int] = []

    def measure(optimizer, *_):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [optimizer.state[p][name] for p in weights for name in ("exp_avg", "exp_avg_sq")]
        arrays = [*weights, *(p.grad for p in weights), *moments]
        allocated.append(sum(t.numel() * t.element_size() for t in arrays))

    def measured(self, raw, original=Trainer.train_step):
        if self.step == 0:
            self.optimizer.register_step_post_hook(measure)
        return original(self, raw)

    monkeypatch.setattr(Trainer, "train_step", measured)
    saekit.train(store, **OPTIONS)
    assert allocated == 4 * [4 * sizing.checkpoint(D, F)]


def test_an_index(store, run):
    result = saekit.index(run, store)
    files = Path(result.path).glob("*.safetensors")
    size = sum(file.stat().st_size - header(file) for file in files)
    shown = result.index.shown
    # fewer rows than 40 and 48 where a latent is active in fewer
    fewer = 88 * F - len(shown.top.row) - len(shown.sample.row)
    ends = 8 * 3  # of offsets by latent, row and label
    contexts = 20 * len(result.index.origin.example_first)
    names = sum(len(name.encode()) + 8 for name in result.index.origin.labels)
    expected = sizing.index(len(store), 4, F) - 8 * fewer + contexts + names
    assert 0 <= size - expected <= ends + 8 * 4


def test_the_text_has_the_constants_of_the_formulas():
    text = PAGE.read_text()
    window = sizing.SHUFFLE_WINDOW
    for number in (sizing.LATENT_OF_INDEX, sizing.CHUNK, window, 2 * window):
        assert f"{number:,}" in text
    assert f"| {sizing.EXAMPLE}, {sizing.TOKEN} per token" in text
    assert f"4 D in float32, and {sizing.ROW} for" in text

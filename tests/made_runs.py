"""Small but real runs on small raw stores, which take seconds on one core."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_stores import make_spec

from saekit.harvesting.run import harvest
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter
from saekit.training.checkpoints import load
from saekit.training.config import TrainConfig
from saekit.training.loop import Trainer
from saekit.training.run import train


def digits_store(path: Path, rows: int | None = 400, holdout: float = 0.25) -> Path:
    """Images of 8x8 pixels with their labels, by default 400, of which 100 are held out. `rows`
    None: all 1,797."""
    harvest("raw:pixels", "embedded:digits", path, rows=rows, holdout=holdout)
    return path


def rows_store(
    path: Path, x_ND: torch.Tensor, labels: list[str | None], holdout: float = 0.25
) -> Path:
    """A store of flat rows, each its own document."""
    spec = make_spec(
        model="raw:array", hook="rows", d_in=x_ND.shape[1], dtype="float32", context=None
    )
    writer = StoreWriter(path, spec, {"rows": len(x_ND), "holdout": holdout}, shard_bytes=1 << 20)
    numbers = torch.arange(len(x_ND))
    examples = [
        StoredExample(i, i, i, 1, None, f"row {i}", label) for i, label in enumerate(labels)
    ]
    writer.append(
        RowBlock(x_ND, numbers, numbers, torch.zeros(len(x_ND), dtype=torch.int32), examples)
    )
    writer.finish()
    return path


def trained(store: Path, out: Path, model: str, **options) -> str:
    rows = {} if model in ("pca", "kmeans") else {"rows": 2000, "batch": 32}
    return train(store, out, model=model, **{**rows, **options}).path


class Killed(Exception):
    pass


def break_off(store: Path, out: Path, config: TrainConfig, step: int) -> None:
    """Train until `step`, save and end, like a run that is killed right after saving."""

    def dies(self, raw, original=Trainer.train_step):
        if self.step == step:
            self.save()
            raise Killed
        return original(self, raw)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Trainer, "train_step", dies)
        train(store, out, config=config)


def side(store: Path, split: str) -> torch.Tensor:
    """(N,D) fp64: all rows of one side of the held-out split."""
    return torch.cat([batch.x for batch in Store(store).batches(4096, split=split)]).double()


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Those of a checkpoint."""
    return load(path).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

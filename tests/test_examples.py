"""The examples run, and the minimal SAE has the loss of the fast path."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from saekit.models.sparsity.topk import TopK
from saekit.training.optim import make_adam, schedule
from saekit.training.step import take_step
from saekit.types import ActivationBatch, Step

FOLDER = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
def test_an_owners_loop_explains_its_rows(sparsity, capsys):
    assert example("own_loop").main(sparsity) < 0.5
    assert "32 -> 128" in capsys.readouterr().out


def test_the_minimal_sae_has_the_losses_of_the_fast_path():
    """By 40 steps on the same batches; they drift apart only by rounding."""
    minimal = example("minimal_sae")
    torch.manual_seed(1)
    x = minimal.normalize(minimal.made_up_rows(2048))
    plain, fast = minimal.MinimalSAE(32, 128, 4), TopK(d_in=32, latents=128, k=4)
    fast.load_state_dict(plain.state_dict())

    steps, batch, optimizer, losses = 40, 128, make_adam(fast, 3e-3), []
    torch.manual_seed(2)
    for step in range(steps):
        rows = x[torch.randint(len(x), (batch,))]
        optimizer.param_groups[0]["lr"] = 3e-3 * schedule(step, steps)
        index = torch.arange(batch)
        losses.append(
            take_step(
                fast, optimizer, ActivationBatch(rows, index, index, index), Step(step, steps)
            ).total.item()
        )
    torch.manual_seed(2)
    assert minimal.train(plain, x, steps, batch) == pytest.approx(losses, rel=1e-6)

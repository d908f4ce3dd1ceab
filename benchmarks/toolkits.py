"""TopK SAEs trained as other toolkits train them (extra `peers`), for benchmarks/field.py.

Each toolkit has two settings. `shipped` is what it does when given only width, k, learning rate,
rows and seed. Its authors might choose otherwise for a run of 200 steps: some of their defaults
count thousands of steps, so that an auxiliary loss for latents silent for 1,000 steps never starts
and a warm-up of 1,000 steps never ends. `scaled` makes these numbers shares of the run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from saekit_kernels import SparseCodes

SHIPPED, SCALED = "shipped", "scaled"
WARMUP_SHARE, DECAY_SHARE, DEAD_SHARE = 0.05, 0.2, 0.1  # of the steps, for `scaled`
RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Task:
    """The run that every toolkit is given."""

    lr: float
    seed: int
    steps: int
    latents: int = 3_072
    k: int = 32
    batch: int = 1_024

    @property
    def rows(self) -> int:
        return self.steps * self.batch


@dataclass(frozen=True)
class PeerModel:
    """A trained autoencoder of raw rows. `code` gives the code of x (B,D) as a tensor (B,F) or
    SparseCodes, active above 0; `decode` its reconstruction (B,D)."""

    code: Callable[[torch.Tensor], torch.Tensor | SparseCodes]
    decode: Callable[[Any], torch.Tensor]

    def reconstruct(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.decode(self.code(x_BD))


@dataclass(frozen=True)
class Setting:
    rates: tuple[float, ...]
    train: Callable[[Iterator[torch.Tensor], int, Task], PeerModel]


def _sae_lens(batches: Iterator[torch.Tensor], d_in: int, task: Task, scaled: bool) -> PeerModel:
    """SAELens' SAETrainer on its TopKTrainingSAE.

    Its choices: raw rows (normalize_activations "none"), decoder rows of norm 0.1 with the encoder
    their transpose and b_dec at 0, codes rescaled by decoder norms that are free, squared error
    summed over D, an auxiliary loss of weight 1 in the same unit for latents silent for 1,000 steps
    (scaled: a tenth of the run), gradients clipped at norm 1, Adam (0.9, 0.999) at a constant rate
    (scaled: with the warm-up over a twentieth and the linear decay to 0 over the last fifth that
    its configuration offers).
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shares = (
        {
            "lr_warm_up_steps": WARMUP_SHARE,
            "lr_decay_steps": DECAY_SHARE,
            "dead_feature_window": DEAD_SHARE,
        }
        if scaled
        else {}
    )
    config = SAETrainerConfig(
        total_training_samples=task.rows,
        train_batch_size_samples=task.batch,
        lr=task.lr,
        # the default of its runner; a constant rate does not use it
        lr_end=task.lr / 10,
        **{name: max(round(share * task.steps), 1) for name, share in shares.items()},
    )
    torch.manual_seed(task.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=task.latents, k=task.k))
    SAETrainer(config, sae, batches).fit()
    return PeerModel(sae.encode, sae.decode)


def _sparsify(batches: Iterator[torch.Tensor], d_in: int, task: Task, adam: bool) -> PeerModel:
    """EleutherAI's SparseCoder, with the steps of its Trainer, which takes a model and tokens
    rather than rows.

    Its choices: raw rows, the encoder as nn.Linear initializes it and the decoder its unit rows,
    b_dec at the mean of the first batch, the fvu of the batch as the loss, no auxiliary loss
    (auxk_alpha 0), unit decoder rows and no gradient along them. Its default optimizer is sign
    descent in the schedule-free wrapper with momentum 0.95, whose averaged weights are the result.
    It also offers Adam, with a warm-up of 1,000 steps (here a twentieth of the run) and a linear
    decay to 0 over the rest.
    """
    if not torch.cuda.is_available():
        # its kernels need a GPU; it then uses embedding_bag
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(task.seed)
    coder = SparseCoder(
        d_in, SparseCoderConfig(num_latents=task.latents, k=task.k), dtype=torch.float32
    )
    optimizer, schedule = _adam(coder, task) if adam else (_signum(coder, task), None)
    for step in range(task.steps):
        x_BD = next(batches)
        if step == 0:
            coder.b_dec.data = x_BD.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        coder(x_BD).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    if not adam:
        optimizer.eval()  # swaps the weights for their average

    def code(x_BD: torch.Tensor) -> torch.Tensor:
        acts_BK, latents_BK, pre_BF = coder.encode(x_BD)
        return torch.zeros_like(pre_BF).scatter_(1, latents_BK, acts_BK)

    return PeerModel(code, lambda code_BF: code_BF @ coder.W_dec + coder.b_dec)


def _signum(coder: torch.nn.Module, task: Task) -> Any:
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=task.lr), momentum=0.95)
    optimizer.train()
    return optimizer


def _adam(
    coder: torch.nn.Module, task: Task
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.Adam(coder.parameters(), lr=task.lr)
    warmup = max(round(WARMUP_SHARE * task.steps), 1)
    # As transformers' get_linear_schedule_with_warmup, which its Trainer calls: rate 0 at the first
    # step.
    factor = lambda step: (
        step / warmup if step < warmup else (task.steps - step) / max(task.steps - warmup, 1)
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


SETTINGS: dict[str, dict[str, Setting]] = {
    "sae-lens": {
        SHIPPED: Setting(RATES, functools.partial(_sae_lens, scaled=False)),
        SCALED: Setting(RATES, functools.partial(_sae_lens, scaled=True)),
    },
    "eai-sparsify": {
        # Its default rate at this width is 5e-3 / sqrt(3,072 / 2^14) = 1.15e-2.
        SHIPPED: Setting((3e-3, 6e-3, 1.15e-2), functools.partial(_sparsify, adam=False)),
        SCALED: Setting(RATES, functools.partial(_sparsify, adam=True)),
    },
}
"""By the names of saekit.bench.peers.PEERS."""


def train_peer(
    name: str, setting: str, batches: Iterator[torch.Tensor], d_in: int, task: Task
) -> tuple[PeerModel, float]:
    """(model, rows/s) of a toolkit on raw fp32 rows (B,D). The time includes loading rows, not
    building the model and its optimizer."""
    began = 0.0

    def timed() -> Iterator[torch.Tensor]:
        nonlocal began
        began = time.monotonic()
        yield from batches

    with contextlib.redirect_stdout(sys.stderr):  # stdout may be read by a program
        model = SETTINGS[name][setting].train(timed(), d_in, task)
    return model, task.rows / (time.monotonic() - began)

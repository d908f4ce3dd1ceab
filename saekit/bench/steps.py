"""The steps that are measured against one another, each on a copy of one model: loss, gradients,
projection, Adam, unit norm; no loading."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable

import torch
from saekit_kernels import Workspaces

from saekit.bench.peers import STEPS
from saekit.bench.reference import dense_copy
from saekit.models.sae import SAE
from saekit.training.optim import make_adam
from saekit.training.step import apply_gradients, take_step
from saekit.types import ActivationBatch, LossTerms, Step

RATE = 1e-5  # small, so that L0 stays what it was made to be


class Arm:
    """One implementation of a step; each call does one."""

    def __init__(self, model: SAE | None, step: Callable[[], object]) -> None:
        self.model, self.step = model, step
        self.last: object = None
        """What the last step returned."""

    def __call__(self) -> object:
        self.last = self.step()
        return self.last

    def drop_buffers(self) -> None:
        """Release what the model keeps from step to step, so that the next step allocates it
        again."""
        if self.model is not None:
            self.model.workspaces = Workspaces()


def batch_of(x_BD: torch.Tensor) -> ActivationBatch:
    """Rows in the order of one document: each has the row before it, except the first."""
    index = torch.arange(len(x_BD), device=x_BD.device)
    return ActivationBatch(
        x_BD, index, index, index, previous=x_BD.roll(1, 0), has_previous=index > 0
    )


def _numbers() -> itertools.count[int]:
    """Steps of a run whose schedules have ended: they are shares of a total of 0."""
    return itertools.count(1)


def saekit_step(
    model: SAE, batch: ActivationBatch, backend: str = "torch", plan: str = "auto"
) -> Arm:
    """The step of `saekit train`; the sparse path, on a device."""
    twin, numbers = copy.deepcopy(model), _numbers()
    twin.path = "sparse"
    optimizer = make_adam(twin, RATE)

    def step() -> LossTerms:
        number = next(numbers)
        return take_step(twin, optimizer, batch, Step(number, backend=backend, encoder_plan=plan))

    return Arm(twin, step)


def dense_step(model: SAE, batch: ActivationBatch, compiled: bool = False) -> Arm:
    """The same by dense autograd and torch's fused Adam, on a device in bf16 autocast."""
    twin, numbers = dense_copy(model), _numbers()
    optimizer = torch.optim.Adam(twin.parameters(), lr=RATE, fused=True)
    if compiled:
        torch._dynamo.reset()  # else it gives up compiling after eight cases
        twin.loss_of = torch.compile(twin.loss_of, mode="max-autotune-no-cudagraphs")
    cast = torch.autocast("cuda", torch.bfloat16) if batch.x.is_cuda else contextlib.nullcontext()

    def step() -> LossTerms:
        with cast:
            terms = twin.loss(batch, Step(next(numbers)))
        apply_gradients(twin, optimizer, terms)
        return terms

    return Arm(twin, step)


def peer_step(peer: str, model: SAE, batch: ActivationBatch) -> Arm:
    """That of another toolkit, for topk."""
    return Arm(None, STEPS[peer](model, batch.x, model.config.k, RATE))


def floor_step(model: SAE, batch: ActivationBatch) -> Arm:
    """The least that an exact step could do: one encoder product, in bf16 on a device and in fp32
    on a CPU, and Adam on existing gradients."""
    twin = copy.deepcopy(model)
    optimizer = make_adam(twin, RATE)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    dtype = torch.bfloat16 if batch.x.is_cuda else torch.float32
    x, W_DF = batch.x.to(dtype), twin.W_enc.detach().to(dtype).T
    pre = x.new_empty(len(x), model.latents)

    def step() -> None:
        torch.mm(x, W_DF, out=pre)
        optimizer.step()

    return Arm(twin, step)

"""`recurrent`: an autoencoder that reads a sequence into one vector and writes it out again.

Reader: a GRU or LSTM; its state after the last valid step, mapped linearly, is the code. Writer: a
second one, which starts from a state computed from the code and gets the code as input at every
step (Cho et al. 2014, arXiv 1406.1078, section 2.2), not its own last output: nothing is fed back,
so training and inference are the same computation.

Sequences are (B,T,D) with a mask (B,T), True for the steps and False for the padding after them. A
state depends only on earlier steps, so padding does not reach the code, nor the gradient, since the
loss ignores it. Flat rows of images (H,W,C) are read from top to bottom, one row of pixels per
step.

Shapes: B sequences, T steps, D width of a step, F latents, L layers, S state of a cell (`width`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from einops import rearrange
from torch import nn

from saekit.errors import DataError, UsageError, opt
from saekit.models.autoencoder import as_batch
from saekit.models.classic import Classic, ClassicConfig
from saekit.models.codes import Code
from saekit.models.noise import step_generator
from saekit.options import Doc
from saekit.types import FIRST, ActivationBatch, LossTerms, Output, Step, Takes

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class RecurrentConfig(ClassicConfig):
    shape: tuple[int | None, ...] = ()
    """(T,D) of one sequence, T None where lengths differ and d_in D; or (H,W,C) of flat rows, d_in
    H*W*C."""
    cell: Annotated[Literal["gru", "lstm"], Doc("Kind of recurrent cell.")] = "gru"
    width: Annotated[int, Doc("Size of the hidden state.")] = 128
    layers: Annotated[int, Doc("Stacked layers, in encoder and decoder alike.")] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", tuple(self.shape))
        for option, value in (("width", self.width), ("layers", self.layers)):
            if value < 1:
                raise UsageError(f"{opt(option, value)} must be at least 1")
        if self.is_image and self.d_out % self.shape[0]:
            raise DataError(
                f"rows of width {self.d_out} in the target store are not images of {self.shape[0]}"
                " rows of pixels"
            )
        if not self.is_image and (len(self.shape) != 2 or self.shape[1] != self.d_in):
            raise DataError(
                f"recurrent takes sequences or images; these rows of width {self.d_in} are neither",
                f"harvest with {opt('layout', 'sequence')}, or raw:pixels",
            )

    @property
    def is_image(self) -> bool:
        """Whether examples are flat rows (B,H*W*C), not (B,T,D)."""
        return len(self.shape) == 3 and self.d_in == self.shape[0] * self.shape[1] * self.shape[2]


class Recurrent(Classic):
    takes: ClassVar[Takes] = "sequence"
    gain = 1.0  # a state's weights of variance 1 / S keep its size over the steps

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.steps = config.shape[0]  # of every sequence; None: lengths differ
        per_row = self.steps if config.is_image and self.steps else 1
        # an LSTM has a memory beside its state
        cell, states = CELLS[config.cell], 2 if config.cell == "lstm" else 1
        self.reader = cell(self.d_in // per_row, config.width, config.layers, batch_first=True)
        self.into = nn.Linear(config.width, self.latents)
        self.start = nn.Linear(self.latents, states * config.layers * config.width)
        self.writer = cell(self.latents, config.width, config.layers, batch_first=True)
        self.outlet = nn.Linear(config.width, self.d_out // per_row)

    # -- the body

    @property
    def example_shape(self) -> tuple[int | None, ...]:
        return (self.d_in,) if self.config.is_image else (None, self.d_in)

    def numbers_per_row(self) -> int:
        """States and gates of both cells over the steps; 128 steps are assumed for sequences of
        unknown length."""
        gates = 6 if self.config.cell == "gru" else 8
        return (self.steps or 128) * (
            2 * gates * self.config.layers * self.config.width + 2 * self.d_in
        )

    def to_code(self, x: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BTD = rearrange(x, "B (T D) -> B T D", T=self.steps) if self.config.is_image else x
        states_BTS, _ = self.reader(x_BTD)
        if mask_BT is None:
            return self.into(states_BTS[:, -1])
        last = mask_BT.sum(1) - 1
        return self.into(states_BTS[torch.arange(len(last), device=last.device), last])

    def from_code(self, z: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """(B,T,D), or (B,H*W*C) of images. Raises ValueError when T is neither given nor fixed by
        the data."""
        T = self._length(steps)
        states_BTS, _ = self.writer(z[:, None].expand(-1, T, -1), self._first_state(z))
        a_BTD = self.outlet(states_BTS)
        return a_BTD.flatten(1) if self.config.is_image else a_BTD

    def _first_state(self, z_BF: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The writer's state before the first step, (L,B,S); for an LSTM also its memory. States,
        unlike memory, are in [-1, 1]."""
        states = rearrange(
            self.start(z_BF), "B (k L S) -> k L B S", L=self.config.layers, S=self.config.width
        ).contiguous()
        return (states[0].tanh(), states[1]) if self.config.cell == "lstm" else states[0].tanh()

    def leaving_norms(self) -> torch.Tensor:
        return torch.cat([self.start.weight, self.writer.weight_ih_l0]).norm(dim=0)

    @torch.no_grad()
    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """As every classic model; forget gates of an LSTM start open, with bias 1 (Jozefowicz et
        al. 2015, "An empirical exploration of recurrent network architectures")."""
        super().initialise_from(sample, generator)
        if self.config.cell == "lstm":
            S = self.config.width
            for net in (self.reader, self.writer):
                for layer in range(self.config.layers):
                    getattr(net, f"bias_ih_l{layer}")[S : 2 * S] = 1.0

    # -- the map

    def encode(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(..., F) of x (..., T, D), `mask` (..., T); or of flat images (..., H*W*C)."""
        rows = self.normalized(x)
        if mask is not None:
            mask = mask.reshape(len(rows), -1)
        code = (
            self.code_activation(self.to_code(rows, mask))
            if len(rows)
            else rows.new_zeros(0, self.latents)
        )
        return code.view(*self.leading(x), self.latents)

    def decode(self, code: Code, steps: int | None = None) -> torch.Tensor:
        """(..., F) -> (..., steps, D), by default with the length of the data. Raises ValueError
        when lengths differ and none is given."""
        z_BF = self.code_rows(code)
        if not len(z_BF):  # torch's cells refuse to run on nothing
            shape = (self.d_out,) if self.config.is_image else (self._length(steps), self.d_out)
            return z_BF.new_zeros(*code.shape[:-1], *shape)
        return self.raw_output(self.from_code(z_BF, steps), code)

    def _length(self, steps: int | None) -> int:
        T = self.steps if steps is None else steps
        if T is None:
            raise ValueError(
                "sequences of this model differ in length: say how many steps to write,"
                " decode(code, steps=...)"
            )
        return T

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Output:
        """x_hat has the length of x; its values in the padding are meaningless."""
        z = self.encode(x, mask)
        return Output(self.decode(z, self._steps_of(x)), z)

    def _steps_of(self, x: torch.Tensor) -> int | None:
        return self.steps if self.config.is_image else x.shape[-2]

    # -- training

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        """As Classic.loss, with the mask for the reader and the length for the writer."""
        batch, step = as_batch(batch), self.at(step)
        noisy = self.noise(batch.x, step_generator(step.seed, step.number, batch.x.device))
        z, terms, weights = self.penalised(self.code_activation(self.to_code(noisy, batch.mask)))
        return self.judged(self.from_code(z, self._steps_of(batch.x)), z, batch, terms, weights)

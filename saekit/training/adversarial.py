"""A step of two players: first only the discriminator, then only the generator, each with an
optimizer of its own (saekit.models.adversarial.players)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from saekit.models.adversarial.players import Side, TwoPlayers, as_two_players, both
from saekit.models.autoencoder import Autoencoder
from saekit.training.config import TrainConfig
from saekit.training.optim import adam_of, adam_tensors, restore_adam
from saekit.types import ActivationBatch, LossTerms, Step

MEMORY = 0.05  # weight of a step in the mean of how often the discriminator is right


class Players:
    """The optimizers of both sides of a model."""

    def __init__(self, model: Autoencoder, lr: float, config: TrainConfig) -> None:
        self.model: TwoPlayers = as_two_players(model)
        self.optimizers: dict[Side, torch.optim.Adam] = {}
        self.names: dict[Side, list[str]] = {}
        self._told_apart: torch.Tensor | None = None
        sides: tuple[Side, ...] = ("discriminator", "generator")
        for side in sides:
            named = self.model.side(side)
            self.names[side] = [name for name, _ in named]
            self.optimizers[side] = adam_of(
                named, lr, (self.model.beta1, config.beta2), config.weight_decay or 0.0
            )

    def set_rate(self, lr: float) -> None:
        """The generator's rate; the discriminator's is a multiple of it (two time scales: Heusel et
        al. 2017, arXiv 1706.08500)."""
        rates = {"generator": 1.0, "discriminator": self.model.discriminator_rate}
        for side, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = lr * rates[side]

    def clear(self) -> None:
        """Forget all moments."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Moments and step counts of both, as saekit.training.optim.adam_tensors."""
        return {
            name: tensor
            for side, optimizer in self.optimizers.items()
            for name, tensor in adam_tensors(optimizer, self.names[side]).items()
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undoes `tensors`. Raises ValueError."""
        for side, optimizer in self.optimizers.items():
            restore_adam(optimizer, self.names[side], tensors)

    def step(
        self,
        batch: ActivationBatch,
        step: Step,
        clip: float | None,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> LossTerms:
        """Both phases on one normalized batch. `precision` is that of the forward passes."""
        with self.model.moving("discriminator"):
            with precision():
                first = self.model.discriminator_loss(batch, step)
            self._descend("discriminator", first, clip)
        with self.model.moving("generator"):
            with precision():
                second = self.model.generator_loss(batch, step)
            self._descend("generator", second, clip)
        right = first.metrics["told_apart"]
        before = right if self._told_apart is None else self._told_apart
        self._told_apart = torch.lerp(before, right, MEMORY)
        return both(first, second)

    @property
    def told_apart(self) -> float:
        """Share of rows that the discriminator was right about, mean over the last some 1 / MEMORY
        steps of this process. Waits for the device."""
        return 0.0 if self._told_apart is None else float(self._told_apart)

    def _descend(self, side: Side, terms: LossTerms, clip: float | None) -> None:
        terms.total.backward()
        optimizer = self.optimizers[side]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

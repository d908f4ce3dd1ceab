"""An exponential average of the weights, which a run may save in place of its last ones (Polyak and
Juditsky 1992; Morales-Brotons et al. 2024, arXiv 2411.18704): the noise of the last steps averages
out, as it also does when the learning rate decays.

    a_t = a_{t-1} + (w_t - a_{t-1}) (1 - d) / (1 - d^t)

is sum_i d^{t-i} w_i / sum_i d^{t-i}: the average d a + (1 - d) w from a_0 = 0, divided by 1 - d^t
as in Adam, so that a run of a few steps is not pulled towards its first weights.
torch.optim.swa_utils starts from the first weights instead, and keeps a copy of the whole module
with its workspaces; here only tensors are kept. The average of a constant tensor has the same bits.

All floating-point tensors of the state dict are averaged, including thresholds and running means;
other tensors are those of the last step.
"""

from __future__ import annotations

import torch

from saekit.models.autoencoder import Autoencoder


class Average:
    """`decay` is the d above, in (0, 1); `count` is the number of steps averaged, `tensors` the
    average, empty before the first step."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.tensors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Include the current weights. They are looked up at each step, since fused steps write
        them in place."""
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if self.count == 1:
                self.tensors[name] = value.clone()
            else:
                self.tensors[name].lerp_(value, weight)

    def restore(self, count: int, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from a saved average; its tensors are on the device of the model."""
        self.count, self.tensors = count, tensors

    @torch.no_grad()
    def put_into(self, model: Autoencoder) -> None:
        """The model's weights become the average, projected onto their constraints, which a mean of
        weights violates: unit rows above all."""
        if self.count:
            model.load_state_dict(model.state_dict() | self.tensors)
            model.after_step()

"""An exponential average of the weights, which a run may save in place of its last ones (Polyak and
Juditsky 1992; Morales-Brotons et al. 2024, arXiv 2411.18704): the noise of the last steps averages
out, as it also does when the rate falls.

    a_t = a_{t-1} + (w_t - a_{t-1}) (1 - d) / (1 - d^t)

is sum_i d^{t-i} w_i / sum_i d^{t-i}: the average d a + (1 - d) w from a_0 = 0, divided by 1 - d^t
as Adam does, so that a run of a few steps is not drawn to its beginning. torch.optim.swa_utils
starts from the first weights instead, and keeps a copy of the module, workspaces included; here it
is tensors alone. What never moves is averaged to its own bits.

All floating tensors of the state dict take part, thresholds and running means too; what is not a
number of that kind is the run's own.
"""

from __future__ import annotations

import torch


class Average:
    """`decay` is the d above, in (0, 1); `count` says how many steps are in it, `tensors` hold it
    once there is one."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.tensors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Take in the weights as they are. They are looked up anew each step: fused steps write
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
        """As saved; the tensors on the device of the model."""
        self.count, self.tensors = count, tensors

    @torch.no_grad()
    def put_into(self, model: torch.nn.Module) -> None:
        """The model's weights become the average, brought back to the constraints that a mean of
        weights leaves: unit rows above all."""
        if self.count:
            model.load_state_dict(model.state_dict() | self.tensors)
            model.after_step()

"""The nodes of an attribution, and the passes that measure them.

A node is a latent at a position of a hook, or the whole error x - x_hat there. The model runs with

    x' = x + [decode(s z) + s e] - [decode(z) + e]

at each hook, where z and e are the code and error of the clean pass: leaves of autograd, for which
`Passes.gradients` is the only place that computes gradients. At s = 1 these are the clean states,
and gradients flow through every hook to the ones before it. For an ablation, code and error are
those of the pass that is running, so that what an ablation changes later in the model is included.

Shapes: B examples, T positions, N = B T, D width, F latents, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from saekit.harvesting.hooks import capture
from saekit.harvesting.models import LiveModel
from saekit.intervention.splice import splice
from saekit.models.autoencoder import Autoencoder
from saekit.models.sae.dictionary import Dictionary

EXAMPLES = 16  # of a pass of integrated gradients
CODE_NUMBERS = 2**24  # of the dense codes of one pass: 64 MB


@dataclass(frozen=True)
class Node:
    hook: str
    position: int
    index: int | None
    """A latent; None: the error."""


@dataclass(frozen=True)
class Keep:
    """Which nodes an ablation keeps; all others are 0."""

    nodes: Sequence[Node] = ()
    only: bool = False
    """True: only `nodes`; False: all but these."""
    errors: bool = False
    """Whether all error nodes are kept in any case."""

    def masks(self, hook: str, positions: int, latents: int) -> tuple[torch.Tensor, torch.Tensor]:
        """((T,F), (T,1)) bool: the latents and the errors that are kept."""
        codes_TF = torch.full((positions, latents), not self.only)
        errors_T1 = torch.full((positions, 1), self.errors or not self.only)
        for node in self.nodes:
            if node.hook != hook:
                continue
            if node.index is not None:
                codes_TF[node.position, node.index] = self.only
            elif not self.errors:
                errors_T1[node.position] = self.only
        return codes_TF, errors_T1


class Passes:
    """Passes of one input through a model with dictionaries at its hooks.

    live: the model. inputs: of one example. models: hook -> dictionary.
    metric: logits (B,T,V) or (B,V) -> (B,), what is explained.
    """

    def __init__(
        self,
        live: LiveModel,
        inputs: Mapping[str, torch.Tensor],
        models: Mapping[str, Autoencoder],
        metric: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.live, self.inputs, self.models, self.metric = live, inputs, models, metric
        with torch.no_grad(), capture(live, list(models)) as states:
            self.clean = float(self._value(1))
        self.x = {hook: _exact(states[hook][0], model) for hook, model in models.items()}
        with torch.no_grad():
            self.z = {hook: model.encode(self.x[hook]).to_dense() for hook, model in models.items()}
            self.e = {hook: self.x[hook] - self._x_hat(hook) for hook in models}

    @property
    def positions(self) -> int:
        return len(next(iter(self.x.values())))

    def _x_hat(self, hook: str) -> torch.Tensor:
        return reconstruction(self.models[hook], self.z[hook], self.x[hook])

    def gradients(
        self, hooks: Sequence[str], share: float = 1.0, positions: Sequence[int] | None = None
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """hook -> (T,F), (T,D): the derivatives of the metric with respect to code and error.

        positions None: at the clean pass, of all positions. Else of these, each in an example of
        its own, in which code and error of this position are `share` times the clean ones; rows of
        other positions are 0.
        """
        leaves = {
            hook: [(share * part[hook]).requires_grad_() for part in (self.z, self.e)]
            for hook in hooks
        }
        T = self.positions
        examples = 1 if positions is None else len(positions)
        at = torch.arange(T) if positions is None else torch.tensor(list(positions))
        rows = at if positions is None else torch.arange(examples) * T + at

        def moved(hook: str, x_ND: torch.Tensor) -> torch.Tensor:
            clean_TD = self.x[hook]
            chosen, into = at.to(clean_TD.device), rows.to(clean_TD.device)
            z_PF, e_PD = (leaf[chosen] for leaf in leaves[hook])
            new_PD = reconstruction(self.models[hook], z_PF, clean_TD[chosen]) + e_PD
            exact_ND = x_ND.to(clean_TD.dtype)
            return exact_ND.index_add(0, into, new_PD - clean_TD[chosen])

        with torch.enable_grad(), splice(self.live, {h: partial(moved, h) for h in hooks}):
            value = self._value(examples).sum()
        flat = torch.autograd.grad(value, [leaf for pair in leaves.values() for leaf in pair])
        return dict(zip(hooks, zip(flat[::2], flat[1::2])))

    def effects(self, steps: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """hook -> (T,F), (T,): the effect of each latent and each error.

        steps None: gradient x activation, at all hooks in one pass. Else integrated gradients from
        0 to the code and the error of a position, position by position and hook by hook, by the
        midpoint rule with so many steps.
        """
        if steps is None:
            return {
                hook: self._times_value(hook, *parts)
                for hook, parts in self.gradients(list(self.models)).items()
            }
        effects = {}
        for hook in self.models:
            means = [torch.zeros_like(self.z[hook]), torch.zeros_like(self.e[hook])]
            for first in range(0, self.positions, EXAMPLES):
                some = range(first, min(first + EXAMPLES, self.positions))
                for step in range(steps):
                    parts = self.gradients([hook], (step + 0.5) / steps, some)[hook]
                    means = [mean + part / steps for mean, part in zip(means, parts)]
            effects[hook] = self._times_value(hook, *means)
        return effects

    def _times_value(
        self, hook: str, by_code_TF: torch.Tensor, by_error_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return by_code_TF * self.z[hook], (by_error_TD * self.e[hook]).sum(1)

    @torch.no_grad()
    def ablated(self, keeps: Sequence[Keep]) -> list[float]:
        """The metric with each set of nodes kept."""
        widest = max(model.latents for model in self.models.values())
        size = max(CODE_NUMBERS // (widest * self.positions), 1)
        values: list[float] = []
        for first in range(0, len(keeps), size):
            some = keeps[first : first + size]
            changes = {
                hook: partial(_kept, model, *self._masks(hook, some))
                for hook, model in self.models.items()
            }
            with splice(self.live, changes):
                values += self._value(len(some)).tolist()
        return values

    def _masks(self, hook: str, keeps: Sequence[Keep]) -> tuple[torch.Tensor, torch.Tensor]:
        """((N,F), (N,1)) of several examples."""
        latents = self.models[hook].latents
        masks = [keep.masks(hook, self.positions, latents) for keep in keeps]
        codes, errors = (torch.cat(part).to(self.x[hook].device) for part in zip(*masks))
        return codes, errors

    def _value(self, examples: int) -> torch.Tensor:
        """(B,): the metric of a pass over so many copies of the input."""
        inputs = {
            name: value.expand(examples, *value.shape[1:]) for name, value in self.inputs.items()
        }
        logits = self.live.forward(inputs).logits
        return self.metric(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def reconstruction(model: Autoencoder, z_NF: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
    """The reconstruction of rows x with the code z."""
    x_hat_ND = model.decode(z_NF)
    return model.restored(x_hat_ND, x_ND) if isinstance(model, Dictionary) else x_hat_ND


def _exact(x: torch.Tensor, model: Autoencoder) -> torch.Tensor:
    """In the dtype of the dictionary, at least fp32."""
    weights = [value.dtype for value in model.state_dict().values() if value.is_floating_point()]
    return x.to(torch.promote_types(weights[0], torch.float32))


def _kept(
    model: Autoencoder, codes_NF: torch.Tensor, errors_N1: torch.Tensor, x_ND: torch.Tensor
) -> torch.Tensor:
    exact_ND = _exact(x_ND, model)
    z_NF = model.encode(exact_ND).to_dense()
    error_ND = exact_ND - reconstruction(model, z_NF, exact_ND)
    new_ND = reconstruction(model, z_NF * codes_NF, exact_ND) + error_ND * errors_N1
    # rows without a change keep their bits
    same = errors_N1 & (codes_NF | (z_NF == 0)).all(1, keepdim=True)
    return torch.where(same, x_ND.to(new_ND.dtype), new_ND)

"""The nodes of an attribution, and the passes that measure them.

A node is a latent of a dictionary at a position, or the whole error y - y_hat there, where y is the
state that the dictionary writes to. The model runs with

    y' = y + [decode(s z) + s e] - [decode(z) + e]

at each dictionary's outputs, where z and e are the code and error of the clean pass: leaves of
autograd, for which `Passes.gradients` is the only place that computes gradients. At s = 1 these are
the clean states, and gradients flow through every dictionary to the ones before it.

For an ablation, code and error are those of the pass that is running, so that what an ablation
changes later in the model is included. A dictionary that writes to several hooks has a code that is
known only after the last of them: there they are those of the clean pass, as for `attach`.

Shapes: B examples, T positions, N = B T, D width, F latents, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
class Place:
    """A dictionary in the model: its code is of the states at `inputs`, side by side, and it
    reconstructs those at `outputs`, of these widths. An autoencoder's are the same hook."""

    model: Autoencoder
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def name(self) -> str:
        """The hooks that it writes to."""
        return "+".join(self.outputs)

    @property
    def reads_elsewhere(self) -> bool:
        return self.inputs != self.outputs

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of the dictionary, at least fp32."""
        weights = [v.dtype for v in self.model.state_dict().values() if v.is_floating_point()]
        return x.to(torch.promote_types(weights[0], torch.float32))

    def reconstruction(self, z_NF: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        """Of rows x at the inputs with the code z."""
        y_hat_ND = self.model.decode(z_NF)
        return (
            self.model.restored(y_hat_ND, x_ND) if isinstance(self.model, Dictionary) else y_hat_ND
        )


@dataclass(frozen=True)
class Node:
    hook: str
    """The name of its place."""
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

    def masks(
        self, hook: str, count: int, positions: list[int], latents: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """((T,F), (T,1)) bool: the latents and the errors that are kept at `count` positions, of
        which only `positions` have nodes."""
        codes_TF, errors_T1 = (torch.ones(count, size).bool() for size in (latents, 1))
        codes_TF[positions] = not self.only
        errors_T1[positions] = self.errors or not self.only
        for node in self.nodes:
            if node.hook != hook:
                continue
            if node.index is not None:
                codes_TF[node.position, node.index] = self.only
            elif not self.errors:
                errors_T1[node.position] = self.only
        return codes_TF, errors_T1


class Passes:
    """Passes of one input through a model with dictionaries in it.

    live: the model. inputs: of one example. places: by name.
    metric: logits (B,T,V) or (B,V) -> (B,), what is explained.
    """

    def __init__(
        self,
        live: LiveModel,
        inputs: Mapping[str, torch.Tensor],
        places: Sequence[Place],
        metric: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.live, self.inputs, self.metric = live, inputs, metric
        self.places = {place.name: place for place in places}
        hooks = {hook for place in places for hook in (*place.inputs, *place.outputs)}
        with torch.no_grad(), capture(live, sorted(hooks)) as states:
            self.clean = float(self._value(1))
        self.x, self.y, self.z, self.e = ({} for _ in range(4))
        with torch.no_grad():
            for name, place in self.places.items():
                x, y = (
                    place.exact(torch.cat([states[hook][0] for hook in hooks], -1))
                    for hooks in (place.inputs, place.outputs)
                )
                self.x[name], self.y[name] = x, y
                self.z[name] = place.model.encode(x).to_dense()
                self.e[name] = y - place.reconstruction(self.z[name], x)
        self.count = len(next(iter(self.x.values())))
        """Positions of the input, T."""
        self.positions = list(range(self.count))
        """Those that have nodes; at all others the model runs as it is."""

    def gradients(
        self, names: Sequence[str], share: float = 1.0, positions: Sequence[int] | None = None
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """name -> (T,F), (T,D): the derivatives of the metric with respect to code and error.

        positions None: at the clean pass, of all positions. Else of these, each in an example of
        its own, in which code and error of this position are `share` times the clean ones; rows of
        other positions are 0.
        """
        leaves = {
            name: [(share * part[name]).requires_grad_() for part in (self.z, self.e)]
            for name in names
        }
        T = self.count
        examples = 1 if positions is None else len(positions)
        at = torch.arange(T) if positions is None else torch.tensor(list(positions))
        rows = at if positions is None else torch.arange(examples) * T + at

        def change(name: str) -> torch.Tensor:
            """(P,D): y' - y of the positions that move."""
            chosen = at.to(self.x[name].device)
            z_PF, e_PD = (leaf[chosen] for leaf in leaves[name])
            y_hat_PD = self.places[name].reconstruction(z_PF, self.x[name][chosen])
            return y_hat_PD + e_PD - self.y[name][chosen]

        def moved(place: Place, part: int, y_ND: torch.Tensor) -> torch.Tensor:
            part_PD = changes[place.name].split(place.widths, 1)[part]
            return place.exact(y_ND).index_add(0, rows.to(y_ND.device), part_PD)

        with torch.enable_grad():
            changes = {name: change(name) for name in names}
            with splice(self.live, self._at_outputs(moved, names)):
                value = self._value(examples).sum()
        flat = torch.autograd.grad(value, [leaf for pair in leaves.values() for leaf in pair])
        return dict(zip(names, zip(flat[::2], flat[1::2])))

    def effects(self, steps: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """name -> (T,F), (T,): the effect of each latent and each error.

        steps None: gradient x activation, of all dictionaries in one pass. Else integrated
        gradients from 0 to the code and the error of a position, position by position and
        dictionary by dictionary, by the midpoint rule with so many steps. 0 at positions without
        nodes.
        """
        if steps is None:
            return {
                name: self._times_value(name, *parts)
                for name, parts in self.gradients(list(self.places)).items()
            }
        effects = {}
        for name in self.places:
            means = [torch.zeros_like(self.z[name]), torch.zeros_like(self.e[name])]
            for first in range(0, len(self.positions), EXAMPLES):
                some = self.positions[first : first + EXAMPLES]
                for step in range(steps):
                    parts = self.gradients([name], (step + 0.5) / steps, some)[name]
                    means = [mean + part / steps for mean, part in zip(means, parts)]
            effects[name] = self._times_value(name, *means)
        return effects

    def _times_value(
        self, name: str, by_code_TF: torch.Tensor, by_error_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes_TF, errors_T = by_code_TF * self.z[name], (by_error_TD * self.e[name]).sum(1)
        outside = [at for at in range(self.count) if at not in self.positions]
        codes_TF[outside], errors_T[outside] = 0, 0
        return codes_TF, errors_T

    @torch.no_grad()
    def ablated(self, keeps: Sequence[Keep]) -> list[float]:
        """The metric with each set of nodes kept."""
        widest = max(place.model.latents for place in self.places.values())
        size = max(CODE_NUMBERS // (widest * self.count), 1)
        values: list[float] = []
        for first in range(0, len(keeps), size):
            with self._keeping(keeps[first : first + size]) as examples:
                values += self._value(examples).tolist()
        return values

    @contextmanager
    def _keeping(self, keeps: Sequence[Keep]) -> Iterator[int]:
        """Within the body the model keeps the nodes of each set in an example of its own; yields
        how many."""
        masks, changes = {}, {}
        for name, place in self.places.items():
            size = self.count, self.positions, place.model.latents
            parts = [keep.masks(name, *size) for keep in keeps]
            codes_NF, errors_N1 = (torch.cat(part).to(self.x[name].device) for part in zip(*parts))
            masks[name] = codes_NF, errors_N1
            if len(place.outputs) > 1:
                x, y = (part[name].repeat(len(keeps), 1) for part in (self.x, self.y))
                changes[name] = _kept(place, codes_NF, errors_N1, x, y) - y

        def kept(place: Place, part: int, y_ND: torch.Tensor) -> torch.Tensor:
            exact_ND = place.exact(y_ND)
            if place.name in changes:
                return exact_ND + changes[place.name].split(place.widths, 1)[part]
            x_ND = exact_ND
            if place.reads_elsewhere:
                x_ND = place.exact(states[place.inputs[0]].flatten(0, 1))
            codes_NF, errors_N1 = masks[place.name]
            return _kept(place, codes_NF, errors_N1, x_ND, exact_ND)

        elsewhere = [
            place.inputs[0]
            for name, place in self.places.items()
            if place.reads_elsewhere and name not in changes
        ]
        with ExitStack() as stack:
            stack.enter_context(splice(self.live, self._at_outputs(kept, list(self.places))))
            # after `splice`, so that it sees the states that dictionaries before it left
            states = stack.enter_context(capture(self.live, elsewhere)) if elsewhere else {}
            yield len(keeps)

    def _at_outputs(
        self, change: Callable[[Place, int, torch.Tensor], torch.Tensor], names: Sequence[str]
    ) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """hook -> the change of its states, for the outputs of these dictionaries."""
        places = [self.places[name] for name in names]
        return {
            hook: partial(change, place, part)
            for place in places
            for part, hook in enumerate(place.outputs)
        }

    def _value(self, examples: int) -> torch.Tensor:
        """(B,): the metric of a pass over so many copies of the input."""
        inputs = {
            name: value.expand(examples, *value.shape[1:]) for name, value in self.inputs.items()
        }
        logits = self.live.forward(inputs).logits
        return self.metric(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _kept(
    place: Place,
    codes_NF: torch.Tensor,
    errors_N1: torch.Tensor,
    x_ND: torch.Tensor,
    y_ND: torch.Tensor,
) -> torch.Tensor:
    """The states y with only these latents and errors of the code of x; rows without a change keep
    their bits."""
    z_NF = place.model.encode(x_ND).to_dense()
    error_ND = y_ND - place.reconstruction(z_NF, x_ND)
    new_ND = place.reconstruction(z_NF * codes_NF, x_ND) + error_ND * errors_N1
    same = errors_N1 & (codes_NF | (z_NF == 0)).all(1, keepdim=True)
    return torch.where(same, y_ND, new_ND)

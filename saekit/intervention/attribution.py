"""The nodes of an attribution, and the passes that measure them.

A node is a latent of a dictionary at a position, or the whole error y - y_hat there, where y is the
state that the dictionary writes to. The model runs with

    y' = y + [decode(z') + e'] - [decode(z) + e]

at each dictionary's outputs, where z and e are the code and error of the clean pass, and z' and e'
leaves of autograd, for which `Passes.gradients` is the only place that computes gradients. Where
they are z and e these are the clean states, and gradients flow through every dictionary to the ones
before it.

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
GROUPS = 4  # of the latents of a position, of integrated gradients
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


@dataclass(frozen=True)
class Path:
    """Nodes of a position that go to 0 together."""

    position: int
    latents: torch.Tensor
    """(F,) bool."""
    error: bool


def _paths(z_F: torch.Tensor, position: int, groups: int) -> list[Path]:
    """The error, and the active latents in at most so many groups, each of them spread over the
    dictionary."""
    active = z_F.nonzero()[:, 0]
    paths = [Path(position, torch.zeros_like(z_F, dtype=torch.bool), True)]
    for group in range(min(groups, len(active))):
        latents = torch.zeros_like(z_F, dtype=torch.bool)
        latents[active[group::groups]] = True
        paths.append(Path(position, latents, False))
    return paths


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
        self, leaves: Mapping[str, tuple[torch.Tensor, torch.Tensor]], paths: Sequence[int] = ()
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """name -> (P,F), (P,D): the derivatives of the metric with respect to code and error, where
        these are `leaves`.

        paths: a position per row of the leaves, each of which is in an example of its own, clean at
        all other positions; (): the leaves are those of all positions of one example.
        """
        leaves = {name: (z.requires_grad_(), e.requires_grad_()) for name, (z, e) in leaves.items()}
        at = torch.tensor(list(paths or range(self.count)))
        rows = torch.arange(len(at)) * self.count + at if paths else at

        def change(name: str) -> torch.Tensor:
            """(P,D): y' - y of the rows that move."""
            z_PF, e_PD = leaves[name]
            chosen = at.to(z_PF.device)
            y_hat_PD = self.places[name].reconstruction(z_PF, self.x[name][chosen])
            return y_hat_PD + e_PD - self.y[name][chosen]

        def moved(place: Place, part: int, y_ND: torch.Tensor) -> torch.Tensor:
            part_PD = changes[place.name].split(place.widths, 1)[part]
            return place.exact(y_ND).index_add(0, rows.to(y_ND.device), part_PD)

        with torch.enable_grad():
            changes = {name: change(name) for name in leaves}
            with splice(self.live, self._at_outputs(moved, list(leaves))):
                value = self._value(len(at) if paths else 1).sum()
        flat = torch.autograd.grad(value, [leaf for pair in leaves.values() for leaf in pair])
        return dict(zip(leaves, zip(flat[::2], flat[1::2])))

    def effects(
        self, steps: int | None, groups: int = GROUPS
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """name -> (T,F), (T,): the effect of each latent and each error; 0 at positions without
        nodes.

        steps None: gradient x activation, of all dictionaries in one pass. Else integrated
        gradients, by the midpoint rule with so many steps: the active latents of a position go to 0
        in so many groups, the error apart from them, each along a path of its own on which all
        other nodes are clean.
        """
        if steps is None:
            leaves = {name: (self.z[name].clone(), self.e[name].clone()) for name in self.places}
            gradients = self.gradients(leaves)
            values = {
                name: (by_code_TF * self.z[name], (by_error_TD * self.e[name]).sum(1))
                for name, (by_code_TF, by_error_TD) in gradients.items()
            }
        else:
            values = {name: self._integrated(name, steps, groups) for name in self.places}
        outside = [at for at in range(self.count) if at not in self.positions]
        for parts in values.values():
            for part in parts:
                part[outside] = 0
        return values

    def _integrated(self, name: str, steps: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """((T,F), (T,)) of one dictionary."""
        z_TF, e_TD = self.z[name], self.e[name]
        codes_TF, errors_T = torch.zeros_like(z_TF), torch.zeros_like(e_TD[:, 0])
        paths = [path for at in self.positions for path in _paths(z_TF[at], at, groups)]
        for first in range(0, len(paths), EXAMPLES):
            some = paths[first : first + EXAMPLES]
            at = [path.position for path in some]
            moves_PF = torch.stack([path.latents for path in some])
            errors_P = torch.tensor([path.error for path in some], device=z_TF.device)
            z_PF, e_PD = z_TF[at] * moves_PF, e_TD[at] * errors_P[:, None]
            for step in range(steps):
                gone = 1 - (step + 0.5) / steps
                by_code_PF, by_error_PD = self.gradients(
                    {name: (z_TF[at] - gone * z_PF, e_TD[at] - gone * e_PD)}, at
                )[name]
                index = torch.tensor(at, device=z_TF.device)
                codes_TF.index_add_(0, index, by_code_PF * z_PF / steps)
                errors_T.index_add_(0, index, (by_error_PD * e_PD).sum(1) / steps)
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

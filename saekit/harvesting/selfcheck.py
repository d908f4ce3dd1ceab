"""The check of every harvest on its first real contexts: does a row depend on anything besides its
own context and the model?

For text it runs a few short pieces of contexts. For images it runs one image, a few times if there
are several hooks, and compares it with the first batch of the harvest. Either costs under 2 % of a
harvest of 20,000 rows. It proves that

- the same input twice gives the same rows (for text: the same bits), and every hook gives the same
  by itself and together with the others;
- an input gives the same by itself, in a batch with others, and padded: within the rounding of the
  model's dtype;
- block input + attn + mlp = block output, if these aliases are harvested.

A model that mixes padding into its rows (a Fourier transform or a convolution over tokens, without
a mask) is harvested without padding, in batches of contexts of equal length. Any other failure is
an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnF

from saekit.errors import DataError, opt
from saekit.harvesting.anatomy import anatomy_of, untouched
from saekit.harvesting.hooks import capture, is_alias, resolve_hook
from saekit.harvesting.probe import run
from saekit.harvesting.trace import Trace
from saekit.interop.hook_spellings import translated

LONG, SHORT = 16, 8  # tokens of the two pieces
# The largest relative difference of a row that counts as rounding. Other shapes use other kernels,
# and every layer amplifies their differences: in float32, 4e-7 to 3e-6 were measured on
# SmolLM2-135M and tiny models of twenty families; leaks are at least 8e-4 of a row.
ROUNDING = {torch.float64: 5e-5, torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
NOISE = 8  # times the difference that batching makes without any padding also counts as rounding
MOST = {torch.float64: 1e-2, torch.float32: 1e-2}  # more than this never counts as rounding
FEW_BITS = 0.25  # the same in 16 bits, where another expert of a mixture may be chosen
SEPARATED = 3  # hooks that two passes can test separately

States = dict[str, torch.Tensor]


_PART = re.compile(r"blocks\.(\d+)\.(attn|mlp)(:in)?")


@dataclass(frozen=True)
class SelfCheck:
    padded: bool
    """False: contexts of one length per batch, since rows depend on padding."""
    stored: dict[str, str]
    """The results in words, for manifest.json: without numbers, which differ between machines."""
    line: str
    """The same for the user, with the largest measured difference."""


def check_texts(
    live: Any,
    inputs: Sequence[dict[str, torch.Tensor]],
    hooks: Sequence[str],
    aliases: Sequence[str],
    batch: int,
    pad: int = 0,
) -> SelfCheck:
    """`inputs`: one or two single real inputs (see `pieces`); `pad` is the token that pads the
    shorter one. `hooks` are canonical, `aliases` the hooks as the user wrote them.

    Raises DataError when rows cannot be trusted.
    """
    with untouched(live.module, hooks=False), torch.inference_mode():
        check = _Check(live, list(hooks), pad)
        single = [
            check.states(one, check.hooks, aliases if at == 0 else ())
            for at, one in enumerate(inputs)
        ]
        repeat = check.repeated(inputs[0], single[0])
        if len(inputs) > 1 and batch > 1:
            return check.report(repeat, *check.batched(inputs, single))
        return check.report(repeat)


def check_images(
    live: Any, pixels_BChw: torch.Tensor, together: States, aliases: Sequence[str]
) -> SelfCheck:
    """One of the images in `pixels_BChw` by itself, compared with `together`: hook -> states
    (B,T,D) of all of them, in the order in which the hooks fired.

    Raises DataError when rows cannot be trusted.
    """
    with untouched(live.module, hooks=False), torch.inference_mode():
        # An image with others on both sides.
        check, middle = _Check(live, list(together)), len(pixels_BChw) // 2
        image = {"pixel_values": pixels_BChw[middle : middle + 1]}
        batched = {hook: state[middle : middle + 1].float() for hook, state in together.items()}
        error = check.separately(image, batched, aliases)
        if error <= check.most:
            return (
                check.report("", True, "one image as in a batch", error)
                if len(pixels_BChw) > 1
                else check.report("equal within rounding")
            )
        check.repeated(image, check.states(image, check.hooks))
        raise check.dependent(error)


def pieces(rows: Sequence[list[int]]) -> list[dict[str, torch.Tensor]]:
    """Two short single inputs from the contexts in `rows`, lists of token ids; shorter first."""
    contexts = sorted(rows, key=len)
    long = contexts[-1][:LONG]
    other = next((ids for ids in reversed(contexts[:-1]) if ids), [])
    short = other[: min(SHORT, max(len(long) // 2, 1))]
    return [_text(ids) for ids in (short, long) if ids]


class _Check:
    def __init__(self, live: Any, hooks: list[str], pad: int = 0) -> None:
        self.live, self.hooks, self.pad = live, hooks, pad
        self.dtype = live.dtype
        self.proven: list[str] = []
        self.separate_hooks = "each by itself as together"

    def states(
        self, inputs: dict[str, torch.Tensor], hooks: Sequence[str], aliases: Sequence[str] = ()
    ) -> States:
        """One pass: hook -> states in the order in which the hooks fired. The pass also proves the
        sums of `aliases`."""
        # Blocks whose sums must be proven.
        module = self.live.module
        anatomy, sums = anatomy_of(module), {}
        for alias in aliases:
            match = _PART.fullmatch(translated(alias))
            if match and is_alias(module, name := f"blocks.{match[1]}.{match[2]}"):
                sums[alias] = int(match[1]), match[2], resolve_hook(module, name)
        blocks = sorted({index for index, _, _ in sums.values()})
        paths = list(hooks) + [
            path for index in blocks if (path := anatomy.block_path(index)) not in hooks
        ]
        # The pass.
        with ExitStack() as stack:
            trace = self._trace(stack, blocks)
            states = stack.enter_context(capture(module, paths, stop=True))
            run(self.live, inputs)
        # The sums.
        for alias, (index, name, path) in sums.items():
            assert trace is not None
            part = trace.parts_of(index).get(name)
            if (
                part is None
                or part.path is None
                or f"{anatomy.block_path(index)}.{part.path}" != path
            ):
                raise DataError(
                    f"{alias} of {self.live.name} is not what block {index} adds to the residual"
                    " stream on these contexts",
                    f"{opt('hook', path)} takes the output of that module as it is",
                )
            self.proven.append(alias)
        return {hook: state.float() for hook, state in states.items() if hook in hooks}

    def _trace(self, stack: ExitStack, blocks: Sequence[int]) -> Trace | None:
        """A trace of the parts of these blocks, until `stack` ends; None without blocks."""
        if not blocks:
            return None
        anatomy = anatomy_of(self.live.module)
        path, tower = anatomy.blocks, anatomy.tower
        path = path.removeprefix(f"{tower}.") if path and tower else path
        trace = Trace(self.live.module, tower, path)
        for handle in trace.attach_parts(blocks):
            stack.callback(handle.remove)
        return trace

    def repeated(self, inputs: dict[str, torch.Tensor], before: States) -> str:
        """Run `inputs` again, one group of hooks at a time; returns in words how equal it was."""
        equal = True
        for group in _groups(list(before)):
            for hook, state in self.states(inputs, group).items():
                if torch.equal(state, before[hook]):
                    continue
                equal = False
                if not difference(state, before[hook]) <= self.most:
                    raise DataError(
                        f"{self.live.name} gives other states at {hook} when it is run again on the"
                        " same input: it draws random numbers",
                        "choose a model whose forward pass is deterministic in eval mode",
                    )
        return "equal bits" if equal else "equal within rounding"

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.dtype, FEW_BITS)

    @property
    def most(self) -> float:
        return MOST.get(self.dtype, FEW_BITS)

    def separately(
        self, inputs: dict[str, torch.Tensor], together: States, aliases: Sequence[str]
    ) -> float:
        """The largest difference between `together` and the states with only some of the hooks;
        these passes also prove `aliases`."""
        errors = []
        if len(together) > SEPARATED:
            self.separate_hooks = "the last by itself as together"
        for group in _two_groups(list(together)):
            unproven = [
                alias
                for alias in aliases
                if alias not in self.proven and resolve_hook(self.live.module, alias) in group
            ]
            states = self.states(inputs, group, unproven)
            errors += [difference(state, together[hook]) for hook, state in states.items()]
        return max(errors)

    def batched(
        self, inputs: Sequence[dict[str, torch.Tensor]], single: Sequence[States]
    ) -> tuple[bool, str, float]:
        """(whether the harvest may pad, the result in words, largest difference) of inputs in a
        batch and by themselves (`single`)."""
        # The long input has no padding, the short one has.
        short, long = self._differences(inputs, single)
        self._need_independent(long)
        if short <= min(max(self.rounding, NOISE * long), self.most):
            return True, "by itself as padded in a batch", max(short, long)
        # Rows depend on padding: without it, they must not depend on the batch.
        length = inputs[0]["input_ids"].shape[1]
        cut = [inputs[0], _text(inputs[1]["input_ids"][0, :length].tolist())]
        differences = self._differences(cut, [single[0], self.states(cut[1], self.hooks)])
        self._need_independent(max(differences))
        words = (
            "rows of this model depend on padding: batches hold contexts of one length, without"
            " padding"
        )
        return False, words, short

    def _differences(
        self, inputs: Sequence[dict[str, torch.Tensor]], single: Sequence[States]
    ) -> list[float]:
        """For every input, the difference between its rows in one batch and those by itself."""
        together = self.states(_stacked(inputs, self.pad), self.hooks)
        return [
            max(
                difference(together[hook][at : at + 1, : state.shape[1]], state)
                for hook, state in states.items()
            )
            for at, states in enumerate(single)
        ]

    def _need_independent(self, error: float) -> None:
        if not error <= self.most:
            raise self.dependent(error)

    def dependent(self, error: float) -> DataError:
        return DataError(
            f"a row of {self.live.name} depends on the rest of its batch: by itself it differs by"
            f" {error:.0%}",
            f"{opt('batch', 1)} runs every input by itself",
        )

    def report(
        self, repeat: str, padded: bool = True, batched: str = "", largest: float = 0.0
    ) -> SelfCheck:
        """`repeat` and `batched`: results in words, '' if not tested."""
        stored = {"repeat": repeat} if repeat else {}
        if len(self.hooks) > 1:
            stored["hooks"] = self.separate_hooks
        if self.proven:
            stored["sums"] = ", ".join(self.proven)
        if batched:
            stored["batch"] = batched
        results = [f"the same input twice: {repeat}"] if repeat else []
        results += [batched] if batched else []
        results += [f"{stored['sums']} add up"] if self.proven else []
        measured = f" (largest difference {largest:.1e})" if batched else ""
        return SelfCheck(padded, stored, f"self-check: {'; '.join(results)}{measured}")


def difference(x_BTD: torch.Tensor, y_BTD: torch.Tensor) -> float:
    """The largest relative difference of a row. Rows with a norm below 1e-3 of the median count as
    if they had that norm.

    Rows with NaN or inf on both sides do not differ: the store refuses them, with their place.
    """
    both = x_BTD.isfinite().all(-1) & y_BTD.isfinite().all(-1)
    if not torch.equal(both, y_BTD.isfinite().all(-1)):
        return float("inf")
    if not both.any():
        return 0.0
    x_ND, y_ND = x_BTD[both], y_BTD[both]
    norm_N = y_ND.norm(dim=-1)
    floor = norm_N.median().clamp_min(torch.finfo(torch.float32).tiny) * 1e-3
    return float(((x_ND - y_ND).norm(dim=-1) / norm_N.clamp_min(floor)).max())


def _groups(hooks: list[str]) -> Iterator[list[str]]:
    """Groups of the hooks, which are in the order in which they fire: every hook is in at least one
    group, and for any hook before it, in one without that hook.

    A hook that fires later cannot change what was read before. The bits of a hook's number, from 1
    on, are the groups it is in: those of a later hook are never a subset of those of an earlier
    one.
    """
    for bit in range(len(hooks).bit_length()):
        yield [hook for number, hook in enumerate(hooks, 1) if number >> bit & 1]


def _two_groups(hooks: list[str]) -> list[list[str]]:
    """At most two groups, since a pass costs a whole image. With more hooks than `_groups` can
    separate in two, the last one and the others: any change by a hook reaches the states of the
    last one."""
    return list(_groups(hooks)) if len(hooks) <= SEPARATED else [hooks[-1:], hooks[:-1]]


def _text(ids: Sequence[int]) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([list(ids)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _stacked(inputs: Sequence[dict[str, torch.Tensor]], fill: int) -> dict[str, torch.Tensor]:
    """One batch, padded on the right as in a harvest."""
    longest = max(one["input_ids"].shape[1] for one in inputs)
    values = {"input_ids": fill, "attention_mask": 0}
    return {
        name: torch.cat(
            [nnF.pad(one[name], (0, longest - one[name].shape[1]), value=value) for one in inputs]
        )
        for name, value in values.items()
    }

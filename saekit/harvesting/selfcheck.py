"""The check of every harvest on the first real contexts: does a row depend on anything but its own
context and the model?

Of text it runs a few short pieces of contexts. Of images it runs one, a few times where there are
several hooks, and compares it with the harvest's own first batch. Either costs under 2 % of a
harvest of 20,000 rows. It proves that

- the same input twice gives the same rows (of text: the same bits), and each hook alone gives what
  the hooks give together;
- one input alone gives what it gives beside others, and padded: within the rounding of the model's
  dtype;
- block input + attn + mlp = block output, where these aliases are harvested.

A model that mixes padding into its rows (a Fourier transform or a convolution over tokens, without
a mask) is harvested without padding, in batches of contexts of equal length. What else fails is
refused.
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

LONG, SHORT = 16, 8  # tokens of the two pieces
# Largest relative difference of a row that is rounding. Other shapes take other kernels, and every
# layer multiplies their differences: in float32, 4e-7 to 3e-6 were measured on SmolLM2-135M and
# tiny models of twenty families; leaks are from 8e-4 of a row on.
ROUNDING = {torch.float64: 5e-5, torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
NOISE = 8  # times the difference that company alone makes, without any padding
MOST = {torch.float64: 1e-2, torch.float32: 1e-2}  # never more than this is rounding
FEW_BITS = 0.25  # the same in 16 bits, where another expert of a mixture may be chosen
SEPARATED = 3  # hooks that two passes keep apart

States = dict[str, torch.Tensor]


_PART = re.compile(r"blocks\.(\d+)\.(attn|mlp)(:in)?")


@dataclass(frozen=True)
class SelfCheck:
    padded: bool
    """False: contexts of one length a batch, since padding reaches the rows."""
    stored: dict[str, str]
    """What was shown, in words, for manifest.json: without figures, which differ between
    machines."""
    line: str
    """The same for the user, with the largest difference measured."""


def check_texts(
    live: Any,
    inputs: Sequence[dict[str, torch.Tensor]],
    hooks: Sequence[str],
    aliases: Sequence[str],
    batch: int,
    pad: int = 0,
) -> SelfCheck:
    """`inputs`: single real inputs (see `pieces`), one or two; `pad` is the token that fills the
    shorter one up. `hooks` are canonical, `aliases` as the user gave them.

    Raises DataError where rows could not be trusted.
    """
    with untouched(live.module, hooks=False), torch.inference_mode():
        check = _Check(live, list(hooks), pad)
        alone = [
            check.states(each, check.hooks, aliases if at == 0 else ())
            for at, each in enumerate(inputs)
        ]
        repeat = check.repeated(inputs[0], alone[0])
        if len(inputs) > 1 and batch > 1:
            return check.report(repeat, *check.company(inputs, alone))
        return check.report(repeat)


def check_images(
    live: Any, pixels_BChw: torch.Tensor, together: States, aliases: Sequence[str]
) -> SelfCheck:
    """One of the images in `pixels_BChw` alone, against the states (B,T,D) that all of them gave
    `together`: hook -> states.

    The mapping's order is that in which the hooks fired. Raises DataError where rows could not be
    trusted.
    """
    with untouched(live.module, hooks=False), torch.inference_mode():
        # an image with others on either side
        check, middle = _Check(live, list(together)), len(pixels_BChw) // 2
        image = {"pixel_values": pixels_BChw[middle : middle + 1]}
        batched = {hook: state[middle : middle + 1].float() for hook, state in together.items()}
        error = check.apart(image, batched, aliases)
        if error <= check.most:
            return (
                check.report("", True, "one image as many", error)
                if len(pixels_BChw) > 1
                else check.report("equal within rounding")
            )
        check.repeated(image, check.states(image, check.hooks))
        raise check.dependent(error)


def pieces(rows: Sequence[list[int]]) -> list[dict[str, torch.Tensor]]:
    """Two short single inputs of the contexts in `rows`, lists of token ids; the short one
    first."""
    ids = sorted(rows, key=len)
    long = ids[-1][:LONG]
    short = next((each for each in reversed(ids[:-1]) if each), [])[
        : min(SHORT, max(len(long) // 2, 1))
    ]
    return [_text(each) for each in (short, long) if each]


class _Check:
    def __init__(self, live: Any, hooks: list[str], pad: int = 0) -> None:
        self.live, self.hooks, self.pad = live, hooks, pad
        self.dtype = live.dtype
        self.proven: list[str] = []
        self.apart_words = "each alone as together"

    def states(
        self, inputs: dict[str, torch.Tensor], hooks: Sequence[str], aliases: Sequence[str] = ()
    ) -> States:
        """One pass: hook -> states in the order in which the hooks fired. The sums of `aliases` are
        proven on its way."""
        module = self.live.module
        anatomy, sums = anatomy_of(module), {}
        for alias in aliases:
            match = _PART.fullmatch(alias)
            if match and is_alias(module, match[0].removesuffix(":in")):
                sums[alias] = (
                    int(match[1]),
                    match[2],
                    resolve_hook(module, match[0].removesuffix(":in")),
                )
        blocks = sorted({index for index, _, _ in sums.values()})
        wanted = list(hooks) + [
            path for index in blocks if (path := anatomy.block_path(index)) not in hooks
        ]
        with ExitStack() as stack:
            trace = self._trace(stack, blocks)
            states = stack.enter_context(capture(module, wanted, stop=True))
            run(self.live, inputs)
        for alias, (index, part, path) in sums.items():
            found = trace.parts_of(index).get(part)
            if (
                found is None
                or found.path is None
                or f"{anatomy.block_path(index)}.{found.path}" != path
            ):
                cause = (
                    f"{alias} of {self.live.name} is not what block {index} adds to the residual"
                    " stream on these contexts"
                )
                raise DataError(
                    cause, f"{opt('hook', path)} takes the output of that module as it is"
                )
            self.proven.append(alias)
        return {hook: state.float() for hook, state in states.items() if hook in hooks}

    def _trace(self, stack: ExitStack, blocks: Sequence[int]) -> Trace | None:
        if not blocks:
            return None
        anatomy = anatomy_of(self.live.module)
        path = anatomy.blocks.removeprefix(f"{anatomy.tower}.") if anatomy.tower else anatomy.blocks
        trace = Trace(self.live.module, anatomy.tower, path)
        for handle in trace.attach_parts(blocks):
            stack.callback(handle.remove)
        return trace

    def repeated(self, inputs: dict[str, torch.Tensor], before: States) -> str:
        """Again, hook by hook: in words, how equal it was."""
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

    def apart(
        self, inputs: dict[str, torch.Tensor], together: States, aliases: Sequence[str]
    ) -> float:
        """The largest difference of `inputs` run with some of the hooks from what all of them gave;
        `aliases` are proven on the way."""
        errors = []
        if len(together) > SEPARATED:
            self.apart_words = "the last alone as together"
        for group in _two_groups(list(together)):
            unproven = [
                alias
                for alias in aliases
                if alias not in self.proven and resolve_hook(self.live.module, alias) in group
            ]
            states = self.states(inputs, group, unproven)
            errors += [difference(state, together[hook]) for hook, state in states.items()]
        return max(errors)

    def company(
        self, inputs: Sequence[dict[str, torch.Tensor]], alone: Sequence[States]
    ) -> tuple[bool, str, float]:
        """(padding does not reach the rows, the same in words, largest difference)."""
        short, long = self._beside(inputs, alone)
        self._independent(long)
        if short <= min(max(self.rounding, NOISE * long), self.most):
            return True, "alone as padded in a batch", max(short, long)
        length = inputs[0]["input_ids"].shape[1]
        cut = [inputs[0], _text(inputs[1]["input_ids"][0, :length].tolist())]
        self._independent(max(self._beside(cut, [alone[0], self.states(cut[1], self.hooks)])))
        return (
            False,
            (
                "padding reaches the rows of this model: batches hold contexts of one length,"
                " without padding"
            ),
            short,
        )

    def _beside(
        self, inputs: Sequence[dict[str, torch.Tensor]], alone: Sequence[States]
    ) -> list[float]:
        """How far each input's rows in one batch are from those that it gave alone."""
        together = self.states(_stacked(inputs, self.pad), self.hooks)
        return [
            max(
                difference(together[hook][at : at + 1, : state.shape[1]], state)
                for hook, state in states.items()
            )
            for at, states in enumerate(alone)
        ]

    def _independent(self, error: float) -> None:
        if not error <= self.most:
            raise self.dependent(error)

    def dependent(self, error: float) -> DataError:
        return DataError(
            f"a row of {self.live.name} depends on the rest of its batch: alone it differs by"
            f" {error:.0%}",
            f"{opt('batch', 1)} runs every input alone",
        )

    def report(
        self, repeat: str, padded: bool = True, company: str = "", largest: float = 0.0
    ) -> SelfCheck:
        stored = {"repeat": repeat} if repeat else {}
        if len(self.hooks) > 1:
            stored["hooks"] = self.apart_words
        if self.proven:
            stored["sums"] = ", ".join(self.proven)
        if company:
            stored["batch"] = company
        said = [f"the same input twice: {repeat}"] if repeat else []
        said += [company] if company else []
        said += [f"{stored['sums']} add up"] if self.proven else []
        measured = f" (largest difference {largest:.1e})" if company else ""
        return SelfCheck(padded, stored, f"self-check: {'; '.join(said)}{measured}")


def difference(x_BTD: torch.Tensor, y_BTD: torch.Tensor) -> float:
    """Largest relative difference of a row. Rows far below the usual size (a norm of 1e-3 of the
    median) count as that size.

    Rows with NaN or inf on both sides do not differ: the store refuses them, and says where they
    are.
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
    """Some of the hooks at a time, given in the order in which they fire: each at least once, and
    once without any that fires before it.

    What fires later changes nothing that was read before. The bits of a hook's number, from 1 on,
    say in which groups it is: those of a later hook are never among those of an earlier one.
    """
    for bit in range(len(hooks).bit_length()):
        yield [hook for number, hook in enumerate(hooks, 1) if number >> bit & 1]


def _two_groups(hooks: list[str]) -> list[list[str]]:
    """At most two of `_groups`, where a pass costs a whole image. Of more hooks than those can keep
    apart, the last one and the others: what any hook changes in the pass reaches the states of the
    last one."""
    return list(_groups(hooks)) if len(hooks) <= SEPARATED else [hooks[-1:], hooks[:-1]]


def _text(ids: Sequence[int]) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([list(ids)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _stacked(inputs: Sequence[dict[str, torch.Tensor]], fill: int) -> dict[str, torch.Tensor]:
    """One batch, padded on the right as a harvest's are."""
    longest = max(each["input_ids"].shape[1] for each in inputs)
    values = {"input_ids": fill, "attention_mask": 0}
    return {
        name: torch.cat(
            [
                nnF.pad(each[name], (0, longest - each[name].shape[1]), value=value)
                for each in inputs
            ]
        )
        for name, value in values.items()
    }

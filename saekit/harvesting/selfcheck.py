"""The check of every harvest on the first real contexts: does a row depend on anything but its own context and the model?

It runs a few short pieces of contexts, or two images: their cost is under 2 % of a harvest of 20,000 rows. It proves that

- the same input twice gives the same bits, and each hook alone gives what the hooks give together;
- one input alone gives what it gives beside another one, and padded: within the rounding of the model's dtype;
- block input + attn + mlp = block output, where these aliases are harvested.

A model that mixes padding into its rows (a Fourier transform or a convolution over tokens, without a mask) is harvested without padding, in
batches of contexts of equal length. What else fails is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnF

from saekit.errors import DataError
from saekit.harvesting.anatomy import anatomy_of, untouched
from saekit.harvesting.hooks import capture, is_alias, resolve_hook
from saekit.harvesting.probe import run
from saekit.harvesting.trace import Trace

LONG, SHORT = 16, 8  # tokens of the two pieces
# Largest relative difference of a row that is rounding. Other shapes take other kernels, and every layer multiplies their differences: in
# float32, 4e-7 to 3e-6 were measured on SmolLM2-135M and tiny models of twenty families; leaks are from 8e-4 of a row on.
ROUNDING = {torch.float64: 5e-5, torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
NOISE = 8  # times the difference that company alone makes, without any padding
MOST = {torch.float64: 1e-2, torch.float32: 1e-2}  # never more than this is rounding
FEW_BITS = 0.25  # the same in 16 bits, where another expert of a mixture may be chosen
ALONE = 4  # hooks up to which each runs alone; more are divided so that any two of them are apart once

States = dict[str, torch.Tensor]


_PART = re.compile(r"blocks\.(\d+)\.(attn|mlp)(:in)?")


@dataclass(frozen=True)
class SelfCheck:
    padded: bool
    """False: contexts of one length a batch, since padding reaches the rows."""
    stored: dict[str, str]
    """What was shown, in words, for manifest.json: without figures, which differ between machines."""
    line: str
    """The same for the user, with the largest difference measured."""


def self_check(
    live: Any, inputs: Sequence[dict[str, torch.Tensor]], hooks: Sequence[str], aliases: Sequence[str], batch: int, pad: int = 0
) -> SelfCheck:
    """`inputs`: single real inputs (see `pieces`), one or two; `pad` is the token that fills the shorter one up. `hooks` are canonical,
    `aliases` as the user gave them.

    Raises DataError where rows could not be trusted.
    """
    with untouched(live.module, hooks=False), torch.inference_mode():
        check = _Check(live, list(hooks), pad)
        alone = [check.states(each, check.hooks, aliases if at == 0 else ()) for at, each in enumerate(inputs)]
        repeat = check.repeated(inputs[0], alone[0])
        stored = {"repeat": repeat, "hooks": "each alone as together"} if len(check.hooks) > 1 else {"repeat": repeat}
        if parts := check.proven:
            stored["sums"] = ", ".join(parts)
        padded, company, largest = True, "", 0.0
        if len(inputs) > 1 and batch > 1:
            padded, company, largest = check.company(inputs, alone)
            stored["batch"] = company
    said = [f"the same input twice: {repeat}", *([company] if company else [])]
    said += [f"{stored['sums']} add up"] if parts else []
    measured = f" (largest difference {largest:.1e})" if company else ""
    return SelfCheck(padded, stored, f"self-check: {'; '.join(said)}{measured}")


def pieces(rows: Sequence[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """Two short single inputs of the contexts or images in `rows` (token ids as lists, or pixel_values (C,h,w)); the short one first."""
    if "pixel_values" in rows[0]:
        return [{"pixel_values": row["pixel_values"][None]} for row in rows[:2]]
    ids = sorted((row["input_ids"] for row in rows), key=len)
    long = ids[-1][:LONG]
    short = next((each for each in reversed(ids[:-1]) if each), [])[: min(SHORT, max(len(long) // 2, 1))]
    return [_text(each) for each in (short, long) if each]


class _Check:
    def __init__(self, live: Any, hooks: list[str], pad: int) -> None:
        self.live, self.hooks, self.pad = live, hooks, pad
        self.dtype = live.dtype
        self.proven: list[str] = []

    def states(self, inputs: dict[str, torch.Tensor], hooks: Sequence[str], aliases: Sequence[str] = ()) -> States:
        """One pass; the sums of `aliases` are proven on its way."""
        module = self.live.module
        anatomy, sums = anatomy_of(module), {}
        for alias in aliases:
            match = _PART.fullmatch(alias)
            if match and is_alias(module, match[0].removesuffix(":in")):
                sums[alias] = int(match[1]), match[2], resolve_hook(module, match[0].removesuffix(":in"))
        blocks = sorted({index for index, _, _ in sums.values()})
        wanted = list(hooks) + [path for index in blocks if (path := anatomy.block_path(index)) not in hooks]
        with ExitStack() as stack:
            trace = self._trace(stack, blocks)
            states = stack.enter_context(capture(module, wanted, stop=True))
            run(self.live, inputs)
        for alias, (index, part, path) in sums.items():
            found = trace.parts_of(index).get(part)
            if found is None or found.path is None or f"{anatomy.block_path(index)}.{found.path}" != path:
                cause = f"{alias} of {self.live.name} is not what block {index} adds to the residual stream on these contexts"
                raise DataError(cause, f"--hook {path} takes the output of that module as it is")
            self.proven.append(alias)
        return {hook: states[hook].float() for hook in hooks}

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
        for group in _groups(self.hooks):
            for hook, state in self.states(inputs, group).items():
                if torch.equal(state, before[hook]):
                    continue
                equal = False
                if not difference(state, before[hook]) <= self.most:
                    raise DataError(
                        f"{self.live.name} gives other states at {hook} when it is run again on the same input: it draws random numbers",
                        "choose a model whose forward pass is deterministic in eval mode",
                    )
        return "equal bits" if equal else "equal within rounding"

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.dtype, FEW_BITS)

    @property
    def most(self) -> float:
        return MOST.get(self.dtype, FEW_BITS)

    def company(self, inputs: Sequence[dict[str, torch.Tensor]], alone: Sequence[States]) -> tuple[bool, str, float]:
        """(padding does not reach the rows, the same in words, largest difference)."""
        short, long = self._beside(inputs, alone)
        if "pixel_values" in inputs[0]:
            self._independent(max(short, long))
            return True, "one input as many", max(short, long)
        self._independent(long)
        if short <= min(max(self.rounding, NOISE * long), self.most):
            return True, "alone as padded in a batch", max(short, long)
        length = inputs[0]["input_ids"].shape[1]
        cut = [inputs[0], _text(inputs[1]["input_ids"][0, :length].tolist())]
        self._independent(max(self._beside(cut, [alone[0], self.states(cut[1], self.hooks)])))
        return False, "padding reaches the rows of this model: batches hold contexts of one length, without padding", short

    def _beside(self, inputs: Sequence[dict[str, torch.Tensor]], alone: Sequence[States]) -> list[float]:
        """How far each input's rows in one batch are from those that it gave alone."""
        together = self.states(_stacked(inputs, self.pad), self.hooks)
        return [
            max(difference(together[hook][at : at + 1, : state.shape[1]], state) for hook, state in states.items())
            for at, states in enumerate(alone)
        ]

    def _independent(self, error: float) -> None:
        if not error <= self.most:
            raise DataError(
                f"a row of {self.live.name} depends on the rest of its batch: alone it differs by {error:.0%}",
                "--batch 1 runs every input alone",
            )


def difference(x_BTD: torch.Tensor, y_BTD: torch.Tensor) -> float:
    """Largest relative difference of a row. Rows far below the usual size (a norm of 1e-3 of the median) count as that size."""
    norm = y_BTD.norm(dim=-1)
    floor = norm.median().clamp_min(torch.finfo(torch.float32).tiny) * 1e-3
    return float(((x_BTD - y_BTD).norm(dim=-1) / norm.clamp_min(floor)).max())


def _groups(hooks: list[str]) -> Iterator[list[str]]:
    if len(hooks) <= ALONE:
        yield from ([hook] for hook in hooks)
        return
    for bit in range((len(hooks) - 1).bit_length()):
        for side in (0, 1):
            yield [hook for at, hook in enumerate(hooks) if (at >> bit) & 1 == side]


def _text(ids: Sequence[int]) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([list(ids)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _stacked(inputs: Sequence[dict[str, torch.Tensor]], fill: int) -> dict[str, torch.Tensor]:
    """One batch, padded on the right as a harvest's are."""
    if "pixel_values" in inputs[0]:
        return {"pixel_values": torch.cat([each["pixel_values"] for each in inputs])}
    longest = max(each["input_ids"].shape[1] for each in inputs)
    values = {"input_ids": fill, "attention_mask": 0}
    return {
        name: torch.cat([nnF.pad(each[name], (0, longest - each[name].shape[1]), value=value) for each in inputs])
        for name, value in values.items()
    }

"""A dictionary at its hooks in a model: where its code comes from and where its edits go.

Shapes: B examples, T tokens of this pass, N selected positions of it, D width, F latents.

| dictionary | the code is of | the edits change |
|---|---|---|
| autoencoder | the states at its hook | these states |
| transcoder | the states at its input hook | the states at its output hook, later in the pass |
| crosscoder | the states at all its hooks | the states at each of them |
| cross-layer transcoder | the states at all its inputs | the states at its outputs |

The last two need states that do not exist yet when the first of their hooks is reached. So their
code is that of the clean model on the same tokens: a pass without any hook, in eval mode, without
gradients and with a KV cache of its own, goes before each pass. Edits of a crosscoder that only add
need no code, and no such pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from saekit.errors import DataError, opt
from saekit.harvesting.anatomy import anatomy_of, untouched
from saekit.harvesting.hooks import block_hint, check_runs_once, proof, resolve_hook
from saekit.harvesting.views import OnState, attach, split_hook
from saekit.intervention.edits import Change, Edit, Placed, code_change, needs_rows
from saekit.intervention.passes import Generations, Owner, owner_of, recomputed
from saekit.intervention.positions import (
    Frame,
    Positions,
    Selection,
    both,
    either,
    expanded,
    select,
    select_examples,
)
from saekit.models.autoencoder import Autoencoder


class Site:
    """One attached dictionary. `inputs` and `outputs` are the hooks that its code is of and that
    its edits change, `edits` what is applied to each pass that begins."""

    def __init__(
        self,
        module: nn.Module,
        model: Autoencoder,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        error: bool,
        positions: Positions,
    ) -> None:
        self.module, self.model, self.name = module, model, name
        self.inputs, self.outputs, self.error = inputs, outputs, error
        self.positions: Positions = positions
        """At which error=False leaves the error out."""
        weights = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.device, self.dtype = weights[0].device, weights[0].dtype
        self.edits: list[Edit] = []
        self.paths = {hook: resolve_hook(module, hook) for hook in (*inputs, *outputs)}
        for path in self.paths.values():
            check_runs_once(module, path)
        owners = {owner_of(module, split_hook(path)[0]) for path in self.paths.values()}
        if len(owners) > 1:
            raise DataError(
                f"{name}: {', '.join(self.paths)} are in parts of the model with inputs of their"
                " own",
                "give hooks of one part",
            )
        ((self.owner_module, self.is_image),) = owners
        self.ran: set[str] = set()
        parts = tuple(getattr(model.config, "parts", ()))
        self.in_widths = parts or (model.d_in // len(inputs),) * len(inputs)
        d_out = getattr(model, "d_out", model.d_in)
        self.out_widths = parts or (d_out // len(outputs),) * len(outputs)
        self._changes: WeakKeyDictionary[Frame, tuple[Selection, Change]] = WeakKeyDictionary()
        self._frozen: WeakKeyDictionary[Frame, tuple[Edit, ...]] = WeakKeyDictionary()
        self._clean: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        """KV cache of a pass -> that of the clean model."""
        self._clean_cache: Any = None

    @contextmanager
    def hooked(self, owner: Owner, generations: Generations) -> Iterator[None]:
        """Within the body the edits act. Raises DataError at its end when there were edits and a
        hook did not run."""
        self.owner, self.generations = owner, generations
        owner.begun.append(self._begin)
        owner.ended.append(self._end)
        with ExitStack() as stack:
            # the hooks, an input before an output
            if len(self.inputs) == 1 and self.inputs != self.outputs:
                handles = self._hook(self.inputs[0], self._read)
            else:
                handles = []
            for part, hook in enumerate(self.outputs):
                handles += self._hook(hook, partial(self._write, part))
                path = split_hook(self.paths[hook])[0]
                stack.enter_context(recomputed(owner, self.module, path))
            for handle in handles:
                stack.callback(handle.remove)
            # aliases that no pass has shown before
            with proof(self.module, self.paths) as proving:
                yield
                proving.read |= {self.paths[hook] for hook in self.ran}
        silent = [hook for hook in self.outputs if hook not in self.ran]
        if silent and (self.edits or not self.error) and not owner.failed:
            raise DataError(
                f"{', '.join(silent)} did not run, so nothing was edited there",
                block_hint(self.module),
            )

    def _hook(self, hook: str, on_state: OnState) -> list[RemovableHandle]:
        """`on_state` takes the states (B,T,D) at the hook, and returns those that follow; None: the
        same."""
        path = self.paths[hook]
        view = anatomy_of(self.module).views.get(path)
        return attach(self.module, path, view, lambda state: on_state(self._checked(state, hook)))

    def _checked(self, value: Any, hook: str) -> torch.Tensor:
        if not isinstance(value, torch.Tensor) or value.ndim != 3 or not value.is_floating_point():
            raise DataError(
                f"{hook} does not give hidden states of shape (batch, tokens, width)",
                block_hint(self.module),
            )
        fits = [w for h, w in zip(self.inputs, self.in_widths) if h == hook]
        fits += [w for h, w in zip(self.outputs, self.out_widths) if h == hook]
        if value.shape[-1] not in fits:
            raise DataError(
                f"{self.name} takes or gives {fits[0]} values per position at {hook}, which has"
                f" {value.shape[-1]}",
                f"{opt('hook')} with the hook that it was trained on",
            )
        return value

    # -- a pass

    def _begin(self, frame: Frame, values: dict[str, Any]) -> None:
        """The edits of this pass are those of now, also when it is computed again later."""
        self._frozen[frame] = edits = tuple(self.edits)
        if len(self.outputs) > 1 and (edits or not self.error):
            needed = not self.error or needs_rows(self.model, edits)
            x_BTD = self._clean_states(frame, values) if needed else None
            self._changes[frame] = self._change(frame, edits, x_BTD, self.device)

    def _end(self, taken: Any, returned: Any) -> None:
        cache = taken if taken is not None else returned
        if cache is not None and self._clean_cache is not None:
            self._clean[cache] = self._clean_cache
        self._clean_cache = None

    def _frame(self, state_BTD: torch.Tensor) -> tuple[Frame, tuple[Edit, ...]]:
        """Of the pass that is running; a part of the model may also run by itself."""
        B, T = state_BTD.shape[:2]
        frame = self.owner.frame
        if frame is not None and not frame.batch:  # nothing else says it
            frame.batch, frame.tokens, frame.prompt, frame.examples = B, T, T, B
        if frame is not None and frame.is_image:
            frame.tokens = T
        if frame is not None and (frame.batch, frame.tokens) == (B, T):
            return frame, self._frozen.get(frame, ())
        edits = tuple(self.edits)
        placed = [edit for edit in edits if edit.positions != "all" or edit.examples is not None]
        if placed or (edits and frame is not None):
            raise DataError(
                f"{self.name}: the states are ({B}, {T}, ...) in a pass that does not say which"
                " positions these are",
                "run the model itself",
            )
        return Frame(B, T, prompt=T, examples=B), edits

    def _read(self, state_BTD: torch.Tensor) -> None:
        """At a transcoder's input."""
        frame, edits = self._frame(state_BTD)
        if edits or not self.error:
            self._changes[frame] = self._change(frame, edits, state_BTD, state_BTD.device)

    def _write(self, part: int, state_BTD: torch.Tensor) -> torch.Tensor | None:
        """At an output."""
        self.ran.add(self.outputs[part])
        frame, edits = self._frame(state_BTD)
        if not edits and self.error:
            return None
        if self.inputs == self.outputs and len(self.outputs) == 1:
            rows, change = self._change(frame, edits, state_BTD, state_BTD.device)
        elif frame in self._changes:
            rows, change = self._changes[frame]
        else:
            raise DataError(
                f"{self.outputs[part]} runs before {', '.join(self.inputs)}, which its edits are"
                " computed from",
                f"{opt('hook')} with the input first",
            )
        if rows is False:
            return None
        values_ND = change.values.split(self.out_widths, dim=1)[part]
        x_ND = state_BTD.flatten(0, 1) if rows is True else state_BTD[rows]
        new_ND = self._changed(x_ND, change._replace(values=values_ND))
        if rows is True:
            return new_ND.view_as(state_BTD)
        return state_BTD.masked_scatter(rows[..., None], new_ND)

    def _changed(self, x_ND: torch.Tensor, change: Change) -> torch.Tensor:
        if not self.error:
            return change.values.to(x_ND.dtype).expand_as(x_ND)
        exact = torch.promote_types(x_ND.dtype, change.values.dtype)
        new = (x_ND.to(exact) + change.values.to(exact)).to(x_ND.dtype)
        return torch.where(change.changed, new, x_ND)

    def _change(
        self,
        frame: Frame,
        edits: Sequence[Edit],
        x_BTD: torch.Tensor | None,
        device: torch.device,
    ) -> tuple[Selection, Change]:
        """(the rows that change, the change of each); with error=False the change is x_hat."""
        # which rows: those that an edit selects
        real: Selection = True if frame.real_BT is None else frame.real_BT.to(device)
        selections = [
            both(
                both(select(frame, edit.positions, device), real),
                select_examples(frame, edit.examples, device),
            )
            for edit in edits
        ]
        codes = [self._codes(frame, edit, device) for edit in edits]
        selections = [both(chosen, known) for chosen, (known, _) in zip(selections, codes)]
        rows: Selection = False
        if not self.error:
            rows = both(select(frame, self.positions, device), real)
        for chosen in selections:
            rows = either(rows, chosen)
        nothing = torch.zeros(0, sum(self.out_widths), device=device)
        if rows is False:
            return False, Change(nothing, nothing.bool())
        if isinstance(rows, torch.Tensor):
            rows = rows.expand(frame.batch, frame.tokens)

        # the edits of these rows
        placed = []
        for edit, chosen, (_, codes_BTF) in zip(edits, selections, codes):
            if chosen is False:
                continue
            if chosen is not True and rows is not True:
                chosen = chosen.expand(frame.batch, frame.tokens)[rows]
            elif chosen is not True:
                chosen = chosen.expand(frame.batch, frame.tokens).flatten()
            if codes_BTF is not None:
                codes_BTF = codes_BTF.expand(frame.batch, frame.tokens, -1)
                codes_BTF = codes_BTF.flatten(0, 1) if rows is True else codes_BTF[rows]
            placed.append(Placed(edit, None if chosen is True else chosen, codes_BTF))

        # their change
        x_ND = None
        if x_BTD is not None:
            x_ND = (x_BTD.flatten(0, 1) if rows is True else x_BTD[rows]).to(self.dtype)
        if self.error:
            return rows, code_change(self.model, x_ND, placed)
        assert x_ND is not None
        x_hat_ND = self.model(x_ND).x_hat
        if placed:
            x_hat_ND = x_hat_ND + code_change(self.model, x_ND, placed).values
        return rows, Change(x_hat_ND, torch.ones_like(x_hat_ND[:, :1], dtype=torch.bool))

    def _codes(
        self, frame: Frame, edit: Edit, device: torch.device
    ) -> tuple[Selection, torch.Tensor | None]:
        """The codes (B or 1, T or 1, F) that a swap puts at the columns of this pass, and which
        columns they have."""
        if edit.codes is None:
            return True, None
        codes = edit.codes.to(device)
        if len(codes) > 1:
            codes = expanded(codes, frame.batch, "the code")
        if codes.shape[1] == 1:
            return True, codes
        part = codes[:, frame.past : frame.past + frame.tokens]
        missing = frame.tokens - part.shape[1]
        known = torch.arange(frame.tokens, device=device)[None] < part.shape[1]
        part = torch.nn.functional.pad(part, (0, 0, 0, missing)) if missing else part
        return known if missing else True, part

    # -- the clean model, for codes of several hooks

    def _clean_states(self, frame: Frame, values: dict[str, Any]) -> torch.Tensor:
        """(B,T,D): the states of the clean model at all hooks of this pass, side by side."""
        # its KV cache
        generation = self.generations.current
        if generation is not None and generation.beams > 1:
            raise DataError(
                f"{self.name} has several hooks: its code is of the clean model, whose KV cache"
                " does not follow beams",
                "num_beams=1, or edits that only add",
            )
        if values.get("cache_params") is not None:
            raise DataError(
                f"{self.name} has several hooks: its code is of the clean model, whose recurrent"
                " state is not kept",
                "use_cache=False, or edits that only add",
            )
        cache = values.get("past_key_values")
        if cache is not None:
            clean = copy.deepcopy(cache) if frame.past == 0 else self._clean.get(cache)
            if clean is None or int(clean.get_seq_length()) != frame.past:
                raise DataError(
                    f"{self.name} has several hooks: the clean model has not seen the {frame.past}"
                    " tokens in the KV cache",
                    "attach it before the cache is filled, and do not crop it",
                )
            values = values | {"past_key_values": clean}
        # a pass that records the states
        states: dict[str, torch.Tensor] = {}
        with untouched(self.owner_module):
            handles = []
            for hook in self.inputs:
                handles += self._hook(hook, partial(_record, states, hook))
            try:
                output = self.owner_module(**values)
            finally:
                for handle in handles:
                    handle.remove()
        if cache is not None:
            self._clean_cache = values["past_key_values"]
        else:
            self._clean_cache = getattr(output, "past_key_values", None)
        return torch.cat([states[hook] for hook in self.inputs], -1)


def _record(states: dict[str, torch.Tensor], hook: str, state_BTD: torch.Tensor) -> None:
    # a copy: some models write into their hidden states
    states[hook] = state_BTD.clone()

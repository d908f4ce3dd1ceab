"""What each forward pass of an attached model says about its positions: padding, the columns that a
KV cache holds already, where the prompt ends, how an image is laid out.

A hook sees hidden states only. So the module that takes the tokens of the hooked stack (its
*owner*: LlamaModel, T5's decoder stack, the image tower of CLIP) tells it more by the arguments of
its call. Where a prompt ends follows from the first pass with a cache; `generate`, which may run
without a cache or go on with a filled one, says when it begins.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from saekit.errors import DataError
from saekit.intervention.positions import Frame

CHECKPOINTING = "_gradient_checkpointing_func"
CACHES = ("past_key_values", "cache_params")  # arguments of a pass, and fields of its output


@dataclass
class Generation:
    """One call of `generate`."""

    examples: int
    width: int
    """Columns of its prompt; 0: the first pass tells."""
    beams: int = 1
    prompts: dict[Owner, int] = field(default_factory=dict)


class Generations:
    """`current`: the call of `generate` that is running."""

    current: Generation | None = None


class Owner:
    """The module that takes the inputs of a stack; `frame` is that of the pass that is running."""

    def __init__(self, module: nn.Module, is_image: bool, generations: Generations) -> None:
        self.module, self.is_image, self.generations = module, is_image, generations
        self.frame: Frame | None = None
        self.failed = False
        """Whether a pass ended by an exception."""
        self.begun: list[Callable[[Frame, dict[str, Any]], None]] = []
        """Called at the beginning of a pass with its frame and arguments."""
        self.ended: list[Callable[[Any, Any], None]] = []
        """Called at its end with the cache that the pass took and the one that it returned."""
        self._parameters = list(inspect.signature(module.forward).parameters)
        # KV cache -> columns of its prompt, and of the passes that used it
        self._prompts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._cache: Any = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        handles = [
            self.module.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.module.register_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.frame = self._cache = None

    def _enter(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        values = dict(zip(self._parameters, args)) | kwargs
        caches = (values.get(name) for name in CACHES)
        self._cache = next((cache for cache in caches if cache is not None), None)
        self.frame = frame = self._frame_of(values)
        for call in self.begun:
            call(frame, values)

    def _leave(self, _module: nn.Module, _args: tuple, output: Any) -> None:
        frame, taken, self.frame, self._cache = self.frame, self._cache, None, None
        if frame is None or output is None:
            self.failed = True
            return
        returned = _cache_in(output)
        if returned is not None and taken is None:
            self._prompts[returned] = frame.prompt
        cache = returned if taken is None else taken
        if cache is not None:
            self._seen[cache] = frame.end
        for call in self.ended:
            call(taken, returned)

    def _frame_of(self, values: dict[str, Any]) -> Frame:
        if self.is_image:
            pixels = values.get("pixel_values")
            if not isinstance(pixels, torch.Tensor):
                return Frame(0, 0, is_image=True)
            return Frame(
                len(pixels), 0, examples=len(pixels), is_image=True, grid=self._grid(pixels),
                has_cls=self._has_cls(),
            )  # fmt: skip
        inputs = values.get("input_ids")
        inputs = values.get("inputs_embeds") if inputs is None else inputs
        if not isinstance(inputs, torch.Tensor) or inputs.ndim < 2:
            return Frame(0, 0)  # the states at the hook will say
        batch, tokens = inputs.shape[:2]
        mask = _main_mask(values.get("attention_mask"))
        past = self._past(mask, tokens)
        generation = self.generations.current
        examples = generation.examples if generation and not batch % generation.examples else batch
        frame = Frame(
            batch,
            tokens,
            past,
            self._prompt(past, tokens),
            examples,
            _real(mask, batch, past, tokens),
        )
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] >= frame.end:
            frame.mask = mask != 0
        if isinstance(values.get("position_ids"), torch.Tensor):
            frame.position_ids = values["position_ids"]
        return frame

    def _past(self, mask: Any, tokens: int) -> int:
        if self._cache is None:
            return 0
        try:
            return int(self._cache.get_seq_length())
        except (AttributeError, ValueError):  # the state of a recurrent layer has no length
            if self._cache in self._seen:
                return self._seen[self._cache]
        is_mask = isinstance(mask, torch.Tensor) and mask.ndim == 2
        return max(mask.shape[1] - tokens, 0) if is_mask else 0

    def _prompt(self, past: int, tokens: int) -> int:
        """Columns of the prompt. The first pass with a cache is the prompt."""
        generation = self.generations.current
        if generation is not None:
            return generation.prompts.setdefault(self, max(past + tokens, generation.width))
        if self._cache is None:
            return past + tokens
        if past == 0:
            self._prompts[self._cache] = tokens
        return self._prompts.setdefault(self._cache, past + tokens)

    def _grid(self, pixels: torch.Tensor) -> tuple[int, int] | None:
        patch = getattr(getattr(self.module, "config", None), "patch_size", None)
        if not patch or pixels.ndim != 4:
            return None
        rows, columns = (patch, patch) if isinstance(patch, int) else tuple(patch)
        return pixels.shape[2] // rows, pixels.shape[3] // columns

    def _has_cls(self) -> bool:
        names = {path.rsplit(".", 1)[-1] for path, _ in self.module.named_parameters()}
        return bool(names & {"cls_token", "class_embedding"})


def owner_of(module: nn.Module, path: str) -> tuple[nn.Module, bool]:
    """(the innermost module around `path` that takes tokens or pixels, whether it takes pixels);
    the model itself where none says so."""
    names = path.split(".")
    for depth in range(len(names) - 1, -1, -1):
        around = module.get_submodule(".".join(names[:depth]))
        if not hasattr(around, "config"):
            continue
        takes = inspect.signature(around.forward).parameters
        # an embedding takes tokens too, but no mask
        if "input_ids" in takes and ("attention_mask" in takes or depth == 0):
            return around, False
        if "pixel_values" in takes and "input_ids" not in takes:
            return around, True
    return module, False


@contextmanager
def generations_of(module: nn.Module, generations: Generations) -> Iterator[None]:
    """Within the body a call of `module.generate` is recorded in `generations`."""
    generate = getattr(module, "generate", None)
    if generate is None:
        yield
        return
    before = module.__dict__.get("generate")

    @functools.wraps(generate)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        outer, generations.current = generations.current, _generation(module, args, kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            generations.current = outer

    module.__dict__["generate"] = recorded
    try:
        yield
    finally:
        del module.__dict__["generate"]
        if before is not None:
            module.__dict__["generate"] = before


@contextmanager
def recomputed(owner: Owner, module: nn.Module, path: str) -> Iterator[None]:
    """Within the body the parts of a pass that gradient checkpointing runs again see the frame of
    their pass: it calls the layers outside of their model."""
    names = path.split(".")
    around = [module.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]
    with ExitStack() as stack:

        def wrap(frame: Frame, _values: dict[str, Any]) -> None:
            # at each pass, since the owner may switch checkpointing on at any time
            for layer in around:
                checkpoint = layer.__dict__.get(CHECKPOINTING)
                if checkpoint is None or isinstance(checkpoint, _WithFrame):
                    continue
                layer.__dict__[CHECKPOINTING] = _WithFrame(checkpoint, owner)
                stack.callback(unwrap, layer)

        def unwrap(layer: nn.Module) -> None:
            checkpoint = layer.__dict__.get(CHECKPOINTING)
            if isinstance(checkpoint, _WithFrame):
                layer.__dict__[CHECKPOINTING] = checkpoint.checkpoint

        owner.begun.append(wrap)
        yield


class _WithFrame:
    """A checkpoint function whose second run of a layer sees the frame of the first."""

    def __init__(self, checkpoint: Callable[..., Any], owner: Owner) -> None:
        self.checkpoint, self.owner = checkpoint, owner

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame = self.owner.frame

        def with_frame(*layer_args: Any, **layer_kwargs: Any) -> Any:
            outer, self.owner.frame = self.owner.frame, frame
            try:
                return layer(*layer_args, **layer_kwargs)
            finally:
                self.owner.frame = outer

        return self.checkpoint(with_frame, *args, **kwargs)


def _generation(module: Any, args: tuple, kwargs: dict[str, Any]) -> Generation:
    inputs = (*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
    given = next((value for value in inputs if isinstance(value, torch.Tensor)), None)
    config = kwargs.get("generation_config") or getattr(module, "generation_config", None)
    beams = kwargs.get("num_beams") or getattr(config, "num_beams", None) or 1
    if given is None:
        return Generation(1, 0, beams)
    width, mask = given.shape[1] if given.ndim > 1 else 0, kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        width = max(width, mask.shape[1])
    encodes = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return Generation(len(given), 0 if encodes or given.is_floating_point() else width, beams)


def _cache_in(output: Any) -> Any:
    """The KV cache that a pass returned; None without one."""
    parts = [getattr(output, name, None) for name in CACHES]
    parts += output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def _main_mask(mask: Any) -> Any:
    """The attention mask of the layers that see everything, where layers differ."""
    if isinstance(mask, dict):
        full = mask.get("full_attention")
        return next((m for m in mask.values() if m is not None), None) if full is None else full
    return mask


def _real(mask: Any, batch: int, past: int, tokens: int) -> torch.Tensor | None:
    """(B,T) bool, False at padding; None without padding. Raises DataError for a mask that does not
    say which tokens are padding."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape[-1] < past + tokens or mask.ndim < 2:
        shape = tuple(getattr(mask, "shape", ()))
        raise DataError(
            f"the attention mask ({type(mask).__name__} {shape}) does not say which tokens are"
            " padding",
            "give a mask (B,T)",
        )
    if mask.ndim == 2:
        real = mask[:, past : past + tokens] != 0
    else:
        # a token that is not padding sees itself
        itself = (mask if mask.ndim == 3 else mask[:, 0])[:, -tokens:, past : past + tokens]
        seen = itself.diagonal(dim1=1, dim2=2)
        real = seen if seen.dtype == torch.bool else seen >= 0 if _additive(mask) else seen != 0
    return None if bool(real.all()) else real.expand(batch, tokens)


def _additive(mask: torch.Tensor) -> bool:
    """Whether it is added to the scores: 0 where a token is seen, else very negative."""
    return mask.is_floating_point() and bool((mask <= 0).all())

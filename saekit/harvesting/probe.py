"""The width of a hook of a loaded model, from one forward pass on two different tiny inputs.

The pass is that of a harvest (same part of the model, same kinds of input), so what it refuses
could not be harvested: a module that does not run or runs several times, that does not return a
vector per token, or returns the same vectors for all tokens (rotary embeddings return cosines and
sines, position embeddings their table).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saekit.errors import DataError, SaekitError
from saekit.harvesting.anatomy import CONTEXTS, TOKENS, prove, structure, untouched, vocabulary
from saekit.harvesting.hooks import block_hint, capture, resolve_hook
from saekit.harvesting.images import prepared


def hook_widths(live: Any, hooks: Sequence[str]) -> dict[str, int]:
    """Hook -> d_in, on a LiveModel.

    Raises DataError for an unknown hook, for one whose module does not return hidden states, when
    the model cannot be run, and when an image model's tokens are not the class token, registers and
    patches of its configuration.
    """
    # Resolve the hooks, and run the model.
    batch = tiny_batch(live)
    prove(
        live.module,
        lambda: run(live, batch),
        (CONTEXTS, TOKENS) if "input_ids" in batch else (CONTEXTS,),
    )
    paths = {hook: resolve_hook(live.module, hook, live.name) for hook in hooks}
    tokens = live.image_tokens.count if live.image_tokens else TOKENS
    before = structure(live.module)
    with untouched(live.module):
        with capture(live, list(hooks), stop=True) as states:
            run(live, batch)
        # BigBird: block_sparse becomes original_full as soon as an input is short
        if structure(live.module) != before:
            raise DataError(
                f"{live.name} replaces its own modules when an input is short, so rows would depend"
                " on earlier batches",
                "write the kind of attention that it falls back to into its config.json (BigBird:"
                " attention_type original_full)",
            )
    # Check the shapes and that the states depend on the input.
    for hook, path in paths.items():
        state = states[hook]
        if tuple(state.shape[:2]) != (CONTEXTS, tokens):
            if live.image_tokens and state.shape[0] == CONTEXTS:
                raise DataError(
                    f"{path} gives {state.shape[1]} vectors for {tokens} tokens"
                    f" ({live.image_tokens.account()})",
                    f"{block_hint(live.module)}; models that merge patches on the way have no fixed"
                    " grid",
                )
            raise DataError(
                f"{path} gives a tensor {tuple(state.shape)} for {CONTEXTS} inputs of {tokens}"
                " tokens, not one vector per token",
                block_hint(live.module),
            )
        if state.shape[2] == 0:
            raise DataError(
                f"{path} is the output head, which the file of {live.name} does not hold",
                block_hint(live.module),
            )
        if torch.equal(state[0], state[1]):
            raise DataError(
                f"{path} gives the same vectors for all {_words(live)}: these are not hidden"
                " states",
                block_hint(live.module),
            )
    return {hook: states[hook].shape[-1] for hook in hooks}


def tiny_batch(live: Any) -> dict[str, torch.Tensor]:
    """Two different contexts, or two different images through the model's processor."""
    if live.image_tokens:
        return {"pixel_values": prepared(noise_images(live.image_tokens.channels), live.processor)}
    root = live.module.get_submodule(live.tower)
    known = vocabulary(root)
    ids = (
        torch.arange(CONTEXTS * TOKENS).view(CONTEXTS, TOKENS)
        * max(known // (CONTEXTS * TOKENS), 1)
        % known
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def noise_images(channels: int) -> list[Any]:
    from PIL import Image

    rng = np.random.default_rng(0)
    shape = (32, 32) if channels == 1 else (32, 32, 3)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(CONTEXTS)]


def run(live: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """live.forward; any error becomes a DataError: it is the first pass of this model."""
    try:
        return live.forward(inputs)
    except SaekitError:
        raise
    except Exception as error:  # a model may raise anything
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise DataError(
            f"{live.name} cannot be run: {type(error).__name__}: {first}",
            "try the model in transformers by itself; what fails there cannot be harvested",
        ) from error


def _words(live: Any) -> str:
    return "images" if live.image_tokens else "tokens"

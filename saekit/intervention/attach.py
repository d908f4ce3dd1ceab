"""Attach a dictionary to a running model and edit its code: `saekit.attach`.

At the hook, a state x has the code z, and an edit makes z' of it. The model goes on with

    x' = x + decode(z') - decode(z),

so what the dictionary does not explain, the error x - decode(z), stays in. Four decisions:

- *Edits act wherever the hook runs.* The hook fires in every forward pass, so also at each token
  that is decoded with a KV cache, in every beam, and when gradient checkpointing runs a layer
  again. Where a pass is in its sequence comes from the arguments of the module that takes its
  tokens (`passes`), so that generation with a cache equals generation without one.
- *Only the difference is decoded.* An edit of few latents reads few rows of the decoder; where each
  latent has its own threshold also few rows of the encoder; adding reads none. A position whose
  code does not change keeps its bits, and without edits nothing is computed.
- *Edits act in the order of the calls*, each on the code that the former ones left, also
  conditions. Of several dictionaries at one hook, the later sees the states that the former left.
- *The model is the caller's.* It stays the same object, and its hooks, its `generate` and its
  checkpointing function are as before after the body, also after an exception.

| file | |
|---|---|
| live.py | the verbs |
| edits.py | z' of z, and x' - x |
| positions.py | which positions of a pass |
| passes.py | what a pass says about itself |
| sites.py | hooks in the model: autoencoders, transcoders, crosscoders |
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError, SaekitError, UsageError, opt
from saekit.harvesting.anatomy import plain
from saekit.harvesting.hooks import resolve_hook
from saekit.harvesting.uncompiled import uncompiled
from saekit.harvesting.views import split_hook
from saekit.indexing.maxima import indexed_maxima
from saekit.interop.opening import open_checkpoint
from saekit.intervention.live import AttachedDictionary, Live
from saekit.intervention.passes import Generations, Owner, generations_of
from saekit.intervention.positions import Positions, checked
from saekit.intervention.sites import Site
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import restore
from saekit.models.cross_layer import CrossLayerTranscoder
from saekit.store.checkpoint import Checkpoint
from saekit.store.reader import Store
from saekit.training.checkpoints import ModelLike, kind_of, path_or_model

Hooks = str | Sequence[str]


@contextmanager
def attach(
    model: Any,
    dictionary: ModelLike | Sequence[ModelLike] | Mapping[str | tuple[str, ...], ModelLike],
    hook: Hooks | Sequence[Hooks] | None = None,
    *,
    error: bool = True,
    positions: Positions = "all",
    maxima: torch.Tensor | None = None,
) -> Iterator[Live]:
    """Within the body `model` runs with the edits that are made on what this returns.

    Parameters
        model: any transformers module, or a LiveModel. It stays an ordinary model: `generate` in
            every mode, pipelines, streamers, evaluation harnesses and training run it as before.
        dictionary: an autoencoder, transcoder or crosscoder: a checkpoint folder, a published
            dictionary, a model in memory or what `saekit.train` returned. A list of several, or a
            mapping of hooks to them.
        hook: where it acts, named as for `capture` (`blocks.9` is the residual stream after block
            9). A crosscoder has one per part, in the order of training; a transcoder its input and
            its output; a cross-layer transcoder its inputs, then its outputs; a list of
            dictionaries a list of these. None: as the checkpoint says.
        error: False replaces the states at `positions` by the reconstruction of the edited code, so
            that the error is left out; without edits too. A transcoder then takes its module's
            place.
        positions: of edits that do not give their own.
        maxima: (F,), the largest activation of each latent, the unit of `add`. None: from the index
            beside a checkpoint (`saekit.index`), if there is one.

    Without edits every bit of the model's output is as before, and edits change the positions that
    they name only; padding never. Dictionaries are copied to the model's device where they are on
    another one. Gradients flow through the edited states and the code; run `backward` inside the
    body where gradient checkpointing is on.

        with saekit.attach(model, "runs/sae") as live:
            live.add(1234, 4.0, positions="generated")
            live.when(42, above=0.5).ablate([5, 7])
            output = model.generate(**inputs)

    The code of a crosscoder or a cross-layer transcoder is that of the clean model on the same
    tokens (a second pass), which beam search cannot follow; a crosscoder's edits that only add need
    none.

    Raises UsageError for a dictionary without hook, of whole examples or of raw data, DataError for
    a hook that is unknown, has another width or no states (B,T,D), runs several times in a pass, or
    did not run although there are edits.
    """
    module: nn.Module = model if isinstance(model, nn.Module) else model.module
    module = plain(module)
    several = _with_hooks(dictionary, hook)
    if maxima is not None and len(several) > 1:
        raise UsageError(f"{opt('maxima')} is for one dictionary", "attach one after the other")
    opened = [_opened(module, source, hooks, name) for name, source, hooks in several]

    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        # one owner tells all the sites that it holds
        generations, owners = Generations(), dict[nn.Module, Owner]()
        stack.enter_context(generations_of(module, generations))
        attached: dict[str, AttachedDictionary] = {}
        for part in opened:
            site = Site(module, part.model, part.name, part.inputs, part.outputs, error, "all")
            site.positions = checked(positions, site.is_image)
            if site.owner_module not in owners:
                owner = Owner(site.owner_module, site.is_image, generations)
                owners[site.owner_module] = owner
                stack.enter_context(owner.watched())
            stack.enter_context(site.hooked(owners[site.owner_module], generations))
            units = part.maxima if maxima is None else _checked_maxima(maxima, part.model)
            attached[_unused(part.name, attached)] = AttachedDictionary(site, units)
        yield Live(attached)


@dataclass(frozen=True)
class _Opened:
    name: str
    model: Autoencoder
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    maxima: torch.Tensor | None


def _with_hooks(dictionary: Any, hook: Any) -> list[tuple[str | None, ModelLike, Hooks | None]]:
    """(name, dictionary, hooks) of each."""
    if isinstance(dictionary, Mapping):
        if hook is not None:
            raise UsageError(f"{opt('hook')}: the mapping names the hooks", f"drop {opt('hook')}")
        return [
            (key if isinstance(key, str) else " and ".join(key), value, key)
            for key, value in dictionary.items()
        ]
    if not isinstance(dictionary, list | tuple):
        return [(None, dictionary, hook)]
    hooks = [None] * len(dictionary) if hook is None else hook
    if isinstance(hooks, str) or len(hooks) != len(dictionary) or not dictionary:
        raise UsageError(
            f"{len(dictionary)} dictionaries are given with hook={hook!r}",
            f"{opt('hook')} with a list of one hook per dictionary",
        )
    return [(None, source, its) for source, its in zip(dictionary, hooks)]


def _opened(module: nn.Module, source: Any, hooks: Hooks | None, name: str | None) -> _Opened:
    """The dictionary on the model's device, with its hooks. Raises UsageError, DataError."""
    # what it is
    source, checkpoint, maxima = path_or_model(source), None, None
    if isinstance(source, Autoencoder):
        model = source
    else:
        checkpoint = open_checkpoint(source)
        config = checkpoint.config
        model = restore(config["model"], config["config"], checkpoint.tensors)
        maxima = indexed_maxima(checkpoint.path, config, model.latents)
    title = str(source) if checkpoint else f"the {kind_of(model)} dictionary"
    if model.takes != "rows":
        raise UsageError(
            f"{title} takes whole examples ({model.takes}), not hidden states",
            "attach a dictionary of hidden states",
        )
    # where it acts
    inputs, outputs = _split_hooks(model, title, hooks_of(checkpoint, model, title, hooks))
    # on the model's device
    path = split_hook(resolve_hook(module, outputs[0]))[0]
    weights = [*module.get_submodule(path).parameters(), *module.parameters()]
    device = weights[0].device if weights else torch.device("cpu")
    its_device = next(iter(model.state_dict().values())).device
    if isinstance(source, Autoencoder) and (model.training or its_device != device):
        model = copy.deepcopy(model)
    return _Opened(name or title, model.to(device).eval(), inputs, outputs, maxima)


def _counts(model: Autoencoder) -> tuple[str, int, int]:
    """(the kind of dictionary, how many hooks its code is of, how many more it writes to)."""
    if isinstance(model, CrossLayerTranscoder):
        return "a cross-layer transcoder", model.config.layers, model.config.layers
    if parts := getattr(model.config, "parts", ()):
        return "a crosscoder", len(parts), 0
    if getattr(model.config, "d_out", 0):
        return "a transcoder", 1, 1
    return "an autoencoder", 1, 0


def _split_hooks(
    model: Autoencoder, title: str, hooks: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(inputs, outputs). Raises UsageError for another number of hooks."""
    kind, reads, writes = _counts(model)
    if len(hooks) != reads + writes:
        takes = f"{reads} hook{'s' * (reads > 1)}"
        takes = f"{reads} input and {writes} output hooks" if writes else takes
        raise UsageError(f"{title} is {kind} of {takes}; {opt('hook')} has {len(hooks)}")
    if len(set(hooks)) < len(hooks):
        raise UsageError(f"{title} is of one hook in several models", "attach to one of them only")
    inputs = tuple(hooks[:reads])
    return inputs, tuple(hooks[reads:]) if writes else inputs


def hooks_of(
    checkpoint: Checkpoint | None, model: Autoencoder, title: str, hooks: Hooks | None
) -> tuple[str, ...]:
    """The inputs and then the outputs: those given, else those that a checkpoint was trained on.
    Raises UsageError where neither says so."""
    if hooks is not None:
        return (hooks,) if isinstance(hooks, str) else tuple(hooks)
    kind, reads, writes = _counts(model)
    remedy = f"{opt('hook')} with the hook that it was trained on"
    if reads + writes > 1:
        which = "its inputs, then of its outputs" if writes else "its parts, in order"
        remedy = f"{opt('hook')} with the hooks of {which}"
    # what the checkpoint says
    if checkpoint is None:
        raise UsageError(f"{title} is in memory, and does not say which hook it belongs to", remedy)
    spec, published = checkpoint.config["spec"], checkpoint.config.get("published", {})
    if str(spec.get("model")).startswith("raw:"):
        raise UsageError(f"{title} was trained on {spec['model']}, not on a model's hidden states")
    target = published.get("target_hook")
    target = target or _target_hook(checkpoint.config["training"].get("target_store"))
    hooks_read, hooks_written = spec.get("hook") or "", target if writes and target else ""
    if not hooks_read or (writes and not hooks_written):
        what = "writes to" if hooks_read else "reads"
        raise UsageError(f"{title} is {kind}, and does not say which hook it {what}", remedy)
    return tuple(hook for hook in f"{hooks_read}+{hooks_written}".split("+") if hook)


def _target_hook(store: str | None) -> str | None:
    try:
        return None if store is None else Store(Path(store)).spec.hook
    except SaekitError:
        return None  # the store may be gone


def _checked_maxima(maxima: torch.Tensor, model: Autoencoder) -> torch.Tensor:
    if tuple(maxima.shape) != (model.latents,):
        raise DataError(
            f"{opt('maxima')} has the shape {tuple(maxima.shape)}, and there are"
            f" {model.latents:,} latents"
        )
    return maxima.detach().float().cpu()


def _unused(name: str, used: Mapping[str, Any]) -> str:
    """The name, with a number where it is taken."""
    number = 1
    while (numbered := name if number == 1 else f"{name} ({number})") in used:
        number += 1
    return numbered

"""Which latents, at which positions, made a logit what it is: `saekit.attribute`
(docs/attribution.md).

Effects of nodes (a latent at a position, or the error there) are estimated by gradient x activation
or by integrated gradients from 0 (Marks et al. 2024, arXiv 2403.19647, section 3). The largest are
then ablated in the running model, one by one and together, and stand beside the estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from saekit.errors import UsageError, check_choice, opt
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.attributed import Attributed, attributed_image, attributed_text
from saekit.intervention.attribution import Keep, Node, Passes
from saekit.intervention.live import AttachedDictionary
from saekit.intervention.subject import borrowed
from saekit.models.autoencoder import Autoencoder
from saekit.options import Doc
from saekit.training.checkpoints import ModelLike, path_or_model
from saekit.types import Progress

Method = Literal["integrated", "gradient"]


@dataclass(frozen=True)
class Attribution:
    """A node: a latent (`index`; None: the error) at a position of a hook.

    effect: predicted, by how much the metric falls when the node is set to 0. ablated: measured.
    token: the text of the position; None for images.
    """

    hook: str
    index: int | None
    position: int
    token: str | None
    effect: float
    ablated: float


@dataclass(frozen=True)
class AttributionResult:
    """What `attribute` returns."""

    metric: str
    """What is explained, in words."""
    value: float
    """Of the clean model."""
    nodes: list[Attribution]
    """The largest effects by size."""
    correlation: float | None
    """Pearson, of `effect` and `ablated` over `nodes`."""
    together: tuple[float, float]
    """The sum of the effects of `nodes`, and by how much the metric falls without all of them."""
    total: tuple[float, float]
    """The same for all nodes of all hooks."""
    faithfulness: float | None
    """(m(C) - m(empty)) / (m(M) - m(empty)), where m is the metric, M all nodes and C `nodes`;
    error nodes are nodes like others."""
    completeness: float | None
    """The same for all nodes but C: near 0 where C holds all that matters."""
    faithfulness_errors: float | None
    """Faithfulness, with all errors kept in every pass."""
    completeness_errors: float | None


def attribute(
    checkpoints: Annotated[
        Sequence[ModelLike] | ModelLike,
        Doc(
            "Checkpoints, each of another hook: folders, or published dictionaries by their paths"
            " or names.",
            metavar="CKPT...",
            positional=True,
        ),
    ],
    *,
    prompt: Annotated[str | None, Doc("Text whose next token is explained.")] = None,
    image: Annotated[
        str | Path | None, Doc("Image file whose class is explained.", metavar="FILE")
    ] = None,
    target: Annotated[
        str | int | None,
        Doc("Token, with its leading space, or class, whose logit is explained.", metavar="TOKEN"),
    ] = None,
    versus: Annotated[
        str | tuple[str | int, str | int] | None,
        Doc("Two tokens or classes: the logit of A less that of B is explained.", metavar="A,B"),
    ] = None,
    top: Annotated[int, Doc("Nodes to ablate and print.")] = 20,
    method: Annotated[
        Method,
        Doc("Integrated gradients from 0 to the code, or gradient x activation (one pass)."),
    ] = "integrated",
    steps: Annotated[int, Doc("Steps of the integrated gradients, for each hook.")] = 10,
    hook: Hooks | Sequence[Hooks] | None = None,
    live: Any = None,
    processor: Any = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> AttributionResult:
    """The latents and errors with the largest effects on a logit after the prompt, or of a class.

    Parameters
        checkpoints: autoencoders, as `attach` takes them: one, or a list of one per hook.
        prompt, image: exactly one of these. image: a file, for a classifier with its head.
        target, versus: exactly one of these; texts that are one token each, or token numbers; names
            or numbers of classes. versus: a pair, or a text "A,B".
        top: nodes to return, those with the largest effects by size.
        method: "integrated" | "gradient".
        hook: of each checkpoint; None: as the checkpoint says.
        live: the model: a LiveModel, or a module. None: the one that the first checkpoint was
            trained on.
        processor: the tokenizer or image processor of a module.

    Raises UsageError, DataError (transcoders and crosscoders too), MissingError.
    """
    # what is asked
    if (prompt is None) == (image is None):
        raise UsageError(f"give exactly one of {opt('prompt')} and {opt('image')}")
    if (target is None) == (versus is None):
        raise UsageError(f"give exactly one of {opt('target')} and {opt('versus')}")
    check_choice("method", method, ("integrated", "gradient"))
    for name, number in (("top", top), ("steps", steps)):
        if number < 1:
            raise UsageError(f"{opt(name, number)} must be at least 1")
    if isinstance(checkpoints, str) or not isinstance(checkpoints, Sequence):
        checkpoints = [checkpoints]
    sources = [path_or_model(source) for source in checkpoints]
    if not sources:
        raise UsageError("give at least one checkpoint")
    # the model and its input
    if prompt is not None:
        asked = attributed_text(sources[0], live, processor, prompt, target, versus)
    else:
        assert image is not None
        asked = attributed_image(sources[0], live, processor, image, target, versus)
    hooks = [hook] if isinstance(hook, str) else hook
    module: nn.Module = asked.live.module
    with borrowed(module), attach(module, sources, hooks) as attached:
        models = _by_hook(list(attached))
        passes = Passes(asked.live, asked.inputs, models, asked.metric)
        progress(Progress("attribute", 0, 2, "passes", message=f"{asked.name} {passes.clean:.4f}"))
        effects = passes.effects(steps if method == "integrated" else None)
        progress(Progress("attribute", 1, 2, "passes"))
        result = _measured(asked, passes, effects, top)
    progress(Progress("attribute", 2, 2, "passes"))
    return result


def _by_hook(attached: Sequence[AttachedDictionary]) -> dict[str, Autoencoder]:
    """hook -> dictionary. Raises UsageError for kinds that read or write several hooks."""
    models: dict[str, Autoencoder] = {}
    for dictionary in attached:
        site = dictionary.site
        if tuple(site.inputs) != tuple(site.outputs) or len(site.outputs) > 1:
            raise UsageError(
                f"{site.name} is a transcoder or crosscoder, whose output is not its input",
                "give autoencoders of one hook each",
            )
        if site.outputs[0] in models:
            raise UsageError(f"{site.outputs[0]} has two dictionaries", "give one per hook")
        models[site.outputs[0]] = dictionary.model
    return models


def _measured(
    asked: Attributed,
    passes: Passes,
    effects: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    top: int,
) -> AttributionResult:
    """The largest effects beside real ablations."""
    chosen = _largest(effects, top)
    nodes = [node for node, _ in chosen]
    predicted = [effect for _, effect in chosen]
    # one by one, and in sets
    sets = [
        Keep(nodes, only, errors) for errors in (False, True) for only in (True, False)
    ] + [Keep((), True, errors) for errors in (False, True)]  # fmt: skip
    values = passes.ablated([*(Keep([node]) for node in nodes), *sets])
    singles, (kept, rest, kept_errors, rest_errors, empty, empty_errors) = (
        values[: len(nodes)],
        values[len(nodes) :],
    )
    real = [passes.clean - value for value in singles]
    total = sum(float(part.sum()) for pair in effects.values() for part in pair)
    return AttributionResult(
        asked.name,
        passes.clean,
        [
            Attribution(node.hook, node.index, node.position, asked.token(node.position), *both)
            for node, *both in zip(nodes, predicted, real)
        ],
        pearson(predicted, real),
        (sum(predicted), passes.clean - rest),
        (total, passes.clean - empty),
        _share(kept, empty, passes.clean),
        _share(rest, empty, passes.clean),
        _share(kept_errors, empty_errors, passes.clean),
        _share(rest_errors, empty_errors, passes.clean),
    )


def _largest(
    effects: Mapping[str, tuple[torch.Tensor, torch.Tensor]], top: int
) -> list[tuple[Node, float]]:
    """The nodes with the largest effects by size; those without effect are dropped."""
    found: list[tuple[Node, float]] = []
    for hook, (codes_TF, errors_T) in effects.items():
        joint = torch.cat([codes_TF, errors_T[:, None]], 1)
        latents = codes_TF.shape[1]
        for flat in joint.flatten().abs().topk(min(top, joint.numel())).indices.tolist():
            position, column = divmod(flat, latents + 1)
            node = Node(hook, position, column if column < latents else None)
            found.append((node, float(joint[position, column])))
    found = [pair for pair in found if pair[1] != 0]
    return sorted(found, key=lambda pair: -abs(pair[1]))[:top]


def _share(value: float, empty: float, full: float) -> float | None:
    """None where the passes differ by rounding only."""
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty), 1.0):
        return None
    return (value - empty) / (full - empty)


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation; None where one of them does not vary."""
    both = torch.tensor([a, b], dtype=torch.float64)
    if both.shape[1] < 2 or bool((both.std(1) == 0).any()):
        return None
    r = float(torch.corrcoef(both)[0, 1])
    return r if math.isfinite(r) else None

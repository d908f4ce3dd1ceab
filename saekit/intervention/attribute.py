"""Which latents, at which positions, made a logit what it is: `saekit.attribute`
(docs/attribution.md).

Effects of nodes (a latent at a position, or the error there) are estimated by gradient x activation
or by integrated gradients from 0 (Marks et al. 2024, arXiv 2403.19647, section 3), whose path is
here that of a part of a position's nodes. The largest are
then ablated in the running model, one by one and together, and stand beside the estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from saekit.display import brief, pandas
from saekit.errors import UsageError, check_choice, opt
from saekit.intervention.ablations import Effects, KeptSet, ablations, by_size, pearson
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.attributed import Attributed, attributed_image, attributed_text
from saekit.intervention.attribution import GROUPS, Passes, Place
from saekit.intervention.live import AttachedDictionary
from saekit.intervention.subject import borrowed
from saekit.options import Doc
from saekit.training.checkpoints import ModelLike, path_or_model
from saekit.types import Progress

Method = Literal["integrated", "gradient"]


@dataclass(frozen=True)
class Attribution:
    """A node: a latent (`index`; None: the error) at a position.

    hook: where its dictionary writes; of a crosscoder all its hooks, joined by "+".
    effect: predicted, by how much the metric falls when the node is set to 0. ablated: measured.
    token: the text of the position; of an image its patch ("row 0, column 3") or "class token".
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
    curve: list[KeptSet]
    """Faithfulness and completeness of the largest nodes, by their number."""

    def __repr__(self) -> str:
        figures = {"value": self.value, "nodes": len(self.nodes), "correlation": self.correlation}
        kept = {"faithfulness": self.faithfulness, "completeness": self.completeness}
        return brief(self, {**figures, **kept}, repr(self.metric))

    def to_pandas(self) -> Any:
        """A DataFrame of `nodes`, one row each. Raises MissingError without pandas."""
        return pandas().DataFrame([vars(node) for node in self.nodes])

    @property
    def faithfulness(self) -> float | None:
        """As of a KeptSet, of `nodes`."""
        return self._kept.faithfulness

    @property
    def completeness(self) -> float | None:
        """The same."""
        return self._kept.completeness

    @property
    def faithfulness_errors(self) -> float | None:
        """The same."""
        return self._kept.faithfulness_errors

    @property
    def completeness_errors(self) -> float | None:
        """The same."""
        return self._kept.completeness_errors

    @property
    def _kept(self) -> KeptSet:
        return next(kept for kept in self.curve if kept.nodes == len(self.nodes))


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
        str | Path | None,
        Doc("Image whose class is explained: a file, or embedded:NAME:IMAGE.", metavar="IMAGE"),
    ] = None,
    target: Annotated[
        str | int | None,
        Doc("Token, with its leading space, or class, whose logit is explained.", metavar="TOKEN"),
    ] = None,
    versus: Annotated[
        str | tuple[str | int, str | int] | None,
        Doc("Two tokens or classes: the logit of A less that of B is explained.", metavar="A,B"),
    ] = None,
    positions: Annotated[
        str | int | slice,
        Doc(
            "Nodes at these positions only, all others run as in the model. Text: all, an index,"
            " FROM:TO (1: drops the first token, which many models use as an attention sink)."
            " Image: all, cls, patches.",
            metavar="WHERE",
        ),
    ] = "all",
    top: Annotated[int, Doc("Nodes to ablate and print.")] = 20,
    method: Annotated[
        Method,
        Doc("Integrated gradients from 0 to the code, or gradient x activation (one pass)."),
    ] = "integrated",
    steps: Annotated[int, Doc("Steps of the integrated gradients.")] = 5,
    groups: Annotated[
        int, Doc("Groups of a position's latents, which integrated gradients move one at a time.")
    ] = GROUPS,
    hook: Hooks | Sequence[Hooks] | None = None,
    live: Any = None,
    processor: Any = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> AttributionResult:
    """The latents and errors with the largest effects on a logit after the prompt, or of a class.

    Parameters
        checkpoints: dictionaries as `attach` takes them: one, or a list that writes to a hook once.
        prompt, image: exactly one of these. image: a file, for a classifier with its head.
        target, versus: exactly one of these; texts that are one token each, or token numbers; names
            or numbers of classes. versus: a pair, or a text "A,B".
        positions: those that have nodes: an index, a slice, or a text as on the command line. All
            others run as in the model in every pass, also in that without any node.
        top: nodes to return, those with the largest effects by size.
        method: "integrated" | "gradient".
        groups: 1 moves all latents of a position together; more are slower, and nearer to single
            ablations.
        hook: of each checkpoint, as for `attach`; None: as the checkpoint says.
        live: the model: a LiveModel, or a module. None: the one that the first checkpoint was
            trained on.
        processor: the tokenizer or image processor of a module.

    Raises UsageError, DataError, MissingError.
    """
    # what is asked
    if (prompt is None) == (image is None):
        raise UsageError(f"give exactly one of {opt('prompt')} and {opt('image')}")
    if (target is None) == (versus is None):
        raise UsageError(f"give exactly one of {opt('target')} and {opt('versus')}")
    check_choice("method", method, ("integrated", "gradient"))
    for name, number in (("top", top), ("steps", steps), ("groups", groups)):
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
        passes = Passes(asked.live, asked.inputs, _places(list(attached)), asked.metric)
        passes.positions = asked.chosen(positions, passes.count)
        progress(Progress("attribute", 0, 2, "passes", message=f"{asked.name} {passes.clean:.4f}"))
        effects = passes.effects(steps if method == "integrated" else None, groups)
        progress(Progress("attribute", 1, 2, "passes"))
        result = _measured(asked, passes, effects, top)
    progress(Progress("attribute", 2, 2, "passes"))
    return result


def _places(attached: Sequence[AttachedDictionary]) -> list[Place]:
    """Raises UsageError for two dictionaries that write to one hook."""
    places: list[Place] = []
    for dictionary in attached:
        site = dictionary.site
        place = Place(site.model, tuple(site.inputs), tuple(site.outputs), tuple(site.out_widths))
        for hook in place.outputs:
            if any(hook in other.outputs for other in places):
                raise UsageError(f"{hook} has two dictionaries", "give one per hook")
        places.append(place)
    return places


def _measured(asked: Attributed, passes: Passes, effects: Effects, top: int) -> AttributionResult:
    """The largest effects beside real ablations."""
    pairs = by_size(effects)
    nodes, predicted = [node for node, _ in pairs], [effect for _, effect in pairs]
    measured = ablations(passes, nodes, top)
    rows = [
        Attribution(node.hook, node.index, node.position, asked.place(node.position), *both)
        for node, *both in zip(nodes, predicted, measured.singles)
    ]
    return AttributionResult(
        asked.name,
        passes.clean,
        rows,
        pearson(predicted[:top], measured.singles),
        (sum(predicted[:top]), measured.together),
        (sum(predicted), measured.total),
        measured.curve,
    )

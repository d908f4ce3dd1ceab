"""Attacks on the pictures that a user gives, and pictures from noise, with what the model makes of
them.

Shapes: B images, C channels, h w pixels, V classes, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saekit.attacks.balls import Ball
from saekit.attacks.perturb import Method, Perturbed, fgsm, pgd
from saekit.attacks.pixels import Picture, in_8_bits, pixels_of, pixels_of_image
from saekit.attacks.results import (
    AttackedImage,
    AttackResult,
    LatentChange,
    MadeImage,
    State,
    VisualizeResult,
)
from saekit.attacks.scores import ClassScore, Direction, LatentScore
from saekit.attacks.target import Target
from saekit.attacks.top import top_pictures
from saekit.attacks.visualize import VisualizeConfig, visualize
from saekit.types import Progress

CHANGED = 10  # latents that are listed


def attacked(
    aim: Target,
    pictures: Sequence[Picture],
    target: str | int | None,
    label: str | int | None,
    latent: int | None,
    direction: Direction,
    method: Method,
    ball: Ball,
    steps: int,
    step_size: float | None,
    restarts: int,
    seed: int,
    progress: Callable[[Progress], None],
) -> AttackResult:
    """All pictures in one batch. Raises the errors of `attack`."""
    x = torch.cat([pixels_of(picture, aim.live, aim.scale) for picture in pictures])
    # what is raised
    from_B = to = None
    latent_score = None if latent is None else aim.latent_score(latent, direction)
    if latent_score is not None:
        score, what = latent_score, f"{direction} latent {latent}"
    elif target is not None:
        to = aim.number(target)
        score = ClassScore(aim.logits, torch.full((len(x),), to, device=x.device), targeted=True)
        what = f"the class {aim.names[to]}"
    else:
        with torch.no_grad():
            from_B = aim.logits(x).argmax(1)
        if label is not None:
            from_B = torch.full_like(from_B, aim.number(label))
        score = ClassScore(aim.logits, from_B)
        what = "any other class"
    # the attack
    found = (
        fgsm(score, x, ball)
        if method == "fgsm"
        else pgd(score, x, ball, steps, step_size, restarts, seed, progress)
    )
    # what the model makes of it
    rows = [_states(aim, latent_score, pixels) for pixels in (x, found.x, in_8_bits(found.x))]
    maximum = aim.dictionary.maximum(latent) if aim.dictionary and latent is not None else None
    if latent is not None:
        _tell_if_dead(latent, maximum, "attack", progress)
    changes = _changes(aim, x, found.x)
    linf_B, l2_B = (Ball(norm, 1.0).sizes(found.x, x) for norm in ("linf", "l2"))
    images = []
    for number, picture in enumerate(pictures):
        before, after, rounded = (states[number] for states in rows)
        own = None if from_B is None else aim.names[int(from_B[number])]
        wanted = None if to is None else aim.names[to]
        images.append(
            AttackedImage(
                name_of(picture, number), own, wanted, before, after, rounded,
                _verdict(own, wanted, direction, before, after, maximum),
                float(linf_B[number]), float(l2_B[number]), changes[number],
            )
        )  # fmt: skip
    return AttackResult(
        aim.live.name, what, method, ball.norm, ball.eps, 1 if method == "fgsm" else steps,
        1 if method == "fgsm" else restarts, latent, None if latent is None else direction, maximum,
        images, _pairs(x, found),
    )  # fmt: skip


def visualized(
    aim: Target,
    latent: int,
    options: Mapping[str, Any],
    count: int,
    seed: int,
    store: str | Path | None,
    progress: Callable[[Progress], None],
) -> VisualizeResult:
    """`count` pictures for a latent, the best first, beside the store's. `options` are fields of a
    VisualizeConfig; jitter is half a patch by default. Raises the errors of `attack`."""
    score = aim.latent_score(latent, "raise")
    layout, its = aim.live.image_tokens, aim.dictionary
    assert layout is not None and its is not None
    half_patch = max(layout.size[0] // layout.grid[0] // 2, 1)
    config = VisualizeConfig(**{"jitter": half_patch, **options})
    top = top_pictures(its, store, latent, progress)
    maximum = its.maximum(latent)
    _tell_if_dead(latent, maximum, "visualize", progress)
    made = visualize(score, (layout.channels, *layout.size), config, count, seed, progress)
    order = made.scores.argsort(descending=True)
    x = made.x[order]
    with torch.no_grad():
        pre_N = score.preactivations(x).amax(1)
    states = _states(aim, score, x)
    images = [
        MadeImage(state.activation or 0.0, float(value), state.label, state.probability)
        for state, value in zip(states, pre_N)
    ]
    shown = [pixels_of_image(image, aim.live, aim.scale)[0].cpu() for _, _, image in top]
    return VisualizeResult(
        aim.live.name, latent, maximum, images, config.steps, made.curve,
        [(name, value) for name, value, _ in top], list(x.cpu()), shown,
    )  # fmt: skip


def _tell_if_dead(
    latent: int, maximum: float | None, phase: str, progress: Callable[[Progress], None]
) -> None:
    if maximum == 0:
        text = f"latent {latent} never fires on the scanned store: nothing shows what it stands for"
        progress(Progress(phase, 0, 1, message=text))


def name_of(picture: Picture, number: int) -> str:
    return f"image {number}" if isinstance(picture, torch.Tensor) else str(picture)


@torch.no_grad()
def _states(aim: Target, score: LatentScore | None, x: torch.Tensor) -> list[State]:
    count = len(x)
    acts = [None] * count if score is None else score.activations(x).amax(1).tolist()
    if not aim.names:
        return [State(None, None, act) for act in acts]
    top = aim.logits(x).softmax(1).max(1)
    labels = [aim.names[number] for number in top.indices.tolist()]
    return [State(*row) for row in zip(labels, top.values.tolist(), acts)]


def _verdict(
    own: str | None,
    wanted: str | None,
    direction: Direction,
    before: State,
    after: State,
    maximum: float | None,
) -> bool | None:
    """Whether the attack succeeded; None where the picture was so before."""
    if wanted is None and own is None and direction == "raise":
        assert before.activation is not None and after.activation is not None
        return after.activation > max(before.activation, maximum or 0.0)

    def reached(state: State) -> bool:
        if wanted is not None:
            return state.label == wanted
        return state.label != own if own is not None else state.activation == 0

    return None if reached(before) else reached(after)


def _changes(aim: Target, before: torch.Tensor, after: torch.Tensor) -> list[list[LatentChange]]:
    """Of each image the latents that change most."""
    if aim.dictionary is None:
        return [[] for _ in before]
    was_BF, is_BF = aim.largest_activations(before), aim.largest_activations(after)
    largest = (is_BF - was_BF).abs().topk(min(CHANGED, was_BF.shape[1]), dim=1).indices
    return [
        [LatentChange(j, float(was_BF[b, j]), float(is_BF[b, j])) for j in row]
        for b, row in enumerate(largest.tolist())
    ]


def _pairs(x: torch.Tensor, found: Perturbed) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.cpu(), found.x.cpu()))

"""Steer a language model by a dictionary's latents, and measure what that does: `steer_text`.

What is compared is the model's next-token distribution, clean and edited, over the same text, so
that the figures do not depend on where two generated texts part. The effect of a dose is on tokens
that are chosen without the prompt: those that the largest dose raises most after the beginning of a
text only. At each dose two controls are added in the latent's place, with the same norm: random
directions, and the decoder rows of random latents. An effect that they have too is none of this
latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from saekit.errors import UsageError, check_choice, opt
from saekit.harvesting.models import LiveModel, load_model
from saekit.interop.opening import open_checkpoint
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.controls import Controls, controls_of
from saekit.intervention.live import Live
from saekit.intervention.positions import TEXT_NAMES, Positions
from saekit.intervention.steered_text import (
    Continuation,
    Edit,
    Span,
    SteeredText,
    TokenChange,
    divergences,
    effects,
    perplexity,
)
from saekit.training.checkpoints import ModelLike, path_or_model
from saekit.types import Progress


@dataclass(frozen=True)
class Dose:
    strength: float
    effect: float
    """Mean change of the log-probability of the targets together, in nats, over the clean text."""
    kl: float
    """Mean KL(clean || steered) over the clean text, in nats."""
    perplexity: float
    """As of a Continuation, of the text written at this dose."""
    text: str
    random_directions: list[float]
    """The effects of random directions of the same norm."""
    random_latents: list[float]

    @property
    def is_beyond_controls(self) -> bool:
        """Whether no control has as large an effect."""
        controls = self.random_directions + self.random_latents
        return all(abs(self.effect) > abs(control) for control in controls)


@dataclass(frozen=True)
class SteerResult:
    prompt: str
    edits: list[str]
    clean: Continuation
    steered: Continuation
    raised: list[TokenChange]
    """The most raised next tokens after the prompt."""
    lowered: list[TokenChange]
    targets: list[str]
    """The tokens whose probability is the effect of a dose; [] without doses."""
    doses: list[Dose]
    report: str | None = None
    """The path of the page, where one was written."""

    @property
    def is_monotone(self) -> bool:
        """Whether a larger dose never has a smaller effect."""
        effects = [dose.effect for dose in sorted(self.doses, key=lambda dose: dose.strength)]
        return bool(effects) and all(a <= b for a, b in pairwise(effects))

    @property
    def verdict(self) -> str:
        """What the doses show, in a sentence; "" without doses."""
        ends = (
            [min(self.doses, key=_strength), max(self.doses, key=_strength)] if self.doses else []
        )
        ends = [dose for dose in ends if dose.strength]
        if not ends:
            return ""
        if not all(dose.is_beyond_controls for dose in ends):
            return "no effect of this latent: controls of the same norm have one as large"
        shape = "monotone in the dose" if self.is_monotone else "not monotone in the dose"
        return f"the effect is larger than that of every control, and {shape}"


def steer_text(
    checkpoint: ModelLike,
    prompt: str,
    latents: Mapping[int, float],
    *,
    ablate: Sequence[int] = (),
    dose: Sequence[float] = (),
    model: LiveModel | str | None = None,
    hook: Hooks | None = None,
    error: bool = True,
    raw: bool = False,
    maxima: torch.Tensor | None = None,
    positions: Span = "all",
    chat: bool = False,
    max_new_tokens: int = 40,
    seed: int = 0,
    top: int = 10,
    partial: Callable[[SteerResult], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SteerResult:
    """What a language model writes and expects with latents of a dictionary added or ablated.

    Parameters
        checkpoint: an autoencoder or transcoder, as `attach` takes it.
        prompt: the text before; with `chat` a user's message, in the model's chat template.
        latents: latent -> strength, in multiples of its largest activation; raw=True: in the code's
            own units.
        ablate: latents that are set to 0.
        dose: strengths of the one latent in `latents`, each measured beside its controls.
        model: the model, loaded or by its name; None: the one that the checkpoint was trained on.
        hook, error, maxima: as for `attach`. The clean model has its error in any case.
        positions: "all", "prompt", "generated" or "last".
        max_new_tokens: of the texts, which are written greedily.
        seed: of the controls.
        top: how many tokens are listed, and are targets of the doses.
        partial: called with the result so far after both texts are known and after each dose.

    Raises UsageError and DataError, also for a model without logits.
    """
    # the model, its text, and the edits
    check_choice("positions", positions, TEXT_NAMES)
    if dose and (len(latents) != 1 or ablate):
        raise UsageError(f"{opt('dose')} is of one latent", "give one, and ablate none")
    source = path_or_model(checkpoint)
    if max_new_tokens < 1:
        raise UsageError(f"{opt('max_new_tokens', max_new_tokens)} must be at least 1")
    model = model_name_of(source) if model is None else model
    live_model = load_model(model) if isinstance(model, str) else model
    text = SteeredText(live_model, prompt, chat, positions, max_new_tokens, error)

    def add(strengths: Mapping[int, float]) -> Edit:
        return lambda live, where: edit_latents(live, strengths, ablate, raw, where)

    with torch.inference_mode(), attach(live_model, source, hook, maxima=maxima) as live:
        # both texts, and both models' distributions over each
        given = add(latents)
        clean_ids, steered_ids = text.written(live), text.written(live, given)
        edits = live.edits
        clean = text.log_p(live, clean_ids), text.log_p(live, clean_ids, given)
        steered = text.log_p(live, steered_ids), text.log_p(live, steered_ids, given)
        change_V = clean[1][0] - clean[0][0]
        result = SteerResult(
            prompt,
            edits,
            text.continuation(clean_ids, *clean),
            text.continuation(steered_ids, *steered),
            [text.change(token, clean) for token in change_V.topk(top).indices.tolist()],
            [text.change(token, clean) for token in (-change_V).topk(top).indices.tolist()],
            targets=[],
            doses=[],
        )
        partial(result)
        # the doses
        if not dose:
            return result
        (latent,) = latents
        targets = text.raised_by(live, add({latent: max(map(abs, dose))}), top)
        result = replace(result, targets=[text.decoded([token]) for token in targets.tolist()])
        controls = controls_of(live[0], latent, raw, seed)
        for number, strength in enumerate(dose):
            progress(Progress("steer", number, len(dose), unit="doses"))
            edit = add({latent: strength})
            measured = _dose(text, live, edit, strength, clean_ids, targets, controls)
            result = replace(result, doses=[*result.doses, measured])
            partial(result)
        progress(Progress("steer", len(dose), len(dose), unit="doses"))
    return result


def _dose(
    text: SteeredText,
    live: Live,
    edit: Edit,
    strength: float,
    clean_ids: torch.Tensor,
    targets: torch.Tensor,
    controls: Controls,
) -> Dose:
    clean_TV, steered_TV = text.log_p(live, clean_ids), text.log_p(live, clean_ids, edit)
    ids = text.written(live, edit)
    of_controls = text.controlled(live, controls, strength, clean_ids)
    return Dose(
        strength,
        effects(clean_TV, steered_TV[None], targets)[0],
        float(divergences(clean_TV, steered_TV).mean()),
        perplexity(text.log_p(live, ids), text.new(ids)),
        text.decoded(text.new(ids)),
        *(effects(clean_TV, edited_CTV, targets) for edited_CTV in of_controls),
    )


def model_name_of(source: object) -> str:
    """The name of the model that a checkpoint was trained on. Raises UsageError where it does not
    say so."""
    name = open_checkpoint(source).config["spec"].get("model") if isinstance(source, str) else None
    if not name:
        raise UsageError("the checkpoint does not say which model it belongs to", opt("model"))
    return name


def edit_latents(
    live: Live, strengths: Mapping[int, float], ablate: Sequence[int], raw: bool, where: Positions
) -> None:
    """Add and ablate at these positions."""
    if strengths:
        live.add(list(strengths), list(strengths.values()), raw=raw, positions=where)
    if ablate:
        live.ablate(ablate, positions=where)


def _strength(dose: Dose) -> float:
    return dose.strength

"""Steer a language model by a dictionary's latents, and measure what that does: `steer_text`.

What is compared is the model's next-token distribution, clean and edited, over the same text, so
that the figures do not depend on where two generated texts part. The effect of a dose is on tokens
that are chosen without the prompt: by the caller, or those that the largest dose raises most after
the beginning of a text only. At each dose two controls are added in the latent's place, with the
same norm: random directions, and the decoder rows of random latents. An effect that they have too
is none of this latent.

Sampled texts have a seed each. Figures of a dose are then means over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean
from typing import Any

import torch

from saekit.display import brief
from saekit.errors import UsageError, opt
from saekit.harvesting.models import LiveModel, load_model
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.controls import Controls, controls_of
from saekit.intervention.doses import (
    Edit,
    Response,
    check_dose,
    dose_frame,
    edit_of,
    is_monotone,
    model_name_of,
    scope,
    verdict,
)
from saekit.intervention.live import Live
from saekit.intervention.steered_text import (
    Continuation,
    Span,
    SteeredText,
    TokenChange,
    Writing,
    divergences,
    effects,
    perplexity,
)
from saekit.training.checkpoints import ModelLike, path_or_model
from saekit.types import Progress


@dataclass(frozen=True)
class Dose(Response):
    """A Response: effect is the mean change, over the clean text, of the log-probability of the
    targets together, and kl the mean over it; of several seeds their means."""

    perplexity: float
    """As of a Continuation, of the text written at this dose; of several the geometric mean."""
    effects: list[float]
    """Of each seed."""
    texts: list[str]
    """Of each seed."""

    @property
    def text(self) -> str:
        """Of the first seed."""
        return self.texts[0]


@dataclass(frozen=True)
class SteerResult:
    prompt: str
    edits: list[str]
    seeds: list[int]
    clean_texts: list[Continuation]
    """Of each seed."""
    steered_texts: list[Continuation]
    raised: list[TokenChange]
    """The most raised next tokens after the prompt."""
    lowered: list[TokenChange]
    targets: list[str]
    """The tokens whose probability is the effect of a dose; [] without doses."""
    doses: list[Dose]
    targets_are_named: bool = False
    """By the caller; otherwise the largest dose chose them."""
    report: str | None = None
    """The path of the page, where one was written."""

    def __repr__(self) -> str:
        texts = {"clean": self.clean.text, "steered": self.steered.text}
        ends = {"verdict": self.verdict or None, "report": self.report}
        return brief(self, {"edits": self.edits, **texts, **ends}, repr(self.prompt))

    def to_pandas(self) -> Any:
        """A DataFrame of the doses, one row each. Raises MissingError without pandas."""
        return dose_frame(self.doses)

    @property
    def clean(self) -> Continuation:
        """Of the first seed."""
        return self.clean_texts[0]

    @property
    def steered(self) -> Continuation:
        return self.steered_texts[0]

    @property
    def is_monotone(self) -> bool:
        """Whether a larger dose never has a smaller effect."""
        return is_monotone(self.doses)

    @property
    def verdict(self) -> str:
        """What the doses show, in a sentence; "" without doses."""
        return verdict(self.doses)

    @property
    def scope(self) -> str:
        """What the verdict tests and what it does not; "" without doses."""
        return scope(self.targets, self.targets_are_named)


def steer_text(
    checkpoint: ModelLike,
    prompt: str,
    latents: Mapping[int, float],
    *,
    ablate: Sequence[int] = (),
    dose: Sequence[float] = (),
    targets: Sequence[str] | Sequence[int] = (),
    model: LiveModel | str | None = None,
    hook: Hooks | None = None,
    error: bool = True,
    raw: bool = False,
    maxima: torch.Tensor | None = None,
    positions: Span = "all",
    chat: bool = False,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    seeds: int = 1,
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
        targets: tokens, written or by number, whose probability together is the effect of a dose;
            (): the `top` tokens that the largest dose raises most after the beginning of a text.
        model: the model, loaded or by its name; None: the one that the checkpoint was trained on.
        hook, error, maxima: as for `attach`. The clean model has its error in any case.
        positions: "all", "prompt", "generated" or "last".
        max_new_tokens: of the texts.
        temperature: texts are sampled from the distribution with this temperature; 0: greedy.
        seed: of the first sampled text, and of the controls.
        seeds: how many texts are sampled, with the seeds from `seed` on.
        top: how many tokens are listed.
        partial: called with the result so far after the texts are known and after each dose.

    Raises UsageError and DataError, also for a model without logits.
    """
    # the model, its text, and the edits
    writing = Writing(positions, chat, max_new_tokens, temperature)
    check_dose(dose, latents, ablate)
    if seeds < 1 or (seeds > 1 and not temperature):
        raise UsageError(
            f"{opt('seeds', seeds)}: greedy texts have no seed", f"{opt('temperature')} samples"
        )
    source = path_or_model(checkpoint)
    model = model_name_of(source) if model is None else model
    live_model = load_model(model) if isinstance(model, str) else model
    text = SteeredText(live_model, prompt, writing, error)
    asked = text.tokens(targets)
    if len(asked) and not dose:
        raise UsageError(f"{opt('targets')} are what doses are measured on", f"{opt('dose')}")
    numbers = list(range(seed, seed + seeds))

    with torch.inference_mode(), attach(live_model, source, hook, maxima=maxima) as live:
        clean_ids = {number: text.written(live, None, number) for number in numbers}
        result = beside(text, live, edit_of(latents, ablate, raw), clean_ids, top)
        partial(result)
        if not dose:
            return result
        # the doses
        (latent,) = latents
        progress(Progress("steer", 0, len(dose), unit="doses"))
        measured = dosed(text, live, result, clean_ids, latent, dose, asked, raw, seed, top)
        for number, result in enumerate(measured, 1):
            partial(result)
            progress(Progress("steer", number, len(dose), unit="doses"))
    return result


def dosed(
    text: SteeredText,
    live: Live,
    result: SteerResult,
    clean_ids: Mapping[int, torch.Tensor],
    latent: int,
    dose: Sequence[float],
    targets: torch.Tensor,
    raw: bool,
    seed: int,
    top: int,
    tell: Callable[[str], None] | None = None,
) -> Iterator[SteerResult]:
    """`result`, which `beside` returned, with one dose of the latent more each time, each beside
    its controls. `targets`: token ids (n,); none: those that the largest dose raises. `seed`: of
    the controls. `tell` is for the text of each dose, as in `SteeredText.written`."""
    largest = edit_of({latent: max(map(abs, dose))}, (), raw)
    tokens = targets if len(targets) else text.raised_by(live, largest, top)
    named = [text.decoded([token]) for token in tokens.tolist()]
    result = replace(result, targets=named, targets_are_named=bool(len(targets)))
    controls = controls_of(live[0], latent, raw, seed)
    for strength in dose:
        edit = edit_of({latent: strength}, (), raw)
        measured = _dose(text, live, edit, strength, clean_ids, tokens, controls, tell)
        result = replace(result, doses=[*result.doses, measured])
        yield result


def beside(
    text: SteeredText,
    live: Live,
    edit: Edit,
    clean_ids: Mapping[int, torch.Tensor],
    top: int,
    tell: Callable[[str], None] | None = None,
) -> SteerResult:
    """The clean and the steered text of each seed, and both models' distributions over each.
    `clean_ids` are what `text.written` gives without an edit, `tell` is for those with it."""
    steered_ids = {seed: text.written(live, edit, seed, tell) for seed in clean_ids}
    edits = live.edits

    def both(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return text.log_p(live, ids), text.log_p(live, ids, edit)

    texts = clean_ids.values(), steered_ids.values()
    log_ps = [[both(ids) for ids in of_model] for of_model in texts]
    of_clean, of_steered = (
        [text.continuation(ids, *log_p) for ids, log_p in zip(*pair)] for pair in zip(texts, log_ps)
    )
    # the first token after the prompt has one distribution for all seeds
    first = log_ps[0][0]
    change_V = first[1][0] - first[0][0]
    return SteerResult(
        text.prompt,
        edits,
        list(clean_ids),
        of_clean,
        of_steered,
        [text.change(token, first) for token in change_V.topk(top).indices.tolist()],
        [text.change(token, first) for token in (-change_V).topk(top).indices.tolist()],
        targets=[],
        doses=[],
    )


def _dose(
    text: SteeredText,
    live: Live,
    edit: Edit,
    strength: float,
    clean_ids: Mapping[int, torch.Tensor],
    targets: torch.Tensor,
    controls: Controls,
    tell: Callable[[str], None] | None = None,
) -> Dose:
    """Means over the seeds of `clean_ids`, which are those of the texts at this dose."""
    of_latent, of_controls, kls, perplexities, texts = [], [], [], [], []
    for seed, ids in clean_ids.items():
        # over the clean text
        clean_TV, steered_TV = text.log_p(live, ids), text.log_p(live, ids, edit)
        of_latent += effects(clean_TV, steered_TV[None], targets)
        kls.append(float(divergences(clean_TV, steered_TV).mean()))
        controlled = text.controlled(live, controls, strength, ids)
        of_controls.append([effects(clean_TV, log_p_CTV, targets) for log_p_CTV in controlled])
        # the text at this dose
        written = text.written(live, edit, seed, tell)
        perplexities.append(perplexity(text.log_p(live, written), text.new(written)))
        texts.append(text.decoded(text.new(written)))
    directions, latents = (
        [fmean(values) for values in zip(*of_kind)] for of_kind in zip(*of_controls)
    )
    return Dose(
        strength, fmean(of_latent), fmean(kls), directions, latents,
        geometric_mean(perplexities), of_latent, texts,
    )  # fmt: skip

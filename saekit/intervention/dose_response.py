"""The effect of a latent on chosen tokens over given texts. Nothing is generated, so that many
latents can be measured in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from saekit.errors import UsageError, opt
from saekit.harvesting.models import LiveModel
from saekit.intervention.attach import attach
from saekit.intervention.controls import controls_of
from saekit.intervention.doses import Response, control_added, is_monotone
from saekit.intervention.reconstruct import log_probabilities
from saekit.intervention.steered_text import divergences, effects
from saekit.training.checkpoints import ModelLike


@torch.inference_mode()
def dose_response(
    live_model: LiveModel,
    checkpoint: ModelLike,
    latent: int,
    targets: Sequence[int],
    texts: Sequence[str],
    doses: Sequence[float],
    *,
    hook: str | None = None,
    maxima: torch.Tensor | None = None,
    seed: int = 0,
) -> list[Response]:
    """One response per dose, to a latent that is added at every position.

    Parameters
        targets: token ids. An effect is the mean, over the texts and over all positions of each, of
            the change of the log-probability of the targets together, in nats.
        doses: in multiples of the latent's largest activation. Controls of the same norm are
            measured at the smallest and at the largest; other responses have none.
        hook, maxima: as for `attach`.
        seed: of the controls.

    Raises UsageError, and the errors of `attach`.
    """
    if not (targets and texts and doses):
        raise UsageError(f"give {opt('targets')}, {opt('texts')} and {opt('doses')}")
    module, device = live_model.module, live_model.device
    passages = [live_model.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    passages = [ids_1T.to(device) for ids_1T in passages]
    target_tokens = torch.tensor(targets, device=device)
    clean = [_log_p(module, ids_1T, 1)[0] for ids_1T in passages]

    def measured(count: int) -> tuple[list[float], list[float]]:
        """(effect, KL) of each of `count` edits, of which each has its own example of a batch."""
        effects_of_texts, kl_of_texts = [], []
        for ids_1T, clean_TV in zip(passages, clean):
            edited_CTV = _log_p(module, ids_1T, count)
            effects_of_texts.append(effects(clean_TV, edited_CTV, target_tokens))
            kl_of_texts.append([float(divergences(clean_TV, e_TV).mean()) for e_TV in edited_CTV])
        return _means(effects_of_texts), _means(kl_of_texts)

    # the latent
    with attach(live_model, checkpoint, hook, maxima=maxima) as live:
        controls = controls_of(live[0], latent, raw=False, seed=seed)
        for example, dose in enumerate(doses):
            live.add(latent, dose, examples=example)
        of_latent = measured(len(doses))
    # the controls in its place
    of_controls: dict[float, list[list[float]]] = {}
    for dose in {min(doses), max(doses)}:
        of_controls[dose] = []
        for kind in controls.kinds:
            with control_added(module, controls, kind, dose, "all") as count:
                of_controls[dose].append(measured(count)[0])
    return [
        Response(dose, effect, kl, *of_controls.get(dose, ([], [])))
        for dose, effect, kl in zip(doses, *of_latent)
    ]


def holds(responses: Sequence[Response]) -> bool:
    """Whether the effect is monotone in the dose and, at the smallest and at the largest dose,
    larger in size than that of every control. A dose of 0 is not compared with controls."""
    strengths = [response.strength for response in responses]
    ends = [r for r in responses if r.strength in (min(strengths), max(strengths)) and r.strength]
    assert all(end.random_directions and end.random_latents for end in ends), "without controls"
    return bool(ends) and is_monotone(responses) and all(end.is_beyond_controls for end in ends)


def _means(of_texts: list[list[float]]) -> list[float]:
    return [fmean(values) for values in zip(*of_texts)]


def _log_p(module: Any, ids_1T: torch.Tensor, count: int) -> torch.Tensor:
    """(count,T,V): next-token distributions of `count` copies of a text."""
    logits = module(ids_1T.expand(count, -1), use_cache=False).logits
    return log_probabilities(logits.flatten(0, 1)).view_as(logits)

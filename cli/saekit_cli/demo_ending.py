"""How `saekit demo` ends: a sentence of the language model with a latent added, beside its
controls."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from saekit_cli.screen import Reporter, message

if TYPE_CHECKING:
    from saekit.harvesting.models import LiveModel
    from saekit.intervention.steer import SteerResult

# The latent that is added is not chosen by hand: the first of these, in the order of
# `next_token_latents`, that is monotone in the dose and beyond its controls.
TRIES = 3
PROMPT = "When the rain stopped, the children"
DOSES = (1.0, 2.0)
NEW_TOKENS = 16


def steer(live_model: LiveModel, folder: Path, run: str, quiet: bool = False) -> list[str]:
    """Steer the model of `folder`/store by the first latent of `folder`/`run` that holds; the lines
    to print. The report is in `folder`/steered."""
    import saekit
    from saekit.inspection.next_token import next_token_latents
    from saekit.intervention.dose_response import holds
    from saekit.intervention.steer import SteerResult

    # the latents in order
    checkpoint = folder / run
    latents = next_token_latents(checkpoint, folder / "store", live_model)[:TRIES]
    message("steer", f"at most {TRIES} latents, up to one with an effect of its own")
    # one after the other
    about, again = "no latent is followed by one token often enough to be steered", ""
    result = None
    for tried, latent in enumerate(latents, 1):
        with Reporter(quiet) as reporter:
            result = saekit.steer(
                checkpoint,
                prompt=PROMPT,
                latents={latent.latent: max(DOSES)},
                dose=DOSES,
                targets=[latent.token],
                model=live_model,
                max_new_tokens=NEW_TOKENS,
                out=folder / "steered",
                overwrite=True,
                progress=reporter,
            )
        assert isinstance(result, SteerResult), "of a text"
        about = (
            f"latent {latent.latent}, number {tried} by the rule: {latent.text!r} follows"
            f" {latent.share:.0%} of its strongest rows"
        )
        again = f"again   {_command(checkpoint, result, latent.latent)}"
        if holds(result.doses):
            break
        about += f"; none of the {tried} tried has an effect of its own"
    return [about] if result is None else [about, *_steered_lines(result), again]


def _command(checkpoint: Path, result: SteerResult, latent: int) -> str:
    """What gives the same figures by hand."""
    words = ["saekit", "steer", str(checkpoint), "--prompt", result.prompt]
    words += [
        "--latent",
        f"{latent}=+{max(DOSES):g}",
        "--dose",
        f"{DOSES[0]:g}:{DOSES[-1]:g}:{len(DOSES)}",
    ]
    words += ["--target", result.targets[0], "--max-new-tokens", str(NEW_TOKENS)]
    return shlex.join(words)


def _steered_lines(result: SteerResult) -> list[str]:
    """The texts, the largest dose beside its controls, and the verdict."""
    largest = max(result.doses, key=lambda dose: dose.strength)
    controls = largest.random_directions + largest.random_latents
    target = repr(result.targets[0])
    return [
        f"prompt  {result.prompt!r}",
        f"clean   {result.clean.text!r}",
        f"steered {result.steered.text!r}",
        f"effect  {largest.effect:+.2f} nats on {target} at dose {largest.strength:+g}; the largest"
        f" of {len(controls)} controls has {max(controls, key=abs):+.2f}",
        f"verdict {result.verdict}",
        f"open    {Path(result.report or '').resolve()}",
    ]

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, message, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saekit.intervention.steer import SteerResult
    from saekit.intervention.steer_image import ImageSteerResult
    from saekit.intervention.steered_text import Continuation, TokenChange

NAME = "steer"
EXAMPLES = [
    "saekit steer runs/topk --prompt 'The list is' --latent 123=+4",
    "saekit steer runs/topk --prompt 'The list is' --latent 123=+4 --dose -8:8:9 --out steered",
    "saekit steer runs/topk --prompt 'The list is' --latent 123=+4 --temperature 0.7 --seeds 5",
    "saekit steer runs/vision --image digit.png --latent 12=+2 --ablate 5,7 --positions patches",
]
KEY = (
    *("prompt", "image", "latents", "ablate", "dose", "targets", "max_new_tokens"),
    *("out", "overwrite"),
)
NARROWEST = 24  # columns of a text
CLASSES = 10
SMALLEST_KL = 0.0001  # of a patch that is named
DOSED = 3  # classes with their probabilities at each dose
OF_TEXTS = (
    "KL(clean || steered) of the next tokens along each of the two texts, in nats; perplexity of"
    " each under the clean model."
)
OF_TOKENS = "next token after the prompt, change of its log-probability in nats"
GOES_ON = "…"  # before a token that continues a word
NONE_OF_IT = (
    "Controls are random directions and random latents of the same norm: an effect that they have"
    " too is none of this latent."
)


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.report.steering import steer

    return options_of(steer)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Add latents to a running model, or ablate them, and measure what that does."""
    from saekit.report.steering import steer

    known: list[SteerResult | ImageSteerResult] = []
    with Reporter(quiet) as reporter:
        try:
            result = steer(**given, partial=known.append, progress=reporter)
        except KeyboardInterrupt:
            reporter.close()
            if known:
                done = len(known[-1].doses)
                of_doses = f"; figures and verdict are those of {done} doses" if done else ""
                message("note", f"interrupted: what was measured before{of_doses}")
                _print(known[-1], json_)
            raise
    _print(result, json_)


def _print(result: SteerResult | ImageSteerResult, json_: bool) -> None:
    from saekit.intervention.steer import SteerResult

    is_text = isinstance(result, SteerResult)
    if json_:
        print_json(_text_json(result) if is_text else _image_json(result))
        return
    typer.echo("\n".join(_text_lines(result) if is_text else _image_lines(result)))
    if result.report:
        typer.echo(f"open    {result.report}")


def _text_json(result: SteerResult) -> dict[str, Any]:
    from saekit.intervention.doses import control_rows

    keys = ("strength", "effect", "effects", "kl", "perplexity", "text", "texts")
    return {
        "clean": dataclasses.asdict(result.clean),
        "steered": [dataclasses.asdict(text) for text in result.steered_texts],
        "clean_texts": [dataclasses.asdict(text) for text in result.clean_texts],
        "seeds": result.seeds,
        "edits": result.edits,
        "raised": [dataclasses.asdict(change) for change in result.raised],
        "lowered": [dataclasses.asdict(change) for change in result.lowered],
        "targets": result.targets,
        "dose": [{key: getattr(dose, key) for key in keys} for dose in result.doses],
        "controls": control_rows(result.doses),
        "verdict": result.verdict or None,
        "scope": result.scope or None,
        "report": result.report,
    }


def _image_json(result: ImageSteerResult) -> dict[str, Any]:
    from saekit.intervention.doses import control_rows

    keys = ("strength", "effect", "kl")
    labels = [change.label for change in result.classes]
    return {
        "clean": [{"label": c.label, "probability": c.clean} for c in result.classes],
        "steered": [{"label": c.label, "probability": c.steered} for c in result.classes],
        "edits": result.edits,
        "kl": result.kl,
        "patches": result.patches,
        "targets": result.targets,
        "dose": [
            {key: getattr(dose, key) for key in keys}
            | {"probabilities": dict(zip(labels, dose.probabilities))}
            for dose in result.doses
        ],
        "controls": control_rows(result.doses),
        "verdict": result.verdict or None,
        "scope": result.scope or None,
        "report": result.report,
    }


def _text_lines(result: SteerResult) -> list[str]:
    from saekit.report.steer_page import spread

    lines = [*result.edits, ""]
    rows = []
    for seed, clean, steered in zip(result.seeds, result.clean_texts, result.steered_texts):
        which = f", seed {seed}" if len(result.seeds) > 1 else ""
        lines += [*_side_by_side(clean, steered, which), ""]
        rows += [
            [name + which, f"{fmean(part.kl):.4f}", figure(part.perplexity, ".2f")]
            for name, part in (("clean", clean), ("steered", steered))
        ]
    lines += [table(("text", "KL per token", "perplexity"), rows), OF_TEXTS, ""]
    lines += token_lines(result.raised, result.lowered)
    if not result.doses:
        return lines
    several = len(result.seeds) > 1
    more = [
        [figure(dose.perplexity, ".2f"), *([spread(dose.effects)] if several else [])]
        for dose in result.doses
    ]
    header = ("perplexity", *(["over seeds"] if several else []))
    return lines + _dose_lines(result, header, more)


def _side_by_side(clean: Continuation, steered: Continuation, which: str) -> list[str]:
    width = max((shutil.get_terminal_size().columns - 2) // 2, NARROWEST)

    def wrapped(text: str) -> list[str]:
        return [line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""]]

    columns = zip_longest(
        [f"clean{which}", *wrapped(clean.text)],
        [f"steered{which}", *wrapped(steered.text)],
        fillvalue="",
    )
    return [f"{left:<{width}}  {right}".rstrip() for left, right in columns]


def token_lines(raised: list[TokenChange], lowered: list[TokenChange]) -> list[str]:
    # a vocabulary whose words begin with a blank: a letter without one goes on with a word
    marked = any(change.token.startswith(" ") for change in [*raised, *lowered])

    def shown(changes: list[TokenChange]) -> str:
        tokens = [GOES_ON * (marked and c.token[:1].isalpha()) + c.token for c in changes]
        return "  ".join(
            f"{token!r} {c.steered - c.clean:+.2f}" for token, c in zip(tokens, changes)
        )

    legend = f"{OF_TOKENS}; {GOES_ON} continues a word" if marked else OF_TOKENS
    return [f"raised   {shown(raised)}", f"lowered  {shown(lowered)}", f"({legend})"]


def _dose_lines(
    result: SteerResult | ImageSteerResult, header: Sequence[str], more: Sequence[list[str]]
) -> list[str]:
    """`more`: further cells of each dose, below `header`."""
    from saekit.report.steer_page import spread

    rows = [
        [
            f"{dose.strength:+g}",
            f"{dose.effect:+.3f}",
            spread(dose.random_directions),
            spread(dose.random_latents),
            figure(dose.kl),
            *cells,
        ]
        for dose, cells in zip(result.doses, more)
    ]
    columns = ("dose", "effect", "random directions", "random latents", "KL", *header)
    targets = "  ".join(map(repr, result.targets))
    lines = ["", f"effect on  {targets}", table(columns, rows, left=()), NONE_OF_IT]
    return [*lines, f"verdict    {result.verdict}", result.scope] if result.verdict else lines


def _image_lines(result: ImageSteerResult) -> list[str]:
    rows = [[c.label, f"{c.clean:.2%}", f"{c.steered:.2%}"] for c in result.classes[:CLASSES]]
    flat = [(kl, y, x) for y, row in enumerate(result.patches) for x, kl in enumerate(row)]
    kl, y, x = max(flat)
    where = f", in row {y}, column {x}" if kl >= SMALLEST_KL else ""
    lines = [
        *(*result.edits, "", table(("class", "clean", "steered"), rows), ""),
        f"KL {result.kl:.4f}; of a single patch at most {kl:.4f}{where}",
    ]
    if not result.doses:
        return lines
    labels, probabilities = result.by_dose(DOSED)
    more = [[f"{value:.2%}" for value in row] for row in probabilities]
    return lines + _dose_lines(result, labels, more)

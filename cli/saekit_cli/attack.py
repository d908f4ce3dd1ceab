from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.attacks.results import AttackedImage, AttackResult, State, VisualizeResult

NAME = "attack"
EXAMPLES = [
    "saekit attack embedded:digits-vit --image embedded:digits:5 --eps 16/255",
    "saekit attack embedded:digits-vit --image eight.png --target 3 --norm l2 --eps 1 --out out",
    "saekit attack runs/vision --image photo.png --latent 123 --direction silence",
    "saekit attack runs/vision --latent 123 --from noise --restarts 4 --out made",
]
KEY = (
    *("image", "target", "latent", "direction", "norm", "eps", "start"),
    *("out", "overwrite"),
)
LISTED = 5  # latents per image


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.attacks.run import attack

    return options_of(attack)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Change pictures so that a classifier errs or a latent fires, or make them from noise."""
    from saekit.attacks.page import numbers
    from saekit.attacks.results import AttackResult
    from saekit.attacks.run import attack

    with Reporter(quiet) as reporter:
        result = attack(**given, progress=reporter)
    if json_:
        print_json(numbers(result))
        return
    lines = _attacked(result) if isinstance(result, AttackResult) else _made(result)
    typer.echo("\n".join(lines))
    if result.report:
        typer.echo(f"open    {result.report}")


def _attacked(result: AttackResult) -> list[str]:
    on_latent = result.latent is not None
    header = ["image", "", "class", "probability", *(["activation"] if on_latent else [])]
    rows = []
    for image in result.images:
        states = (("before", image.before), ("after", image.after), ("rounded", image.rounded))
        for number, (when, state) in enumerate(states):
            name = "" if number else image.image
            rows.append([name, when, *_state(state), *_activation(state, on_latent)])
    starts = f", {result.restarts} starts" * (result.restarts > 1)
    levels = f" ({result.eps * 255:.3g}/255)" * (result.norm == "linf")
    lines = [
        f"{result.objective}: {result.method}, {result.steps} steps{starts}, {result.norm}"
        f" {result.eps:.4g} of the pixel range{levels}",
        "",
        table(header, rows, left=(0, 1, 2)),
        "",
        *(_sizes(image) for image in result.images),
    ]
    if result.maximum is not None:
        lines.append(f"largest activation in the store: {result.maximum:.4f}")
    return [*lines, result.summary]


def _sizes(image: AttackedImage) -> str:
    changes = ", ".join(
        f"{c.index} {c.before:.2f} -> {c.after:.2f}" for c in image.latents[:LISTED]
    )
    latents = f"; latents {changes}" if changes else ""
    return f"{image.image}: linf {image.linf:.4f}, l2 {image.l2:.4f}{latents}"


def _state(state: State) -> list[str]:
    probability = "-" if state.probability is None else f"{state.probability:.2%}"
    return [state.label or "-", probability]


def _activation(state: State, shown: bool) -> list[str]:
    return [figure(state.activation)] if shown else []


def _made(result: VisualizeResult) -> list[str]:
    rows = [
        [
            str(number),
            figure(image.activation),
            figure(image.preactivation),
            image.label or "-",
            "-" if image.probability is None else f"{image.probability:.2%}",
        ]
        for number, image in enumerate(result.images)
    ]
    header = ["picture", "activation", "pre-activation", "class", "probability"]
    lines = [f"latent {result.latent}, {result.steps} steps from noise", ""]
    lines += [table(header, rows, left=(0, 3)), ""]
    if result.maximum is not None:
        share = "" if result.share is None else f", of which the best picture is {result.share:.2f}"
        lines.append(f"largest activation in the store: {result.maximum:.4f}{share}")
    if result.top:
        lines.append("strongest: " + ", ".join(f"{name} {value:.2f}" for name, value in result.top))
    return lines

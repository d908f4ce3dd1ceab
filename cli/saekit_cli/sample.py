from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.options import Doc, Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import print_json
from saekit_cli.settings import Config, Json

NAME = "sample"
EXAMPLES = [
    "saekit sample runs/vae --out samples.png",
    "saekit sample runs/cgan --n 40 --label 7 --out sevens.png",
    "saekit sample runs/gan --n 5000 --out samples.safetensors",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.training.sampling import sample

    return options_of(sample)


def run(
    given: Given,
    out: Annotated[
        str | Path,
        Doc("A .png with all samples, or a .safetensors with their values.", metavar="FILE"),
    ],
    overwrite: Annotated[bool, Doc("Replace FILE.")] = False,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Draw rows that are not in the data: vae, gan, dcgan, cgan, aae."""
    from saekit.report.samples import write_sample

    result = write_sample(out=out, overwrite=overwrite, **given)
    if json_:
        print_json(result)
        return
    shape = "x".join(map(str, result.shape))
    label = "" if result.label is None else f" of class {result.label}"
    typer.echo(f"{result.path}  {result.n:,} samples{label}, {shape} values each")

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.options import Doc, Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, message, print_json
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.interop.push import PushResult

NAME = "export"
EXAMPLES = [
    "saekit export runs/topk out --format saelens",
    "saekit export runs/mlp0 runs/mlp1 out --format circuit_tracer",
    "saekit export runs/topk out --format neuronpedia --store acts/text --features top:500",
    "saekit export runs/topk --push OWNER/REPO --store acts/text",
]
KEY = ("format", "store", "features", "push", "public", "overwrite")
HUB = "Upload to the hub"
PUSHED = "saelens"  # the format of an upload that names none


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.exporting import export_dictionary

    options = options_of(export_dictionary)
    if any(argument.split("=")[0] == "--push" for argument in arguments):
        # one checkpoint may stand for CKPT and OUT, and the format has a default
        for name, default in (("checkpoints", ()), ("out", None), ("format", PUSHED)):
            options[name] = dataclasses.replace(options[name], default=default)
    return options


def run(
    given: Given,
    push: Annotated[
        str | None,
        Doc(
            "Upload the files into this repo, with a model card. OUT is then optional, and the"
            " format saelens unless given. The card's figures are those of evaluate on the store,"
            " or without one those of the training.",
            HUB,
            metavar="OWNER/REPO",
        ),
    ] = None,
    public: Annotated[bool, Doc("Let a new repo be public (default: private).", HUB)] = False,
    yes: Annotated[bool, Doc("Do not ask before the upload.", HUB)] = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a dictionary, or what its features respond to, as another program's files."""
    from saekit.errors import UsageError, opt
    from saekit.exporting import FEATURE_FORMATS, export_dictionary

    # what the flags say together
    if push is None and (public or yes):
        raise UsageError(f"--{'public' if public else 'yes'} applies to --push")
    card, kept = "", True
    if push is not None:
        given.setdefault("format", PUSHED)
        if not given.get("checkpoints"):
            if not given.get("out"):
                raise UsageError("export takes CKPT", "saekit export --help")
            given["checkpoints"], kept = [given.pop("out")], False
        if given["format"] in FEATURE_FORMATS:
            raise UsageError(
                f"--push uploads weights, not {opt('format', given['format'])}",
                "drop --push",
            )
        card = _card(push, given)
    # the files, and the upload
    with Reporter(quiet) as reporter, tempfile.TemporaryDirectory() as folder:
        given.setdefault("out", f"{folder}/files")
        result = export_dictionary(**given, progress=reporter)
        reporter.close()
        for note in result.notes:
            message("note", note)
        pushed = None if push is None else _push(push, given["out"], public, yes, card, reporter)
    if json_:
        path = result.path if kept else None
        print_json({**dataclasses.asdict(result), "path": path, "pushed": pushed})
        return
    features = "" if result.features is None else f", {result.features:,} features"
    if kept:
        typer.echo(f"{result.path}  {result.format}{features}")
    if pushed is not None:
        typer.echo(f"{pushed.url}  {'private' if pushed.private else 'public'}, {pushed.commit}")


def _card(repo: str, given: Given) -> str:
    """The model card. Takes out of `given` what only its figures need."""
    from saekit.evaluation.table import evaluate
    from saekit.interop.opening import open_checkpoint
    from saekit.interop.push import model_card

    checkpoints, format = given["checkpoints"], given["format"]
    store, any_store = given.pop("store", None), given.pop("any_store", False)
    description = open_checkpoint(checkpoints[0]).config
    if len(checkpoints) > 1:
        metrics = None
    elif store is None:
        metrics = description["result"]["metrics"]
    else:
        metrics = evaluate(checkpoints, store, any_store=any_store)[0].metrics
    path = "layer_0.safetensors" if format == "circuit_tracer" else ""
    return model_card(repo, description, format=format, path=path, metrics=metrics)


def _push(
    repo: str, folder: str, public: bool, yes: bool, card: str, reporter: Reporter
) -> PushResult:
    from saekit.interop.push import push

    def confirm(question: str) -> bool:
        return yes or (sys.stdin.isatty() and typer.confirm(question, err=True))

    return push(folder, repo, public=public, card=card, confirm=confirm, progress=reporter)

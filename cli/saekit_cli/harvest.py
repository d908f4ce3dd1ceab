from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.errors import UsageError
from saekit.options import Doc, Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, message, print_json, size, table
from saekit_cli.settings import Config, DryRun, Json, Quiet

if TYPE_CHECKING:
    from saekit.harvesting.config import HarvestPlan, HarvestResult

NAME = "harvest"
EXAMPLES = [
    "saekit harvest embedded:smollm2-135m embedded:pydocs acts/text --hook blocks.9 --rows 100000",
    "saekit harvest openai/clip-vit-base-patch16 photos/ acts/clip --hook blocks.10",
    "saekit harvest raw:pixels embedded:digits acts/pixels --holdout 0.2",
    "saekit harvest --for downloads/sae texts.jsonl acts/for_sae --rows 100000",
]
KEY = ("dictionary", "hook", "rows", "scope", "ctx", "column", "list_hooks", "resume")
JSON = ("path", "rows", "asked", "fingerprint", "seconds", "rows_per_s")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.harvesting.config import HarvestConfig
    from saekit.harvesting.run import harvest

    of_function = options_of(harvest)
    ends = ("resume", "overwrite")
    return {
        **{name: option for name, option in of_function.items() if name not in ends},
        **options_of(HarvestConfig),
        **{name: of_function[name] for name in ends},
    }


def run(
    given: Given,
    model: Annotated[
        str,
        Doc(
            "Hub id, folder, .gguf file, embedded:NAME; raw:pixels | raw:array | raw:tfidf.",
            metavar="MODEL",
            positional=True,
        ),
    ] = "",
    data: Annotated[
        str | Path,
        Doc(
            "Hub dataset name:split, file, folder, folder of images or embedded:NAME.",
            metavar="DATA",
            positional=True,
        ),
    ] = "",
    out: Annotated[
        str | Path,
        Doc(
            "Folder for the store; with several hooks, for one store each.",
            metavar="OUT",
            positional=True,
        ),
    ] = "",
    list_hooks: Annotated[bool, Doc("Print the hooks of MODEL and exit.")] = False,
    dry_run: DryRun = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store a model's hidden states on some data."""
    if list_hooks:
        _list_hooks(
            model, given.get("device", "auto"), given.get("trust_remote_code", False), json_
        )
        return
    model = os.path.expanduser(model)  # a name that is not a path never begins with ~
    if "dictionary" in given and data and not out:  # MODEL may be left to the dictionary
        model, data, out = "", model, data
    if not data or not out or not (model or "dictionary" in given):
        raise UsageError("harvest takes MODEL DATA OUT", "saekit harvest --help")
    from saekit.harvesting.run import harvest, plan_harvest

    if dry_run:
        options = {key: given[key] for key in given if key not in ("resume", "overwrite")}
        _print_plan(plan_harvest(model or None, data, out, **options), json_)
        return
    with Reporter(quiet) as reporter:
        result = harvest(model or None, data, out, progress=reporter, **given)
    _print_notes(result, "max_norm" in given)
    if json_:
        print_json({key: getattr(result, key) for key in JSON})
    for canonical, path in result.stores.items():
        if not json_:
            rate = f"{result.rows_per_s:,.0f} rows/s"
            typer.echo(f"{path}  {canonical}  {result.rows:,} rows  {rate}")
        _health(path)


def _print_notes(result: HarvestResult, has_max_norm: bool) -> None:
    """Why there are fewer rows than asked for."""
    from saekit.store.reader import open_store

    if result.asked and result.rows < result.asked:
        # As stored: that of raw arrays follows their shape.
        layout = open_store(next(iter(result.stores.values()))).spec.layout
        why = "the data gave" if layout == "flat" else "whole examples give"
        message("note", f"{why} {result.rows:,} rows of the {result.asked:,} asked for")
    if result.dropped and has_max_norm:
        message("note", f"{result.dropped:,} rows above --max-norm were dropped")


def _health(path: str) -> None:
    """What a user should know of a store before training on it."""
    from saekit.store.reader import open_store

    store = open_store(path)
    stats = store.stats
    message(
        "health",
        f"||mean||/||std|| {stats['mean_to_std']:.2f}, median norm {stats['median_norm']:.4g},"
        f" largest {stats['max_norm']:.4g}, {stats['high_norm_rows']:,} rows above"
        f" {stats['high_norm_factor']:g} times the median",
    )
    if stats["high_norm_rows"] and not store.spec.is_raw:
        message(
            "note",
            "rows of huge norm (attention sinks) cost an SAE much of its capacity; --max-norm 10"
            " drops them",
        )


def _list_hooks(model: str, device: str, trust_remote_code: bool, json_: bool) -> None:
    from saekit.harvesting.config import is_raw
    from saekit.harvesting.hooks import list_hooks
    from saekit.harvesting.models import load_model

    if is_raw(model):
        raise UsageError(
            f"--list-hooks with {model}: there is no model to hook", "raw data takes no --hook"
        )
    where = "cpu" if device == "auto" else device
    rows = list_hooks(load_model(model, where, trust_remote_code=trust_remote_code).module)
    if json_:
        print_json([row._asdict() for row in rows])
    else:
        heads = ("hook", "TransformerLens", "module")
        cells = [(row.alias, row.transformer_lens, row.path) for row in rows]
        typer.echo(table(heads, cells, left=(0, 1, 2)))


def _print_plan(plan: HarvestPlan, json_: bool) -> None:
    if json_:
        print_json(plan)
        return
    rows = "all rows" if plan.rows is None else f"{plan.rows:,} rows"
    for hook, width in plan.hooks.items():
        typer.echo(f"{hook}  {rows} x {width}")
    if plan.bytes is not None:
        typer.echo(f"{size(plan.bytes)} in {plan.shards} shards, {size(plan.disk_free)} free")

from __future__ import annotations

from typing import Annotated

import typer

from saekit.errors import UsageError
from saekit_cli.options import Config, DryRun, Json, Overwrite, Quiet, Resume
from saekit_cli.screen import Reporter, message, print_json, size, table

NAME = "harvest"
EXAMPLES = """Examples:
saekit harvest embedded:smollm2-135m embedded:pydocs acts/text --hook blocks.9 --rows 100000 |
saekit harvest openai/clip-vit-base-patch16 photos/ acts/clip --hook blocks.10 |
saekit harvest raw:pixels embedded:digits acts/pixels --holdout 0.2"""


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hub id, folder, .gguf file, embedded:NAME; raw:pixels|array|tfidf.",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Hub id name:split, file, folder, folder of images or embedded:NAME.",
        ),
    ] = "",
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Folder for the store; with several hooks, for one store each."
        ),
    ] = "",
    hook: Annotated[
        list[str] | None,
        typer.Option(help="blocks.9, blocks.9.mlp, a module path; suffix :in. Repeatable."),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Vectors to store (default: all).")] = None,
    scope: Annotated[str, typer.Option(help="content | cls | all")] = "content",
    layout: Annotated[str, typer.Option(help="flat | sequence | grid")] = "flat",
    ctx: Annotated[int, typer.Option(help="Tokens per context, including special tokens.")] = 128,
    batch: Annotated[int, typer.Option(help="Contexts or images per forward pass.")] = 32,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=(
                "float16 | bfloat16 | float32 | auto, by the first rows (default: float16; raw data"
                " float32)."
            )
        ),
    ] = None,
    shard_mb: Annotated[
        int,
        typer.Option(
            help="Size of a shard: what a kill or Ctrl-C can lose; memory grows to about twice it."
        ),
    ] = 256,
    max_norm: Annotated[
        float | None, typer.Option(help="Drop rows above this multiple of the median norm.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of a table that holds the text or image.")
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Fill contexts across documents.")] = False,
    seed: Annotated[int, typer.Option(help="Order of the documents, and which are held out.")] = 0,
    holdout: Annotated[
        float, typer.Option(help="Share of the rows kept from training, whole documents.")
    ] = 0.05,
    vocabulary: Annotated[
        int, typer.Option(help="Most frequent words that raw:tfidf counts.")
    ] = 2000,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Skip and count inputs that cannot be read.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with MODEL.")
    ] = False,
    list_hooks: Annotated[
        bool, typer.Option("--list-hooks", help="Print the hooks of MODEL and exit.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store a model's hidden states on some data."""
    if list_hooks:
        _list_hooks(model, device, trust_remote_code, json_)
        return
    if not data or not out:
        raise UsageError("harvest takes MODEL DATA OUT", "saekit harvest --help")
    from saekit.harvesting.run import HarvestConfig, harvest, plan_harvest

    options = {
        "rows": rows, "scope": scope, "layout": layout, "ctx": ctx, "batch": batch, "dtype": dtype,
        "shard_mb": shard_mb,
        "max_norm": max_norm, "column": column, "pack": pack, "seed": seed, "holdout": holdout,
        "vocabulary": vocabulary, "device": device,
        "skip_broken": skip_broken, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if dry_run:
        _print_plan(
            plan_harvest(model, data, out, HarvestConfig(hooks=tuple(hook or ()), **options)), json_
        )
        return
    reporter = Reporter(quiet)
    result = harvest(
        model,
        data,
        out,
        hook=hook or (),
        resume=resume,
        overwrite=overwrite,
        progress=reporter,
        **options,
    )
    reporter.close()
    if result.asked and result.rows < result.asked:
        why = "the data gave" if _layout(result) == "flat" else "whole examples give"
        message("note", f"{why} {result.rows:,} rows of the {result.asked:,} asked for")
    if result.dropped and max_norm is not None:
        message("note", f"{result.dropped:,} rows above --max-norm were dropped")
    if json_:
        print_json(
            {
                k: getattr(result, k)
                for k in ("path", "rows", "asked", "fingerprint", "seconds", "rows_per_s")
            }
        )
    for canonical, path in result.stores.items():
        if not json_:
            typer.echo(
                f"{path}  {canonical}  {result.rows:,} rows  {result.rows_per_s:,.0f} rows/s"
            )
        _health(path)


def _layout(result) -> str:
    """As stored: that of raw arrays follows their shape."""
    from saekit.store.reader import open_store

    return open_store(next(iter(result.stores.values()))).spec.layout


def _health(path: str) -> None:
    from saekit.store.reader import open_store

    store = open_store(path)
    stats = store.stats
    share = (
        f"||mean||/||std|| {stats['mean_to_std']:.2f}, median norm {stats['median_norm']:.4g},"
        f" largest {stats['max_norm']:.4g}"
    )
    message(
        "health",
        f"{share}, {stats['high_norm_rows']:,} rows above {stats['high_norm_factor']:g} times the"
        " median",
    )
    if stats["high_norm_rows"] and not store.spec.is_raw:
        message(
            "note",
            "rows of huge norm (attention sinks) cost an SAE much of its capacity; --max-norm 10"
            " leaves them out",
        )


def _list_hooks(model: str, device: str, trust_remote_code: bool, json_: bool) -> None:
    from saekit.harvesting.config import is_raw
    from saekit.harvesting.hooks import list_hooks
    from saekit.harvesting.models import load_model

    if is_raw(model):
        raise UsageError(
            f"--list-hooks with {model}: there is no model to hook", "raw data takes no --hook"
        )
    rows = list_hooks(
        load_model(
            model, "cpu" if device == "auto" else device, trust_remote_code=trust_remote_code
        ).module
    )
    if json_:
        print_json([row._asdict() for row in rows])
    else:
        typer.echo(table(("hook", "module"), [(row.alias, row.path) for row in rows], left=(0, 1)))


def _print_plan(plan, json_: bool) -> None:
    if json_:
        print_json(plan)
        return
    rows = "all rows" if plan.rows is None else f"{plan.rows:,} rows"
    for hook, width in plan.hooks.items():
        typer.echo(f"{hook}  {rows} x {width}")
    if plan.bytes is not None:
        typer.echo(f"{size(plan.bytes)} in {plan.shards} shards, {size(plan.disk_free)} free")

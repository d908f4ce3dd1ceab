from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit_cli.options import DryRun, Json, Overwrite, Quiet, Resume
from saekit_cli.screen import Reporter, figure, print_json, size, table

NAME = "sweep"
EXAMPLES = """Example: saekit sweep acts/text runs/sweep --grid sweep.toml, with sweep.toml for instance: rows = 400_000, seed = [0, 1],
sparsity = "topk", k = [16, 32, 64]; lists make all combinations, [[runs]] tables grids of their own."""


def run(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Folder that `saekit harvest` wrote.")
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder for the checkpoints, the table and the plot."),
    ],
    grid: Annotated[Path, typer.Option(help="TOML file: flags of train, with lists of values.")],
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Training rows from the running model, one forward pass for all."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train many autoencoders over one pass of the data; plot error against sparsity."""
    from saekit.sweeps.run import plan_sweep, sweep

    if dry_run:
        plan = plan_sweep(store, grid, device)
        if json_:
            print_json(plan)
            return
        rows = [
            [
                n,
                f"{p.latents:,}",
                f"{p.parameters / 1e6:.1f}M",
                f"{p.rows:,}",
                f"{p.steps:,}",
                p.backend,
            ]
            for n, p in plan.members.items()
        ]
        typer.echo(table(("member", "latents", "params", "rows", "steps", "backend"), rows))
        typer.echo(f"about {size(plan.memory_bytes)} of memory, {plan.at_a_time} at a time")
        return
    reporter = Reporter(quiet)
    result = sweep(
        store,
        out,
        grid,
        live=live,
        device=device,
        resume=resume,
        overwrite=overwrite,
        progress=reporter,
    )
    reporter.close()
    if json_:
        print_json(result)
        return
    rows = [
        ["*" if g.best else "", g.name, str(g.seeds), figure(g.l0, ".1f"), figure(g.l0_spread,
        ".1f"), figure(g.fvu, ".4f"),
         figure(g.fvu_spread, ".4f"), figure(g.dead, ".1%"), figure(g.dead_train, ".1%")]
        for g in result.groups
    ]  # fmt: skip
    typer.echo(
        table(
            ("", "setting", "seeds", "l0", "±", "fvu", "±", "dead", "dead_train"), rows, left=(0, 1)
        )
    )
    for member in result.members:
        if member.error:
            typer.echo(f"failed  {member.name}: {member.error}")
    typer.echo(f"open    {result.page}")

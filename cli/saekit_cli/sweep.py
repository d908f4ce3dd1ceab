from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, size, table
from saekit_cli.settings import DryRun, Json, Quiet

if TYPE_CHECKING:
    from saekit.measures.pareto import Group
    from saekit.sweeps.run import SweepPlan

NAME = "sweep"
EXAMPLES = [
    "saekit sweep acts/text runs/sweep --grid sweep.toml",
    "    # sweep.toml: lists make all combinations, [[runs]] tables are grids of their own",
    "    # rows = 400_000",
    "    # seed = [0, 1]",
    "    # k = [16, 32, 64]",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.sweeps.run import sweep

    return options_of(sweep)


def run(given: Given, dry_run: DryRun = False, json_: Json = False, quiet: Quiet = False) -> None:
    """Train many autoencoders over one pass of the data; plot error against sparsity."""
    from saekit.sweeps.run import plan_sweep, sweep

    if dry_run:
        asked = {name: given[name] for name in ("store", "grid", "device") if name in given}
        plan = plan_sweep(**asked)
        print_json(plan) if json_ else _print_plan(plan)
        return
    with Reporter(quiet) as reporter:
        result = sweep(**given, progress=reporter)
    if json_:
        print_json(result)
        return
    header = ("", "setting", "seeds", "l0", "±", "fvu", "±", "dead", "dead_train")
    typer.echo(table(header, [_row(group) for group in result.groups], left=(0, 1)))
    for member in result.members:
        if member.error:
            typer.echo(f"failed  {member.name}: {member.error}")
    typer.echo(f"open    {result.page}")


def _row(group: Group) -> list[str]:
    return [
        *("*" if group.best else "", group.name, str(group.seeds)),
        *(figure(group.l0, ".1f"), figure(group.l0_spread, ".1f")),
        *(figure(group.fvu, ".4f"), figure(group.fvu_spread, ".4f")),
        *(figure(group.dead, ".1%"), figure(group.dead_train, ".1%")),
    ]


def _print_plan(plan: SweepPlan) -> None:
    header = ("member", "latents", "params", "rows", "steps", "backend")
    rows = [
        [
            *(name, f"{member.latents:,}", f"{member.parameters / 1e6:.1f}M"),
            *(f"{member.rows:,}", f"{member.steps:,}", member.backend),
        ]
        for name, member in plan.members.items()
    ]
    typer.echo(table(header, rows))
    typer.echo(f"about {size(plan.memory_bytes)} of memory, {plan.at_a_time} at a time")

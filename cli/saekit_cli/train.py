from __future__ import annotations

from typing import Annotated

import typer

from saekit_cli.options import Config, DryRun, Json, Overwrite, Quiet, Resume
from saekit_cli.screen import Reporter, figure, message, print_json, size

NAME = "train"
EXAMPLES = """Examples:
saekit train acts/text runs/topk --k 32 |
saekit train acts/clip runs/l1 --sparsity l1 --coef 2 |
saekit train acts/text runs/pca --model pca"""


def run(
    context: typer.Context,
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder that `saekit harvest` wrote.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the checkpoint.")],
    model: Annotated[str, typer.Option(help="sae | pca")] = "sae",
    expansion: Annotated[float | None, typer.Option(help="Latents as a multiple of the width (default 32).")] = None,
    latents: Annotated[int | None, typer.Option(help="Latents as a number, in place of --expansion.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="topk | l1 | kl (default topk)")] = None,
    k: Annotated[int | None, typer.Option(help="Active latents a row, for topk (default 32).")] = None,
    coef: Annotated[float | None, typer.Option(help="Weight of the l1 or kl penalty.")] = None,
    target_rate: Annotated[float | None, typer.Option(help="Mean activation that kl pulls to (default 0.01).")] = None,
    decoder_norm: Annotated[str | None, typer.Option(help="unit | free (default unit, for kl free)")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to train on, with repetition, in whole batches (default 8 epochs).")] = None,
    batch: Annotated[int, typer.Option(help="Rows a step.")] = 4096,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (default: docs/training.md).")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm (default: no clipping).")] = None,
    normalize: Annotated[str, typer.Option(help="center+scale | scale | none")] = "center+scale",
    seed: Annotated[int, typer.Option(help="Initial weights and order of the rows.")] = 0,
    backend: Annotated[str, typer.Option(help="auto | triton | torch")] = "auto",
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an autoencoder on a store."""
    from saekit.errors import UsageError
    from saekit.training.config import TrainConfig
    from saekit.training.run import plan_training, train

    if expansion is not None and latents is not None:
        # A flag wins over the other name for the same thing in a config file.
        from_file = {n for n in ("expansion", "latents") if context.get_parameter_source(n).name == "DEFAULT_MAP"}
        if from_file == {"latents"}:
            latents = None
        elif from_file == {"expansion"}:
            expansion = None
    if expansion is not None and latents is not None:
        raise UsageError("--expansion and --latents both set the number of latents", "give one of them")
    own = {
        "expansion": expansion, "latents": latents, "sparsity": sparsity, "k": k, "coef": coef, "target_rate": target_rate,
        "decoder_norm": decoder_norm,
    }  # fmt: skip
    settings = TrainConfig(
        model, {name: value for name, value in own.items() if value is not None},
        rows=rows, batch=batch, lr=lr, clip=clip, normalize=normalize, seed=seed, backend=backend, device=device,
    )  # fmt: skip
    plan = plan_training(store, settings)
    if dry_run and json_:
        print_json(plan)
        return
    line = (
        f"{plan.model} {plan.d_in:,} -> {plan.latents:,}, {plan.parameters / 1e6:.1f}M parameters, {plan.rows:,} rows in "
        f"{plan.steps:,} steps, about {size(plan.memory_bytes)} of memory, backend {plan.backend}"
    )
    if dry_run:
        typer.echo(line)
        return
    if not quiet:
        message("plan", line)
    reporter = Reporter(quiet)
    result = train(store, out, config=settings, resume=resume, overwrite=overwrite, progress=reporter)
    reporter.close()
    if json_:
        print_json(result)
        return
    m = result.metrics
    figures = f"fvu {figure(m['fvu'])}  l0 {figure(m['l0'], '.1f')}  dead {figure(m['dead'], '.1%')}"
    typer.echo(f"{result.path}  {figures}  {result.rows_per_s:,.0f} rows/s  (held-out rows)")

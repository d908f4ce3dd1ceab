from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saekit_cli.options import Config, DryRun, Json, Overwrite, Quiet, Resume, whole_numbers
from saekit_cli.screen import Reporter, figure, message, print_json, size

if TYPE_CHECKING:
    from saekit.training.config import TrainConfig
    from saekit.training.run import TrainPlan

NAME = "train"
EXAMPLES = """Examples:
saekit train acts/text runs/topk --k 32 |
saekit train acts/clip runs/l1 --sparsity l1 --coef 2 |
saekit train acts/text runs/pca --model pca |
saekit train raw/mnist runs/deep --model dense --hidden 512,256 --latents 30 --output bernoulli --noise gaussian:0.3"""
# Flags that are options of the model; `saekit models NAME` says which model takes which.
MODEL_FLAGS = (
    "expansion", "latents", "sparsity", "k", "coef", "target_rate", "decoder_norm", "output",
    "noise", "hidden", "activation", "tied",
    "contractive", "pretrain", "pretrain_share", "beta", "likelihood_weight", "channels", "skips",
    "cell", "width", "layers",
    "target_l0", "revive", "skip",
)  # fmt: skip
WIDTHS = ("hidden", "channels")
# Flags of the run, by the names of TrainConfig.
RUN_FLAGS = (
    "model", "rows", "batch", "lr", "schedule", "warmup", "decay", "beta2", "weight_decay", "clip",
    "ema", "precision", "normalize",
    "target_store", "seed", "order_seed", "backend", "device",
)  # fmt: skip


def run(
    context: typer.Context,
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Folder that `saekit harvest` wrote.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the checkpoint.")],
    model: Annotated[
        str, typer.Option(help="sae | pca | dense ...: saekit models lists them with their options")
    ] = "sae",
    expansion: Annotated[
        float | None, typer.Option(help="sae: latents as a multiple of the width (default 32).")
    ] = None,
    latents: Annotated[
        int | None,
        typer.Option(help="Size of the code (sae: in place of --expansion; others: default 32)."),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="sae: topk (default), jumprelu ...: saekit models sae; others: none | l1 | kl"
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(help="Active latents per row, for topk and its relatives (default 32)."),
    ] = None,
    coef: Annotated[float | None, typer.Option(help="Weight of the sparsity's penalty.")] = None,
    target_l0: Annotated[
        float | None,
        typer.Option(help="Target L0 on held-out rows; a controller adjusts the penalty."),
    ] = None,
    target_rate: Annotated[
        float | None, typer.Option(help="Target mean activation of kl (default 0.01).")
    ] = None,
    decoder_norm: Annotated[
        str | None, typer.Option(help="unit | free (default unit, for kl free)")
    ] = None,
    revive: Annotated[
        str | None, typer.Option(help="How dead latents are brought back: aux | resample | none")
    ] = None,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip", help="With --target-store: a linear skip connection (skip transcoder)."
        ),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other option of the model; may be given again."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="linear | sigmoid | bernoulli: output activation function and its loss."),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="On the input: gaussian:SD | masking:SHARE | salt-pepper:SHARE"),
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths between input and code, 512,128.")
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="Activation function of hidden layers: relu | sigmoid | tanh | silu | gelu."
        ),
    ] = None,
    tied: Annotated[
        bool, typer.Option("--tied", help="The decoder is the encoder's transpose.")
    ] = False,
    contractive: Annotated[
        float | None, typer.Option(help="Weight of the encoder's squared Jacobian.")
    ] = None,
    pretrain: Annotated[
        str | None, typer.Option(help="greedy | rbm: pretrain one layer at a time.")
    ] = None,
    pretrain_share: Annotated[
        float | None, typer.Option(help="Share of the steps for pretraining (default 0.5).")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="vae: weight of the KL to N(0, I) (default 1).")
    ] = None,
    likelihood_weight: Annotated[
        float | None, typer.Option(help="vae: weight of the reconstruction (default 1).")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="conv, unet: channels of each level, 16,32.")
    ] = None,
    skips: Annotated[
        bool | None,
        typer.Option("--skips/--no-skips", help="unet: skip connections around the bottleneck."),
    ] = None,
    cell: Annotated[str | None, typer.Option(help="recurrent: gru | lstm")] = None,
    width: Annotated[int | None, typer.Option(help="recurrent: size of the hidden state.")] = None,
    layers: Annotated[int | None, typer.Option(help="recurrent: stacked layers.")] = None,
    target_store: Annotated[
        str | None, typer.Option(help="Row-aligned store to reconstruct in place of STORE.")
    ] = None,
    stores: Annotated[
        list[str] | None,
        typer.Option("--store", help="More row-aligned stores, side by side with STORE."),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Rows to train on, with repetition (default 8 epochs; classic models 60)."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Rows per step (default 4,096; fewer on small stores).")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate (default: docs/training.md).")
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="constant | linear | cosine: decay of the learning rate.")
    ] = "linear",
    warmup: Annotated[
        float, typer.Option(help="Share of the steps with a rising learning rate.")
    ] = 0.05,
    decay: Annotated[
        float | None,
        typer.Option(
            help=(
                "Share of the steps with a falling learning rate (default 0.2; classic models 0.5;"
                " cosine: everything after the warm-up)."
            )
        ),
    ] = None,
    beta2: Annotated[float, typer.Option(help="Adam's beta2.")] = 0.999,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled weight decay (default 0; classic models 0.01).")
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(help="Clip the gradient norm at this value (default: no clipping)."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Save an exponential average of the weights with this decay, such as 0.99."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="float32 | bfloat16: precision of dense products (not of an SAE's kernels)."
        ),
    ] = "float32",
    normalize: Annotated[
        str | None,
        typer.Option(help="center+scale | scale | none (default center+scale; raw data none)"),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="SINK", help="tensorboard | wandb | trackio; with :NAME it uploads."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Initial weights and order of the rows.")] = 0,
    order_seed: Annotated[
        int | None, typer.Option(help="Seed of the row order only (default: --seed).")
    ] = None,
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
    from saekit.training.run import plan_training, train

    settings = _settings(context)
    plan = plan_training(store, settings)
    line = _plan_line(plan)
    if dry_run and json_:
        print_json(plan)
        return
    if dry_run:
        typer.echo(line)
        return
    if not quiet:
        message("plan", line)
    reporter = Reporter(quiet)
    result = train(
        store, out, config=settings, resume=resume, overwrite=overwrite, progress=reporter
    )
    reporter.close()
    if json_:
        print_json(result)
        return
    m = result.metrics
    figures = (
        f"fvu {figure(m['fvu'])}  l0 {figure(m['l0'], '.1f')}  dead {figure(m['dead'], '.1%')}"
    )
    typer.echo(f"{result.path}  {figures}  {result.rows_per_s:,.0f} rows/s  (held-out rows)")


def _settings(context: typer.Context) -> TrainConfig:
    """The flags of `run` as the library takes them. Raises UsageError."""
    from saekit.training.config import TrainConfig

    params = context.params
    given = {name: params[name] for name in MODEL_FLAGS} | _size(context)
    options = {
        name: whole_numbers(f"--{name}", value, "512,128") if name in WIDTHS else value
        for name, value in given.items()
        if value is not None
    }
    for name in ("tied", "skip"):
        if not options[name]:
            del options[name]
    options |= _assignments(params["set"] or [], params["model"], params["sparsity"])
    several = {name: tuple(params[name] or ()) for name in ("stores", "log")}
    return TrainConfig(options=options, **several, **{name: params[name] for name in RUN_FLAGS})


def _size(context: typer.Context) -> dict[str, float | int | None]:
    """expansion and latents, of which one may be given. A flag wins over the other name for the
    same thing in a config file."""
    from saekit.errors import UsageError

    both = {name: context.params[name] for name in ("expansion", "latents")}
    if None in both.values():
        return both
    from_file = {name for name in both if context.get_parameter_source(name).name == "DEFAULT_MAP"}
    if len(from_file) != 1:
        raise UsageError(
            "--expansion and --latents both set the number of latents", "give one of them"
        )
    return {name: None if name in from_file else value for name, value in both.items()}


def _plan_line(plan: TrainPlan) -> str:
    return (
        f"{plan.model} {plan.d_in:,} -> {plan.latents:,}, {plan.parameters / 1e6:.1f}M parameters,"
        f" {plan.rows:,} rows in {plan.steps:,} steps, about {size(plan.memory_bytes)} of memory,"
        f" backend {plan.backend}"
    )


def _assignments(texts: list[str], model: str, sparsity: str | None) -> dict[str, object]:
    """['bandwidth=0.3'] -> options, each of the type of its default."""
    from saekit.errors import UsageError
    from saekit.models.catalog import options_of

    known, found = options_of(model, sparsity if model == "sae" else None), {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            raise UsageError(f"--set {text}: give NAME=VALUE with one of {', '.join(known)}")
        kind = type(known[name])
        try:
            if kind is bool:
                found[name] = {"true": True, "false": False}[value.lower()]
            elif kind is tuple:
                found[name] = tuple(float(part) for part in value.split(","))
            else:
                found[name] = value if kind is str else int(value) if kind is int else float(value)
        except (KeyError, ValueError):
            raise UsageError(f"--set {text}: {name} takes a value like {known[name]}") from None
    return found

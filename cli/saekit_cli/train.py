from __future__ import annotations

import dataclasses
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.config import load_toml
from saekit.errors import SaekitError, UsageError
from saekit.options import Doc, Option, options_of
from saekit_cli.command import Given, number_list
from saekit_cli.screen import Reporter, message, print_json, size
from saekit_cli.settings import Config, DryRun, Json, Quiet

NAME = "train"
EXAMPLES = [
    "saekit train acts/text runs/topk --k 32",
    "saekit train acts/clip runs/l1 --sparsity l1 --coef 2",
    "saekit train acts/text runs/pca --model pca",
    "saekit train raw/mnist runs/deep --model dense --hidden 512,256 --output bernoulli",
    "saekit train raw/mnist runs/vae --model vae --latents 2 --output bernoulli",
    "saekit train raw/mnist runs/cgan --model cgan",
]
KEY = ("model", "sparsity", "expansion", "k", "rows", "lr", "resume", "overwrite")
CHOICE = (
    "--model NAME --help",
    "Show the options of another model; with --sparsity NAME those of another variant.",
)
FIRST = ("sparsity", "latents", "expansion")  # of the model's options, in the help


def takes(arguments: list[str]) -> dict[str, Option]:
    """The options of the run and of every model; help shows those of the model chosen."""
    from saekit.models.catalog import CATALOG, model_options
    from saekit.models.sae import SAEConfig
    from saekit.models.sparsity import VARIANTS
    from saekit.training.config import TrainConfig
    from saekit.training.run import train

    # The model that is asked for, and its options.
    model, sparsity = _chosen(arguments)
    of_run, of_model = options_of(TrainConfig), model_options(model, sparsity)
    variant = sparsity or "topk" if model == "sae" else None
    panel = f"Model: {model}" if variant is None else f"Model: {model} --sparsity {variant}"
    if variant is not None:
        of_model = of_model | {"sparsity": options_of(SAEConfig)["sparsity"]}
    # Those of all others take part, so that their flags are refused by name.
    every = {
        name: option
        for owner, kinds in ((name, VARIANTS if name == "sae" else (None,)) for name in CATALOG)
        for kind in kinds
        for name, option in model_options(owner, kind).items()
    }
    # In the order of the help.
    order = [name for name in FIRST if name in of_model]
    order += [name for name in _own_first(of_model, variant) if name not in order]
    shown = {"model": of_run["model"]} | {name: of_model[name] for name in order}
    hidden = {name: option for name, option in every.items() if name not in of_model}
    return {
        **{name: _changed(option, panel=panel) for name, option in shown.items()},
        **{name: option for name, option in of_run.items() if name != "model"},
        **{name: _changed(option, hidden=True) for name, option in hidden.items()},
        **options_of(train),
    }


def values() -> dict[str, list[str]]:
    """Names that a shell completes."""
    from saekit.models.catalog import CATALOG
    from saekit.models.sparsity import VARIANTS

    return {"model": list(CATALOG), "sparsity": list(VARIANTS)}


def key_options(arguments: list[str]) -> set[str]:
    """What belongs into the short help as well: the options of a model or variant that is asked
    for."""
    from saekit.models.catalog import model_options
    from saekit.models.sae import SAEConfig

    model, sparsity = _chosen(arguments)
    if model != "sae":
        return set(model_options(model))
    if sparsity is not None:
        return model_options(model, sparsity).keys() - options_of(SAEConfig).keys()
    return set()


def run(
    given: Given,
    store: Annotated[str | Path, Doc("Store folder.", metavar="STORE", positional=True)],
    out: Annotated[str | Path, Doc("Folder for the checkpoint.", metavar="OUT", positional=True)],
    set: Annotated[
        tuple[str, ...],
        Doc("A model option by name.", metavar="NAME=VALUE...", hidden=True),
    ] = (),
    dry_run: DryRun = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an autoencoder on a store."""
    from saekit.models.metrics import METRICS
    from saekit.training.run import prepare

    # The plan.
    folder = {name: given.pop(name, False) for name in ("resume", "overwrite")}
    prepared = prepare(store, out, _config(given, set))
    plan = prepared.plan()
    many = plan.parameters >= 100_000
    parameters = f"{plan.parameters / 1e6:.1f}M" if many else f"{plan.parameters:,}"
    steps = "1 step" if plan.steps == 1 else f"{plan.steps:,} steps"
    line = (
        f"{plan.model} {plan.d_in:,} -> {plan.latents:,}, {parameters} parameters,"
        f" {plan.rows:,} rows in {steps}, about {size(plan.memory_bytes)} of memory,"
        f" backend {plan.backend}"
    )
    if dry_run:
        print_json(plan) if json_ else typer.echo(line)
        return
    if not quiet:
        message("plan", line)
    # The run.
    with Reporter(quiet) as reporter:
        result = prepared.execute(**folder, progress=reporter)
    if json_:
        print_json(result)
        return
    # Its result.
    draws = "diversity" in result.metrics
    names = ("diversity", "classes") if draws else ("fvu", "l0", "dead")
    figures = "  ".join(f"{name} {METRICS[name].text(result.metrics[name])}" for name in names)
    typer.echo(f"{result.path}  {figures}  {result.rows_per_s:,.0f} rows/s  (held-out rows)")


def _config(given: Given, assignments: tuple[str, ...]) -> Any:
    """The TrainConfig of the flags, which win over those of the config file. Raises UsageError."""
    from saekit.training.config import SIZES, TrainConfig

    by_hand = {name: value for name, value in given.items() if name not in given.from_file}
    others = {name: given[name] for name in given.from_file}
    others |= dict(_assigned(text) for text in assignments)
    if by_hand.keys() & SIZES:  # both say how many latents there are
        others = {name: value for name, value in others.items() if name not in SIZES}
    return TrainConfig.from_flat({**others, **by_hand})


def _assigned(text: str) -> tuple[str, Any]:
    """('bandwidth', 0.3) of 'bandwidth=0.3'. Raises UsageError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name.replace("-", "_").isidentifier():
        raise UsageError(f"--set {text}: give NAME=VALUE")
    return name.replace("-", "_"), _parsed(value)


def _parsed(value: str) -> Any:
    """A number, true, false or numbers with commas; else the text itself."""
    if "," in value:
        return number_list("set", value, float)
    with suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {value}")["value"]
    return value


def _chosen(arguments: list[str]) -> tuple[str, str | None]:
    """(model, sparsity) as flags and config file say, before anything is parsed."""
    found: dict[str, Any] = {}
    for word, following in zip(arguments, [*arguments[1:], ""]):
        flag, equals, value = word.partition("=")
        if flag in ("--model", "--sparsity", "--config"):
            found[flag[2:]] = value if equals else following
    if "config" in found:
        with suppress(SaekitError):  # said when the file is read for its settings
            found = load_toml(Path(found["config"]).expanduser(), "config file") | found
    model, sparsity = found.get("model"), found.get("sparsity")
    return (
        model if isinstance(model, str) else "sae",
        sparsity if isinstance(sparsity, str) else None,
    )


def _own_first(options: dict[str, Option], variant: str | None) -> list[str]:
    """The names of a model's options, those of the variant before those that every SAE has."""
    if variant is None:
        return list(options)
    from saekit.models.sae import SAEConfig

    shared = options_of(SAEConfig)
    return [*(name for name in options if name not in shared), *shared]


def _changed(option: Option, **changes: Any) -> Option:
    return dataclasses.replace(option, doc=dataclasses.replace(option.doc, **changes))

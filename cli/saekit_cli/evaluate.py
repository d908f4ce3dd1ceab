from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saekit.options import Doc, Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.evaluation.table import Evaluation
    from saekit.models.metrics import Metric

NAME = "evaluate"
EXAMPLES = [
    "saekit evaluate runs/topk runs/pca --store acts/text",
    "saekit evaluate runs/cross --store acts/model.layers.3 --store acts/model.layers.6",
    "saekit evaluate runs/hierarchical --store acts/text --k 8,16,32",
    "saekit evaluate runs/topk --store acts/text --loss-recovered --contexts 50",
]
KEY = ("store", "rows", "split", "k", "loss_recovered", "max_fvu", "json_")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.evaluation.table import evaluate

    return options_of(evaluate)


def run(
    given: Given,
    max_fvu: Annotated[float | None, Doc("Exit 7 when a checkpoint's fvu is above this.")] = None,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate checkpoints side by side on the same rows."""
    from saekit.errors import QualityGateError, UsageError, opt
    from saekit.evaluation.table import evaluate

    with Reporter(quiet) as reporter:
        results = evaluate(**given, progress=reporter)
    if json_:
        print_json(results)
    else:
        typer.echo(_table(results, several_k="k" in given))
        for line in (*_losses(results), *_norms(results), *_samples(results)):
            typer.echo(line)
    if max_fvu is not None and any(r.metrics["fvu"] is None for r in results):
        drawing = next(r.checkpoint for r in results if r.metrics["fvu"] is None)
        raise UsageError(
            f"{opt('max_fvu', max_fvu)}: {drawing} has no encoder, and so no fvu",
            f"drop {opt('max_fvu')}",
        )
    # `not <=` rather than `>`: a NaN does not pass.
    failed = [r for r in results if max_fvu is not None and not r.metrics["fvu"] <= max_fvu]
    if failed:
        at = "" if failed[0].k is None else f" with k {failed[0].k}"
        raise QualityGateError(
            f"fvu {failed[0].metrics['fvu']:.4f} of {failed[0].checkpoint}{at} is above"
            f" {opt('max_fvu', max_fvu)}"
        )


def _losses(results: list[Evaluation]) -> list[str]:
    """The second table: a column for each checkpoint, or each k of each."""
    from saekit.models.metrics import LOSS_METRICS

    judged = {r.recovery for r in results if r.recovery is not None}
    if not judged:
        return []
    names = [r.checkpoint if r.k is None else f"{r.checkpoint} k {r.k}" for r in results]
    rows = [
        [metric.name, *(_interval(metric, result.metrics[metric.name]) for result in results)]
        for metric in LOSS_METRICS
    ]
    about = [
        f"{r.contexts:,} contexts of {r.documents:,} documents, {r.predictions:,} predictions"
        f" against {r.targets}; 95 % intervals over documents"
        for r in judged
    ]
    return ["", table(["", *names], rows), *about]


def _interval(metric: Metric, figure: dict[str, float | None]) -> str:
    bounds = ", ".join(metric.text(figure[bound]) for bound in ("low", "high"))
    return f"{metric.text(figure['value'])} [{bounds}]"


def _norms(results: list[Evaluation]) -> list[str]:
    """The size of the rows, once for each checkpoint where store and training say it."""
    known = {r.checkpoint: r.input_norm for r in results if r.input_norm is not None}
    lines = [f"input norm  {name}: {norm.line()}" for name, norm in known.items()]
    return ["", *lines] if lines else []


def _samples(results: list[Evaluation]) -> list[str]:
    """Of models that only draw."""
    from saekit.models.metrics import SAMPLE_METRICS

    lines = [
        f"samples of {r.checkpoint}: "
        + ", ".join(
            f"{metric.name} {metric.text(r.metrics[metric.name])}" for metric in SAMPLE_METRICS
        )
        for r in results
        if "diversity" in r.metrics
    ]
    return ["", *lines] if lines else []


def _table(results: list[Evaluation], several_k: bool) -> str:
    """One line for each checkpoint, or each k of each."""
    from saekit.models.metrics import ROW_METRICS

    parts = list(results[0].metrics.get("parts", ()))  # all rows of a table read the same stores
    header = [
        *("checkpoint", "model", "params", "latents"),
        *(("k",) if several_k else ()),
        *("rows", *(metric.name for metric in ROW_METRICS)),
        *(f"fvu {part}" for part in parts),
    ]
    return table(header, [_row(result, parts, several_k) for result in results], left=(0, 1))


def _row(result: Evaluation, parts: list[str], several_k: bool) -> list[str]:
    from saekit.models.metrics import METRICS, ROW_METRICS

    m = result.metrics
    return [
        *(result.checkpoint, result.model, f"{result.params / 1e6:.2f}M", f"{result.latents:,}"),
        *((str(result.k),) if several_k else ()),
        *(f"{result.rows:,}", *(metric.text(m[metric.name]) for metric in ROW_METRICS)),
        *(METRICS["fvu"].text(m["parts"][part]) for part in parts),
    ]

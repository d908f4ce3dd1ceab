from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from saekit_cli.options import Json, Quiet
from saekit_cli.screen import figure, message, print_json, table

NAME = "bench"
EXAMPLES = """Examples:
saekit bench train --quick |
saekit bench train --against eai-sparsify |
saekit bench kernels --shapes 768x24576x8192 --csv gpu.csv |
saekit bench classic --quick |
saekit bench zoo --quick |
saekit bench zoo --against sae-lens --against eai-sparsify"""
FIGURES = {
    "sse": ".2f", "fvu": ".4f", "knn": ".3f", "elbo": ".1f", "psnr_in": ".2f", "psnr": ".2f", "auroc": ".3f",
    "auroc_worst": ".3f", "iou": ".3f", "trust": ".3f", "frozen": ".3f", "tuned": ".3f", "scratch": ".3f",
}  # fmt: skip


def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="kernels | train | classic | zoo")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, fewer epochs: minutes on two cores.")] = False,
    shapes: Annotated[list[str] | None, typer.Option(metavar="DxFxB", help="Width x latents x rows; may be given again.")] = None,
    k: Annotated[int, typer.Option(help="Active latents a row.")] = 32,
    against: Annotated[list[str] | None, typer.Option(help="Peer to run too: eai-sparsify (train), sae-lens | eai-sparsify (zoo).")] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    csv: Annotated[Path | None, typer.Option(help="Write the measurements here, with machine, versions, commit and date.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure: speed, as ratios to dense torch from one interleaved run; classic, what each classic autoencoder reaches."""
    from saekit.bench import SUITES, run_suite
    from saekit.bench.timing import machine, write_csv
    from saekit.device import pick_device
    from saekit.errors import UsageError, check_choice

    where = pick_device(device)
    report = (lambda _: None) if quiet else (lambda text: message("bench", text))
    check_choice("suite", suite, SUITES)
    if suite == "classic":
        if shapes or against or device not in ("auto", "cpu"):
            raise UsageError("--shapes, --against and --device do not apply to bench classic, which runs on the CPU", "leave them away")
        _classic(quick, csv, json_, report)
        return
    if suite == "zoo":
        if shapes or device not in ("auto", "cpu"):
            raise UsageError("--shapes and --device do not apply to bench zoo, which runs on the CPU", "leave them away")
        if against:
            _field(quick, against, csv, json_, report)
        else:
            _zoo(quick, csv, json_, report)
        return
    results = run_suite(suite, shapes or [], k, against or [], quick, where, report)
    if csv is not None:
        write_csv(csv, [dataclasses.asdict(m) for m in results], machine(where))
    if json_:
        print_json(results)
        return
    about = machine(where)
    typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}")
    rows = [
        [m.op, m.mode, m.backend, m.shape, figure(m.ms, ".2f"), f"{figure(m.ms_p20, '.2f')}-{figure(m.ms_p80, '.2f')}",
         figure(m.ratio, ".2f"), figure(m.of_floor, ".2f"), figure(m.rows_per_s, ",.0f"), figure(m.l0, ".0f")]
        for m in results
    ]  # fmt: skip
    header = ["op", "mode", "backend", "shape", "ms", "p20-p80", "x dense", "x floor", "rows/s", "l0"]
    typer.echo(table(header, rows, left=(0, 1, 2, 3)))


def _classic(quick: bool, csv: Path | None, json_: bool, report) -> None:
    from saekit.bench.classic import bench_classic

    results = bench_classic(quick, report)
    names = [name for name in FIGURES if any(name in r.figures for r in results)]
    rows = [[r.data, r.name, r.task, *(_with_spread(r, name) for name in names), f"{r.seconds:.0f}"] for r in results]
    head, note = ["data", "model", "task", *names, "s"], "mean and spread over seeds"
    _give(results, [r.flat() for r in results], csv, json_, note, table(head, rows, left=(0, 1, 2)))


def _zoo(quick: bool, csv: Path | None, json_: bool, report) -> None:
    from saekit.bench.zoo import bench_zoo

    results = bench_zoo(quick, report)
    rows = [
        [r.sparsity, figure(r.fvu, ".4f"), figure(r.l0, ".1f"), figure(r.l0_train, ".1f"), figure(r.dead_train, ".1%"),
         figure(r.rows_per_s, ",.0f"), figure(r.fvu_ratio, ".4f")]
        for r in results
    ]  # fmt: skip
    note = f"{results[0].latents:,} latents, {results[0].rows:,} rows"
    text = table(["sparsity", "fvu", "l0", "l0 train", "dead_train", "rows/s", "fvu / dense"], rows)
    _give(results, [dataclasses.asdict(r) for r in results], csv, json_, note, text)


def _field(quick: bool, against: list[str], csv: Path | None, json_: bool, report) -> None:
    from saekit.bench.field import bench_field

    results = bench_field(quick, against, report)
    rows = [
        [r.library, r.setting, f"{r.lr:g}", "*" if r.best else "", figure(r.fve, ".4f"), figure(r.fve_spread, ".4f"),
         figure(r.dead, ".1%"), figure(r.rows_per_s, ",.0f")]
        for r in results
    ]  # fmt: skip
    note = "* the best of a library with at most 2 % dead"
    text = table(["library", "setting", "lr", "", "fve", "spread", "dead", "rows/s"], rows, left=(0, 1))
    _give(results, [dataclasses.asdict(r) for r in results], csv, json_, note, text)


def _give(results: list, flat: list[dict], csv: Path | None, json_: bool, note: str, text: str) -> None:
    """The results as a CSV file where asked, then as JSON or as a table under a line that says where they were measured."""
    from saekit.bench.timing import machine, write_csv
    from saekit.device import pick_device

    about = machine(pick_device("cpu"))
    if csv is not None:
        write_csv(csv, flat, about)
    if json_:
        print_json(results)
    else:
        typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}; {note}\n{text}")


def _with_spread(result, name: str) -> str:
    spread = result.spread.get(name)
    return figure(result.figures.get(name), FIGURES[name]) + ("" if spread is None else f" ±{figure(spread, FIGURES[name])}")

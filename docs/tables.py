"""Writes the tables of measurements in README.md and docs/ from benchmarks/results.

`make bench` measures and then calls it; `python docs/tables.py` by itself writes what is there. A
table stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`; NAME is in TABLES, or
in COMPUTED, whose tables follow from formulas.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import attack_tables
import generated
import sizing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end of table \2 -->)", re.DOTALL)
NONE = "Not measured yet.\n"

Row = dict[str, str]
# step in cpu-train.csv -> what the table calls it
MODES = {
    "saekit": "**saekit**",
    "saekit fp32": "saekit without the bf16 filter",
    "floor": "only the fp32 encoder product and fused Adam",
    "eai-sparsify": "eai-sparsify",
    "dense": "dense autograd",
}
# operation in cpu-kernels.csv -> what it does
OPERATIONS = {
    "encode_topk": "encode and select",
    "encode_relu": "encode, ReLU",
    "select": "select from a dense matrix",
    "decode": "decode",
    "decode_mse": "decode, loss, code gradients",
    "transpose": "transpose",
    "weight_grad": "both weight gradients",
    "feature_step": "both weight gradients, projection, Adam, norm (torch specification)",
    "relu_step": "ReLU + L1, dense path, loss and gradients",
    "sigmoid_step": "sigmoid + KL, loss and gradients",
}
MAIN = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "l1", "kl")
# ways to bring back dead latents, in the order of the columns
REVIVAL = {"none": "none", "nudge": "nudge (default)", "aux": "aux", "resample": "resample"}


def page(text: str) -> str:
    """A page with its tables as they are in the results."""
    return MARK.sub(lambda mark: mark[1] + table(mark[2]) + mark[3], text)


def table(name: str) -> str:
    """Raises KeyError for an unknown name."""
    if name in COMPUTED:
        return COMPUTED[name]()
    file, written = TABLES[name]
    path = RESULTS / file
    if not path.exists():
        return NONE
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return f"{written(rows)}\n{_where(rows[0])}{path.relative_to(ROOT)}.\n"


def _variants(rows: list[Row]) -> str:
    """One line per variant: its step, beside topk's and beside its own dense step."""
    dense = {row["op"]: row for row in rows if row["mode"] == "dense"}
    lines = [
        [
            row["op"].removesuffix("_step"),
            _number(row["ms"], ",.0f"),
            _number(row["ratio_topk"], ".2f"),
            _number(dense[row["op"]]["ms"], ",.0f"),
            _number(row["ratio"], ".1f"),
            _number(row["peak_mb"], ",.0f"),
            _number(dense[row["op"]]["peak_mb"], ",.0f"),
            _number(row["rows_per_s"], ",.0f"),
        ]
        for row in rows
        if row["mode"] == "saekit"
    ]
    header = [
        "sparsity",
        "ms",
        "of topk's ms",
        "dense ms",
        "times dense",
        "peak MB",
        "dense MB",
        "rows/s",
    ]
    return f"A step at {_shape(rows[0]['shape'])}:\n\n" + _markdown(header, lines)


def _main_variants(rows: list[Row]) -> str:
    """The variants that most people train, in the columns that matter first."""
    lines = [
        [
            op,
            _number(row["ms"], ",.0f"),
            _number(row["ratio_topk"], ".2f"),
            _number(row["ratio"], ".1f"),
            _number(row["peak_mb"], ",.0f"),
        ]
        for op in MAIN
        for row in rows
        if (row["op"], row["mode"]) == (f"{op}_step", "saekit")
    ]
    header = ["a training step", "ms", "of topk's ms then", "times dense autograd", "peak MB"]
    return f"{_shape(rows[0]['shape'])}, k or L0 32:\n\n" + _markdown(header, lines)


def _steps(rows: list[Row]) -> str:
    """topk and l1 at the first shape, each way of doing the step."""
    columns = {
        op: {row["mode"]: row for row in rows if (row["op"], row["shape"]) == (op, shape)}
        for shape in [rows[0]["shape"]]
        for op in ("topk_step", "l1_step")
    }
    topk, l1 = columns.values()
    lines = [
        [
            " ".join(filter(None, (text, _version(topk[mode])))),
            *(cell for ways in (topk, l1) for cell in _time_and_ratio(ways.get(mode))),
        ]
        for mode, text in MODES.items()
        if mode in topk
    ]
    header = [
        "",
        f"TopK, k {topk['saekit']['k']}",
        "times dense",
        f"L1, L0 {_number(l1['saekit']['l0'], '.0f')}",
        "times dense",
    ]
    return f"ms per step at {_shape(rows[0]['shape'])}:\n\n" + _markdown(header, lines)


def _small(rows: list[Row]) -> str:
    """The other shapes of topk."""
    lines = []
    for row in rows[1:]:
        if (row["op"], row["mode"]) != ("topk_step", "saekit") or row["shape"] == rows[0]["shape"]:
            continue
        peer = [r for r in rows if (r["shape"], r["mode"]) == (row["shape"], "eai-sparsify")]
        times = f"{float(peer[0]['ms']) / float(row['ms']):.2f}" if peer else ""
        path = row["note"].split()[0] if row["note"] else ""
        lines.append([_shape(row["shape"]), _number(row["ms"], ".1f"), path, row["ratio"], times])
    header = ["D -> F, B", "saekit, ms", "path", "times dense", "times sparsify"]
    return _markdown(header, lines)


def _operations(rows: list[Row]) -> str:
    """Each operation of a step beside dense torch."""
    dense = {row["op"]: row["ms"] for row in rows if row["mode"] == "dense"}
    lines = [
        [
            OPERATIONS[row["op"]] + _plan(row["mode"]) + _active(row),
            _number(row["ms"], ",.1f"),
            _number(dense.get(row["op"], ""), ",.1f"),
            _number(row["ratio"], ".2f"),
        ]
        for row in rows
        if row["mode"].startswith("saekit")
    ]
    return _markdown(["operation", "saekit, ms", "dense torch, ms", "times"], lines)


def _zoo(rows: list[Row]) -> str:
    """What every variant reconstructs after a short run."""
    lines = [
        [
            row["sparsity"],
            _number(row["fvu"], ".3f").removeprefix("0"),
            _number(row["l0"], ".1f"),
            _number(row["l0_train"], ".1f"),
            _number(row["dead_train"], ".1%").removeprefix("0").replace("%", " %"),
            _number(row["fvu_ratio"], ".4f").removeprefix("0"),
        ]
        for row in rows
    ]
    header = ["sparsity", "fvu", "l0", "l0 train", "dead_train", "fvu / dense"]
    return _markdown(header, lines)


def _revival(rows: list[Row]) -> str:
    """Ways to bring back dead latents: fvu of `none`, and by how much each seed of another way
    differs from the same seed of `none`; shares of latents dead in training and silent."""
    runs = {(r["data"], r["sparsity"], r["revive"], r["seed"]): r for r in rows}
    ways = [way for way in REVIVAL if any(row["revive"] == way for row in rows)]
    lines = []
    for data, sparsity in dict.fromkeys((row["data"], row["sparsity"]) for row in rows):
        line = [data, sparsity]
        for way in ways:
            seeds = [r for key, r in runs.items() if key[:3] == (data, sparsity, way)]
            if way == "none":
                figures = [float(r["fvu"]) for r in seeds]
                spread = f" ± {statistics.stdev(figures):.4f}" if len(figures) > 1 else ""
                fvu = f"{statistics.fmean(figures):.4f}{spread}".replace("0.", ".")
            else:
                none = [float(runs[data, sparsity, "none", r["seed"]]["fvu"]) for r in seeds]
                changes = [float(r["fvu"]) / fvu - 1 for r, fvu in zip(seeds, none)]
                fvu = " ".join(f"{100 * change:+.1f}" for change in changes)
            shares = (
                statistics.fmean(float(r[k]) for r in seeds) for k in ("dead_train", "silent")
            )
            line.append(f"{fvu} / {' / '.join(f'{s:.0%}' for s in shares)}" if seeds else "")
        lines.append(line)
    return _markdown(["rows", "sparsity", *(REVIVAL[way] for way in ways)], lines)


TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "variants": ("cpu-variants.csv", _variants),
    "main-variants": ("cpu-variants.csv", _main_variants),
    "steps": ("cpu-train.csv", _steps),
    "small-steps": ("cpu-train.csv", _small),
    "operations": ("cpu-kernels.csv", _operations),
    "zoo": ("cpu-zoo.csv", _zoo),
    "zoo-quick": ("cpu-zoo-quick.csv", _zoo),
    "revival": ("cpu-revival.csv", _revival),
    "rates": ("cpu-train.csv", sizing.rates),
    "adversarial": ("adversarial.csv", generated.images),
    "adversarial-hidden": ("adversarial.csv", generated.hidden),
    "attack-defense": ("attacks.csv", attack_tables.defense),
    "attack-classifiers": ("attacks.csv", attack_tables.classifiers),
    "attack-latents": ("attacks.csv", attack_tables.latents),
}
COMPUTED: dict[str, Callable[[], str]] = {"sizes": sizing.sizes}


def _time_and_ratio(row: Row | None) -> list[str]:
    if row is None:
        return ["", ""]
    ms, low, high = (_number(row[name], ",.0f") for name in ("ms", "ms_p20", "ms_p80"))
    return [f"{ms} ({low} to {high})", _number(row["ratio"], ".1f")]


def _version(row: Row) -> str:
    """Of another toolkit."""
    return row["note"] if row["mode"] == "eai-sparsify" else ""


def _plan(mode: str) -> str:
    plan = mode.removeprefix("saekit").strip()
    return f" ({plan} plan)" if plan else ""


def _active(row: Row) -> str:
    """Of operations on codes that differ in it."""
    if row["op"] not in ("encode_topk", "encode_relu", "select"):
        return ""
    return f", k {row['k']}" if row["k"] else f", L0 {_number(row['l0'], '.0f')}"


def _shape(shape: str) -> str:
    D, F, B = (int(size) for size in shape.split("x"))
    return f"{D} -> {F:,}, {B:,}"


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else ""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def _where(row: Row) -> str:
    """The machine of a table's rows, where they say it."""
    if "device" not in row:
        return ""
    commit = f", commit {row['commit']}" if row["commit"] else ""
    return f"{row['device']}, torch {row['torch']}, {row['date']}{commit}, "


def main() -> None:
    for path in PAGES:
        text = path.read_text()
        if (written := page(text)) != text:
            path.write_text(written)


if __name__ == "__main__":
    main()

"""Quality against the field: TopK autoencoders of saekit and of other toolkits, trained on the same
rows in the same order.

    python benchmarks/field.py [--quick] [--against sae-lens --against eai-sparsify] [--csv FILE]
    [--json] [--quiet]

The data (hidden states after block 3 of MiniLM on Python's documentation), latents, k, batch size
and number of rows are the same; everything else is the toolkit's choice (toolkits.py) or saekit's
default. All are evaluated in the same way: FVE on the held-out rows, and as dead every latent that
the trained model does not use on the last 50,000 rows of its training. A toolkit is represented by
the setting and rate of highest FVE among those with at most 2 % dead.

Every run has its own process, so that one library's settings of torch do not affect another; they
run one at a time, so that their rows/s compare.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from output import give, parser, reporter, run
from saekit_cli.screen import figure, table
from toolkits import RATES, SCALED, SETTINGS, SHIPPED, PeerModel, Task, train_peer

from saekit.bench.peers import check_peers
from saekit.errors import NumericsError
from saekit.models.codes import firing_counts
from saekit.models.metrics import RowSums
from saekit.store.reader import Store

MODEL, DATA, HOOK = "embedded:minilm", "embedded:pydocs", "blocks.3"
HARVESTED = 211_000  # all but a twentieth of them are for training: 200,000
ROWS, QUICK_ROWS, DEAD_ROWS = 200_000, 50_000, 50_000
SEEDS = 3
MOST_DEAD = 0.02
SAEKIT = "saekit"
# Further options of `saekit train`, and learning rates. In a run of 200 steps Adam still remembers
# the squared gradients of the first ones.
SAEKIT_SETTINGS = {
    SHIPPED: ({}, RATES),
    SCALED: ({"beta2": 0.99, "decay": 0.3, "clip": 1.0}, (3e-3, 5e-3, 6e-3)),
}


class Candidate(NamedTuple):
    library: str
    setting: str
    lr: float


@dataclass(frozen=True)
class FieldResult:
    """A candidate's means over the seeds, NaN where a run diverged."""

    library: str
    version: str
    setting: str
    lr: float
    seeds: int
    rows: int
    """Rows trained on."""
    fve: float
    """Fraction of the variance of the held-out rows that is explained, 1 - fvu."""
    fve_spread: float | None
    """Standard deviation over the seeds; None for one."""
    dead: float
    """Share of latents that are active in none of the last 50,000 training rows (of all, where
    there are fewer)."""
    dead_worst: float
    """The same of the worst seed."""
    l0: float
    rows_per_s: float
    best: bool = False
    """The library's highest FVE among candidates whose mean `dead` is at most MOST_DEAD."""


def bench_field(
    quick: bool,
    against: list[str],
    progress: Callable[[str], None],
    store: Path | None = None,
    rates: list[float] | None = None,
) -> list[FieldResult]:
    """One result per candidate: saekit and the toolkits of `against` in all their settings and
    rates. `best` marks at most one per library.

    quick: one seed, 50,000 rows. `store`: an existing store; None: harvest one. `rates`: only
    candidates with these learning rates. Raises UsageError, MissingError (a toolkit, or the package
    with the model).
    """
    from saekit.harvesting.run import harvest

    candidates = [
        candidate
        for candidate in candidates_of(check_peers(against, SETTINGS))
        if rates is None or candidate.lr in rates
    ]
    seeds, rows = (1, QUICK_ROWS) if quick else (SEEDS, ROWS)
    with tempfile.TemporaryDirectory(prefix="saekit-field-") as folder:
        path = str(store or Path(folder) / "store")
        if store is None:
            harvested = harvest(MODEL, DATA, path, hook=HOOK, rows=HARVESTED, device="cpu")
            progress(f"{harvested.rows:,} rows of {MODEL} {HOOK} on {DATA}")
        return compare_candidates(path, candidates, rows, seeds, progress)


def candidates_of(against: tuple[str, ...]) -> list[Candidate]:
    """Those of all libraries in turn, so that a slow hour of the machine affects all of them."""
    columns = [
        [
            Candidate(SAEKIT, setting, lr)
            for setting, (_, rates) in SAEKIT_SETTINGS.items()
            for lr in rates
        ]
    ]
    for name in against:
        columns.append(
            [
                Candidate(name, setting, lr)
                for setting, choices in SETTINGS[name].items()
                for lr in choices.rates
            ]
        )
    longest = max(map(len, columns))
    return [column[i] for i in range(longest) for column in columns if i < len(column)]


def compare_candidates(
    path: str,
    candidates: list[Candidate],
    rows: int,
    seeds: int,
    progress: Callable[[str], None],
    **options: Any,
) -> list[FieldResult]:
    """The results of candidates on a store of hidden states; `options` are latents, k and batch of
    Task."""
    steps = max(rows // options.get("batch", Task.batch), 1)
    runs: dict[Candidate, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for seed in range(seeds):
            for candidate in candidates:
                task = Task(candidate.lr, seed, steps, **options)
                figures = pool.submit(run_candidate, candidate, path, task).result()
                runs[candidate].append(figures)
                progress(
                    f"{candidate.library} {candidate.setting}  lr {candidate.lr:g}  seed {seed}"
                    f"  fve {figures['fve']:.4f}  dead {figures['dead']:.2%}"
                    f"  {figures['rows_per_s']:,.0f} rows/s"
                )
    return with_best([_summary(candidate, task.rows, runs[candidate]) for candidate in candidates])


def with_best(results: list[FieldResult], most_dead: float = MOST_DEAD) -> list[FieldResult]:
    """The results with `best` set on each library's highest FVE among candidates with at most
    `most_dead` dead latents, if there is one."""
    best: dict[str, FieldResult] = {}
    for result in results:
        known = best.get(result.library)
        # NaN fails both comparisons, so a diverged run is never chosen.
        if result.dead <= most_dead and result.fve > (-math.inf if known is None else known.fve):
            best[result.library] = result
    return [replace(result, best=result is best.get(result.library)) for result in results]


def _summary(candidate: Candidate, rows: int, runs: list[dict[str, float]]) -> FieldResult:
    mean = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    spread = statistics.stdev(run["fve"] for run in runs) if len(runs) > 1 else None
    return FieldResult(
        candidate.library,
        version(candidate.library),
        candidate.setting,
        candidate.lr,
        len(runs),
        rows,
        mean["fve"],
        spread,
        mean["dead"],
        max(run["dead"] for run in runs),
        mean["l0"],
        round(mean["rows_per_s"], 1),
    )


# -- one run
# --------------------------------------------------------------------------------------------------


def run_candidate(candidate: Candidate, path: str, task: Task) -> dict[str, float]:
    """fve, l0, dead and rows_per_s of one toolkit on a store of hidden states; NaN where the run
    diverged."""
    store = Store(Path(path))
    try:
        if candidate.library == SAEKIT:
            model, rate = _train_saekit(store, task, candidate.setting)
        else:
            model, rate = train_peer(
                candidate.library,
                candidate.setting,
                rows_in_order(store, task),
                store.spec.d_in,
                task,
            )
    except NumericsError:
        return dict.fromkeys(("fve", "l0", "dead", "rows_per_s"), math.nan)
    return evaluated(model, store, task) | {"rows_per_s": rate}


def _train_saekit(store: Store, task: Task, setting: str = SHIPPED) -> tuple[PeerModel, float]:
    from saekit.training.checkpoints import load
    from saekit.training.run import train

    with tempfile.TemporaryDirectory(prefix="saekit-field-run-") as folder:
        out = Path(folder) / "run"
        options = {
            "sparsity": "topk",
            "latents": task.latents,
            "k": task.k,
            "lr": task.lr,
            "batch": task.batch,
            "seed": task.seed,
        }
        options |= SAEKIT_SETTINGS[setting][0]
        result = train(store.path, out, rows=task.rows, device="cpu", save_seconds=1e9, **options)
        model = load(out)
    return PeerModel(model.encode, model.decode), result.rows_per_s


def rows_in_order(store: Store, task: Task) -> Iterator[torch.Tensor]:
    """The training rows in the order of `saekit.train` with this seed, fp32, not normalized:
    (batch,D), endless."""
    for batch in store.batches(task.batch, task.seed, split="train"):
        yield batch.x.float()


@torch.no_grad()
def evaluated(model: PeerModel, store: Store, task: Task) -> dict[str, float]:
    """fve and l0 on the held-out rows, dead on the last rows of the training order."""
    sums = RowSums(0.0)
    for batch in store.batches(4096, split="holdout"):
        x_BD = batch.x.float()
        code = model.code(x_BD)
        sums.add(x_BD, model.decode(code), code)
    figures = sums.figures()
    last = min(DEAD_ROWS, task.rows)
    fired_F = torch.zeros(task.latents, dtype=torch.int64)
    tail = store.batches(task.batch, task.seed, task.rows - last, "train")
    for at in range(0, last, task.batch):
        fired_F += firing_counts(model.code(next(tail).x[: last - at].float()), 0.0)
    dead = float((fired_F == 0).double().mean()) if math.isfinite(figures["fvu"]) else math.nan
    return {"fve": 1 - figures["fvu"], "l0": figures["l0"], "dead": dead}


# -- the command
# --------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--against",
        action="append",
        default=[],
        help=f"other toolkit to train: {' | '.join(SETTINGS)}; may be given several times",
    )
    flags.add_argument("--store", type=Path, help="an existing store, instead of a new one")
    flags.add_argument(
        "--rates", type=float, nargs="+", help="only candidates with these learning rates"
    )
    asked = flags.parse_args(arguments)
    results = bench_field(
        asked.quick, asked.against, reporter(asked.quiet), asked.store, asked.rates
    )
    rows = [
        [r.library, r.setting, f"{r.lr:g}", "*" if r.best else "", figure(r.fve, ".4f"),
        figure(r.fve_spread, ".4f"),
         figure(r.dead, ".1%"), figure(r.rows_per_s, ",.0f")]
        for r in results
    ]  # fmt: skip
    text = table(
        ["library", "setting", "lr", "", "fve", "spread", "dead", "rows/s"], rows, left=(0, 1)
    )
    give(
        results,
        [asdict(r) for r in results],
        asked,
        "* the best of each library with at most 2 % dead",
        text,
    )


if __name__ == "__main__":
    run(main)

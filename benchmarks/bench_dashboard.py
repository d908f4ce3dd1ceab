"""saekit's page beside SAEDashboard's: the same model, dictionary, latents and rows in one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_dashboard.py --peer PEER/bin/python [--rows 16384]
        [--latents 4608] [--features 500 1500] [--csv benchmarks/results/dashboard.csv]

PEER is a virtual environment with sae-dashboard 0.8.0 and sae-lens 6.54.12 (docs/explorer.md has
the commands that make one): they require older versions of transformers and NumPy than saekit.

The rows are contexts of 128 tokens of embedded:pydocs, all tokens (`scope="all"`), through
embedded:smollm2-135m in fp32. A TopK dictionary is trained on them, which is not measured, and
written in SAELens' format for the peer. `features` latents are drawn of those that are active on
at least LEAST rows. Both then show them with their defaults: SAEDashboard runs the model and the
dictionary once per 256 latents and writes one HTML file; saekit harvests, indexes and inspects.
Time is CPU time of one thread, without imports and without loading weights and tokens.

Prints one JSON object. `same rows`: the share of SAEDashboard's 20 strongest rows of each latent
that are saekit's 20 strongest when both follow its rule (no row within 5 tokens of a context's
ends, several of a context allowed). `contexts on the page`: the share of their contexts that
saekit's page shows, which takes one row of each document before a second one of any. `largest
difference`: of hidden states of the first context, and of the values of these rows, over the
largest value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.bench.timing import CsvFile, machine
from saekit.embedded import model_folder
from saekit.exporting import export_dictionary
from saekit.indexing.reader import Index
from saekit.inspection.known import Known
from saekit.inspection.opening import open_pair

MODEL, DATA, BLOCK, CONTEXT, K = "embedded:smollm2-135m", "embedded:pydocs", 9, 128, 32
TOP, EDGE = 20, 5  # of SAEDashboard: rows that it shows as the strongest, and tokens at the ends
LEAST = 100  # active rows of a latent that is shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=128 * CONTEXT)
    parser.add_argument("--latents", type=int, default=4_608)
    parser.add_argument("--features", type=int, nargs="+", default=[500])
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    file = None if asked.csv is None else CsvFile(asked.csv, machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        for found in compared(Path(folder), asked):
            print(json.dumps(found, indent=1), flush=True)
            if file is not None:
                file.write(found)


def compared(work: Path, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of each number of latents."""
    store, run, page = work / "store", work / "run", work / "page"
    folder = model_folder(MODEL)[0]
    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _, harvest = timed(
        saekit.harvest, module, DATA, store, tokenizer=tokenizer, hook=f"blocks.{BLOCK}",
        rows=asked.rows, ctx=CONTEXT, pack=True, scope="all", dtype="float32",
    )  # fmt: skip
    saekit.train(store, run, latents=asked.latents, k=K)
    export_dictionary(run, work / "sae", format="saelens")

    _, indexing = timed(saekit.index, run, store)
    index = saekit.open_index(run, store)
    live = np.flatnonzero(index.active >= LEAST)
    for features in asked.features:
        rng = np.random.default_rng(0)
        latents = np.sort(rng.choice(live, min(features, len(live)), replace=False)).tolist()
        spec = ",".join(map(str, latents))
        written, inspecting = timed(
            saekit.inspect, run, store, page, features=spec, top=TOP, live=module, overwrite=True
        )
        theirs = of_peer(work, asked.peer, latents, index)
        ours = {"harvest": harvest, "index": indexing, "inspect": inspecting}
        size = {"saekit": written.bytes, "sae-dashboard": (work / "theirs.html").stat().st_size}
        yield {
            "rows": index.rows,
            "latents": asked.latents,
            "features": len(latents),
            **ratios(ours, theirs["seconds"]),
            **{f"{name}, MB": round(bytes_ / 1e6, 2) for name, bytes_ in size.items()},
            **agreement(run, store, index, theirs["top"], work),
        }


def ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """CPU seconds, and how many times fewer they are."""
    together, of_theirs = sum(ours.values()), sum(theirs.values())
    return {
        **{f"saekit {name}, CPU s": round(value, 1) for name, value in ours.items()},
        **{f"sae-dashboard {name}, CPU s": round(value, 1) for name, value in theirs.items()},
        "times faster": round(of_theirs / together, 1),
        "times faster, rows harvested before": round(of_theirs / (together - ours["harvest"]), 1),
    }


def timed(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    """(what it returns, CPU seconds)."""
    began = time.process_time()
    result = function(*arguments, **named)
    return result, time.process_time() - began


def of_peer(work: Path, python: Path, latents: list[int], index: Index) -> dict[str, Any]:
    """What dashboard_peer.py writes."""
    tokens = torch.from_numpy(index.origin.token.astype(np.int64)).reshape(-1, CONTEXT)
    save_file({"tokens": tokens}, work / "rows.safetensors")
    folder = str(model_folder(MODEL)[0])
    (work / "task.json").write_text(
        json.dumps({"model": folder, "block": BLOCK, "latents": latents})
    )
    script = Path(__file__).with_name("dashboard_peer.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "TQDM_DISABLE": "1"}
    subprocess.run([python, script, work], check=True, env=environment, stdout=sys.stderr)
    return json.loads((work / "theirs.json").read_text())


def agreement(
    run: Path, store: Path, index: Index, theirs: dict[str, list[list[Any]]], work: Path
) -> dict[str, float]:
    """How far the strongest rows are the same."""
    position = np.arange(index.rows) % CONTEXT
    inside = (position > EDGE) & (position < CONTEXT - EDGE)
    known = Known(open_pair(run, store), lambda _: None)
    same = shown = of = contexts = 0
    difference = 0.0
    for name, rows in theirs.items():
        own = index.activations(int(name))
        own = own.at(np.flatnonzero(inside[own.rows]))
        order = np.argsort(-own.values, kind="stable")[:TOP]
        values = dict(zip(own.rows[order].tolist(), own.values[order].tolist()))
        found = {c * CONTEXT + at: act for c, at, act in rows if act > 0}
        same += len(found.keys() & values.keys())
        of += len(found)
        for row in found.keys() & values.keys():
            difference = max(difference, abs(found[row] - values[row]) / max(values.values()))
        on_page = {row // CONTEXT for row, _ in known.strongest(int(name), TOP)}
        asked = {row // CONTEXT for row in found}
        shown += len(asked & on_page)
        contexts += len(asked)
    states = load_file(work / "states.safetensors")["x"]
    mine = saekit.open_store(store).take(np.arange(CONTEXT)).x
    return {
        "same rows": round(same / of, 4),
        "contexts on the page": round(shown / contexts, 4),
        "largest difference of a value": round(difference, 6),
        "largest difference of a state": round(
            float((states - mine).abs().max() / mine.abs().max()), 7
        ),
    }


if __name__ == "__main__":
    main()

"""The share of latents that change the model as their strongest rows and their weights predict:
embedded SmolLM2-135M, with the dictionary that docs/steering.md trains.

    python benchmarks/bench_steering.py runs/pydocs acts/pydocs [--count 50] [--skip 0]
        [--exclude LATENT ...] [--csv benchmarks/results/steering.csv]

The rule decides before anything is steered: `saekit.inspection.next_token.next_token_latents`
orders the latents and names the token that each predicts. Each of the first --count latents is
added to the model in several doses over texts that are not from its training data. The effect is
the mean change of the log-probability of that token. A latent holds if this is monotone in the dose
and, at the smallest and at the largest dose, larger in size than for each of 16 controls of the
same norm; `holds from 0` is the same over the doses from 0 on.

Rows are on the disk once they are measured; a second run with the same --csv goes on after them.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from saekit_cli.screen import table

from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.harvesting.models import load_model
from saekit.inspection.indexed import index_of
from saekit.inspection.next_token import next_token_latents
from saekit.inspection.opening import open_pair
from saekit.intervention.dose_response import dose_response, holds
from saekit.intervention.doses import Response

DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
TEXTS = (
    "Every summer my grandmother takes the train to visit her sister on the coast.",
    "The company said on Tuesday that it would close two of its factories next year.",
    "He opened the window, looked at the garden and thought about what to do next.",
)


def columns(responses: list[Response]) -> dict[str, object]:
    """The figures of one latent as they are in the file."""
    low, *_, high = responses
    row: dict[str, object] = {f"effect {r.strength:+g}": round(r.effect, 4) for r in responses}
    for end in (low, high):
        for kind in ("random_directions", "random_latents"):
            values = getattr(end, kind)
            row[f"{kind} {end.strength:+g}"] = f"{min(values):+.4f} to {max(values):+.4f}"
    return row | {
        f"kl {high.strength:+g}": round(high.kl, 4),
        "holds": holds(responses),
        "holds from 0": holds([r for r in responses if r.strength >= 0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("store")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--exclude", type=int, nargs="*", default=[])
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/steering.csv"))
    options = parser.parse_args()

    # the rule
    live_model = load_model("embedded:smollm2-135m")
    ordered = next_token_latents(options.checkpoint, options.store, live_model)
    ordered = [entry for entry in ordered if entry.latent not in options.exclude]
    chosen = ordered[options.skip : options.skip + options.count]

    # the doses of each
    inspected = open_pair(options.checkpoint, options.store)
    maxima = torch.from_numpy(index_of(inspected, lambda _: None).max.copy())
    hook = inspected.store.spec.hook
    file = CsvFile(options.csv, machine(pick_device("cpu")))
    rows = []
    if options.csv.exists():
        with options.csv.open(newline="") as before:
            rows = list(csv.DictReader(before))
        file.lines = len(rows) + 1
    measured = {int(row["latent"]) for row in rows}
    for entry in chosen:
        if entry.latent in measured:
            continue
        responses = dose_response(
            live_model, inspected.model, entry.latent, [entry.token], TEXTS, DOSES,
            hook=hook, maxima=maxima,
        )  # fmt: skip
        about = dict(latent=entry.latent, token=entry.text, share=entry.share, score=entry.score)
        row = about | columns(responses)
        file.write(row)
        rows.append({key: str(value) for key, value in row.items()})
        print(entry.latent, repr(entry.text), row["holds"], row["holds from 0"], flush=True)
    print(summary(rows, [entry.latent for entry in chosen]))


def summary(rows: list[dict[str, str]], latents: list[int]) -> str:
    """A table of the chosen latents, and the shares."""
    by_latent = {int(row["latent"]): row for row in rows}
    chosen = [by_latent[latent] for latent in latents]
    effects = [name for name in chosen[0] if name.startswith("effect")]
    shown = ["latent", "token", *effects, "holds", "holds from 0"]
    cells = [
        [repr(row[name]) if name == "token" else row[name] for name in shown] for row in chosen
    ]
    shares = [
        f"{name}: {sum(row[name] == 'True' for row in chosen)} of {len(chosen)}"
        for name in ("holds", "holds from 0")
    ]
    return "\n".join([table(shown, cells), *shares])


if __name__ == "__main__":
    main()

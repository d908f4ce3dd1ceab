"""The tables of docs/attack.md from benchmarks/results/attacks.csv, for docs/tables.py."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median

Row = dict[str, str]
# of the defense: what a column shows -> (attack, norm, eps)
COLUMNS = {
    "clean": ("clean", "-", 0.0),
    "FGSM .2": ("fgsm", "linf", 0.2),
    "PGD .1": ("pgd", "linf", 0.1),
    "PGD .2": ("pgd", "linf", 0.2),
    "5 starts .2": ("pgd, 5 starts", "linf", 0.2),
    "transfer .2": ("transfer", "linf", 0.2),
    "PGD .3": ("pgd", "linf", 0.3),
    "PGD .5": ("pgd", "linf", 0.5),
    "L2 2, PGD": ("pgd", "l2", 2.0),
}
TRAINED = {"none": "pictures as they are", "fgsm": "FGSM .2", "pgd": "PGD .2, 7 steps"}
WAYS = {
    "raise fgsm": "raise, FGSM, 8/255",
    "raise pgd": "raise, PGD, 8/255",
    "silence fgsm": "silence, FGSM, 8/255",
    "silence pgd": "silence, PGD, 8/255",
    "noise": "from noise",
    "noise without jitter": "from noise, no jitter",
    "noise without tv": "from noise, no total variation",
    "noise of pixels": "from noise, pixels in place of frequencies",
}


def defense(rows: list[Row]) -> str:
    """Accuracy by training and attack, means over seeds."""
    lines = []
    for adversary, name in TRAINED.items():
        own = [row for row in rows if (row["part"], row["adversary"]) == ("defense", adversary)]
        if not own:
            continue
        cells = [_mean(row for row in own if _attack(row) == attack) for attack in COLUMNS.values()]
        seconds = fmean(float(row["cpu_s"]) for row in own if row["attack"] == "clean")
        lines.append([name, *cells, f"{seconds:.0f}"])
    return _markdown(["trained on", *COLUMNS, "CPU s"], lines)


def classifiers(rows: list[Row]) -> str:
    """Accuracy of the embedded classifiers by budget."""
    own = [row for row in rows if row["part"] == "classifier"]
    lines = []
    for name in dict.fromkeys(row["name"] for row in own):
        its = [row for row in own if row["name"] == name]
        clean = _mean(row for row in its if row["attack"] == "clean")
        for eps in sorted({float(row["eps"]) for row in its} - {0.0}):
            accuracies = [
                _mean(row for row in its if _attack(row) == (way, "linf", eps))
                for way in ("fgsm", "pgd")
            ]
            lines.append([f"`{name}`", f"{eps * 255:.0f}/255", clean, *accuracies])
    return _markdown(["model", "L-infinity budget", "clean", "FGSM", "PGD, 20 steps"], lines)


def latents(rows: list[Row]) -> str:
    """What each way reaches of a latent's largest activation on its store."""
    lines = []
    for attack, name in WAYS.items():
        own = [row for row in rows if row["attack"] == attack and row["reference"]]
        shares = sorted(float(row["value"]) / float(row["reference"]) for row in own)
        if not shares:
            continue
        silent = sum(share == 0 for share in shares)
        beyond = sum(share > 1 for share in shares)
        lines.append(
            [name, str(len(own)), f"{median(shares):.2f}", f"{shares[0]:.2f}", f"{shares[-1]:.2f}",
             str(silent), str(beyond)]
        )  # fmt: skip
    header = ["attack", "latents", "median", "lowest", "highest", "silent", "beyond the maximum"]
    return _markdown(header, lines)


def _attack(row: Row) -> tuple[str, str, float]:
    return row["attack"], row["norm"], float(row["eps"])


def _mean(rows: Iterable[Row]) -> str:
    values = [float(row["value"]) for row in rows]
    return f"{fmean(values):.1%}".replace("%", " %") if values else ""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))

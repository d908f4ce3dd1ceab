"""The tables of generated rows in docs/models.md, from benchmarks/results/adversarial.csv."""

from __future__ import annotations

Row = dict[str, str]
DATA = {"mnist": "MNIST-5k", "digits": "digits 8x8", "hidden": "digits-vit blocks.2"}
# column of the table -> (column of the file, its format)
IMAGES = {
    "entropy": ("entropy", ".2f"),
    "recognized": ("recognized", ".1%"),
    "Frechet": ("frechet", ".1f"),
    "of VAE's": ("of_vae", ".2f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
    "memory": ("memory", ".2f"),
    "copies": ("copies", ".1%"),
    "diversity": ("diversity", ".2f"),
}
HIDDEN = {
    "Frechet": ("frechet", ".1f"),
    "of VAE's": ("of_vae", ".2f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
    "memory": ("memory", ".2f"),
    "diversity": ("diversity", ".2f"),
    "told apart": ("apart", ".2f"),
    "density": ("density", ".2f"),
    "pairs": ("coactivation", ".2f"),
    "silent": ("silent", ".1%"),
}
COST = {"passes": ("passes", ".0f"), "s": ("cpu_s", ".0f"), "MB": ("peak_mb", ".0f")}


def images(rows: list[Row]) -> str:
    """One line per model; `judge` in the text above it is the classifier that measured them."""
    shown = [row for row in rows if row["judge"]]
    head = ["data", "model", "classes", *IMAGES, *COST]
    lines = [
        [_data(row), row["name"], f"{row['classes']} of {row['of_classes']}", *_cells(row, IMAGES)]
        for row in shown
    ]
    judges = {_data(row): float(row["judge"]) for row in shown}
    said = ", ".join(f"{judge:.1%} of held-out {data}" for data, judge in judges.items())
    return f"The judge recognizes {said}.\n\n{_markdown(head, lines)}"


def hidden(rows: list[Row]) -> str:
    """The same for hidden states."""
    shown = [row for row in rows if row["apart"]]
    lines = [[_data(row), row["name"], *_cells(row, HIDDEN)] for row in shown]
    return _markdown(["data", "model", *HIDDEN, *COST], lines)


def _cells(row: Row, columns: dict[str, tuple[str, str]]) -> list[str]:
    figures = [_cell(row[name], form) for name, form in columns.values()]
    # training rows in place of samples are not trained
    trained = float(row["passes"]) > 0
    cost = [_cell(row[name], form) if trained else "" for name, form in COST.values()]
    return figures + cost


def _cell(text: str, form: str) -> str:
    return format(float(text), form) if text else ""


def _data(row: Row) -> str:
    return DATA[row["data"]]


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *lines))

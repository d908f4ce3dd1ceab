"""The formulas of docs/sizing.md and the tables that they make (docs/tables.py writes them).
tests/test_sizing.py compares the formulas with files and allocations.

D: width of a row. F: latents. All results are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

ROW = 24  # document, example, position and norm of a row
EXAMPLE = 56  # of a context or an image: which rows are its own, and where its texts begin
TOKEN = 4
SHUFFLE_WINDOW = 65_536  # rows
CHUNK = 1_024  # rows whose codes are in memory at once where k is fixed
ENTRY, ROW_OF_INDEX = 16, 16  # an activation by latent and by row; a row's place, token, position
LATENT_OF_INDEX = 788  # figures; at most 40 strongest rows and a sample of 48

# model, width; a dictionary of 32 times that
MODELS = (
    ("SmolLM2-135M", 576),
    ("GPT-2, ViT-B, CLIP-B, DINOv2-B", 768),
    ("SmolLM2-360M", 960),
    ("Gemma 2 2B", 2_304),
    ("Llama 3.1 8B", 4_096),
)
EXPANSION, BATCH, L0 = 32, 4_096, 32


def store(rows: int, D: int, item: int = 2, examples: int = 0, tokens: int = 0) -> int:
    """A store without the names of its documents; `item` is the size of a value."""
    return rows * (D * item + ROW) + examples * EXAMPLE + tokens * TOKEN


def parameters(D: int, F: int) -> int:
    return 2 * D * F + F + D


def checkpoint(D: int, F: int) -> int:
    """The weights of a topk dictionary; those with thresholds have 4 F more."""
    return 4 * parameters(D, F)


def train_state(D: int, F: int) -> int:
    """Weights, both moments of Adam, and how long each latent has been idle."""
    return 3 * checkpoint(D, F) + 8 * F


def training(D: int, F: int, batch: int = BATCH) -> int:
    """What `saekit train --dry-run` prints for topk: weights, gradients and moments, codes of a
    chunk, the shuffle window of 16-bit rows."""
    return 4 * checkpoint(D, F) + 8 * min(batch, CHUNK) * F + SHUFFLE_WINDOW * D * 2


def index(rows: int, l0: float, F: int) -> int:
    """An index of texts at most, without the names of labels and 20 bytes per context."""
    return int(rows * (ENTRY * l0 + ROW_OF_INDEX)) + F * LATENT_OF_INDEX


def sizes() -> str:
    """A dictionary of each model."""
    header = (
        "model",
        "width -> latents",
        "a million rows",
        "checkpoint",
        "train state",
        "memory of training",
        "index of them",
    )
    lines = [
        (
            name,
            f"{D:,} -> {(F := EXPANSION * D):,}",
            _size(store(10**6, D)),
            _size(checkpoint(D, F)),
            _size(train_state(D, F)),
            _size(training(D, F)),
            _size(index(10**6, L0, F)),
        )
        for name, D in MODELS
    ]
    return _markdown([header, ["---"] * len(header), *lines])


def rates(rows: list[dict[str, str]]) -> str:
    """Seconds per million rows of topk, from the rows of a benchmark of training steps."""
    header = ("width -> latents, batch", "rows/s", "a million rows", "a million rows, fp32 encoder")
    steps = {(row["op"], row["shape"], row["mode"]): row for row in rows}
    lines = []
    for (op, shape, mode), row in steps.items():
        if (op, mode) != ("topk_step", "saekit"):
            continue
        D, F, B = (int(size) for size in shape.split("x"))
        plain = steps.get((op, shape, "saekit fp32"))
        lines.append(
            (
                f"{D:,} -> {F:,}, {B:,}",
                f"{float(row['rows_per_s']):,.0f}",
                _seconds(row),
                "" if plain is None else _seconds(plain),
            )
        )
    return _markdown([header, ["---"] * len(header), *lines])


def _seconds(row: dict[str, str]) -> str:
    return f"{1e6 / float(row['rows_per_s']):.0f} s"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

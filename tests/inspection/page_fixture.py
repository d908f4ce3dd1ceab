"""Records for the page tests: features that behave as trained ones do, made without a model.

A text feature fires on the tokens that a regular expression finds, in documents put together from a
few sentences; an image feature fires on the bright patches of scikit-learn's 8 x 8 digits. Values
depend on the place only: every run sees the same.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from saekit.inspection.page import PageMeta
from saekit.types import Example, FeatureRecord

ROWS = 2_000_000
BINS = 73  # a scan gives 51 to 100
BAND_ENDS = (0, 15, 29, 44, 58, 73)
WINDOW = 10
COMMAND = "saekit inspect runs/smollm2-topk --out page --store acts"
SENTENCES = (
    "On Monday the committee met for the third time, and by Friday nothing had been decided.",
    "The cat slept on the warm stone while two kittens chased a moth across the yard.",
    "Prices rose 3.4 percent in March, the largest increase since October 2008.",
    "She did not answer; nobody ever answers a letter that was never sent.",
    "The river runs past the old mill, under a bridge of grey stone, and out to the sea.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "for row in rows:\n    if row.total > limit:\n        print(row.name)\n",
    "“I was sure,” he said, “that the tall dog had seen the cat before I did.”",
    "Berlin, Paris and Lisbon signed the agreement; London (the host in 1996) did not.",
    "Add two cups of flour, a pinch of salt, and stir until the butter has melted.",
    "The protein folds within microseconds, which is faster than the solvent can relax.",
    "In July 1969 the module landed, and the first words reached Houston seconds later.",
    "A green door, a red roof and a blue gate: the children painted what they liked.",
    "Le chat dort sur la chaise, et personne ne veut le réveiller avant midi.",
)
CONCEPTS = (
    ("days of the week", r" ?(Mon|Fri|Sun|Satur)day"),
    ("months", r" ?(March|October|July|May)"),
    ("cats and other pets", r" ?(cat|kittens|dog|chat)"),
    ("negation", r" ?(not|never|nobody|nothing|ne)"),
    (None, r" ?\d+"),
    ("cities", r" ?(Berlin|Paris|Lisbon|London|Houston)"),
    ("line breaks in code", r"\n *"),
    ("colours", r" ?(grey|green|red|blue)"),
    (None, r" ?(the|The|la|le)"),
    ("opening quotation marks", r" ?“"),
    ("definitions and returns", r" ?(def|return|for|print|if)"),
    (None, r" ?(of|on|in|under|within|In)"),
    ("past tense", r" ?\w+ed"),
    (None, r" ?[,;:]"),
    ("kitchen", r" ?(flour|salt|butter|cups|stir)"),
    ("stone and water", r" ?(stone|river|sea|bridge|mill)"),
)
HOSTILE = ("</script><b>bold</b>", "<!--", "<img src=x onerror=alert(1)>", '"', "'", "\n", "\t",
"\u202edesrever",
           "over\u202eride\n", "\u200b", "  ", "", "\\u003c",
           "🙂", "שלום", "\ud800", "{{title}}", "]]>", "&lt;", " x" * 40)  # fmt: skip


FILLER = (
    " suggestively",
    "ünd",
    " Notwithstanding",
    "://",
    " aforementioned",
    "\t\t",
    " ,[",
    " wherein",
    "illon",
    " thereby",
)


def chance(*key: object) -> float:
    """A number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "big") / 2**48


def documents(n: int = 240) -> list[list[str]]:
    """Documents of four sentences, as tokens with their leading spaces."""
    chosen = (
        [SENTENCES[int(chance("sentence", d, s) * len(SENTENCES))] for s in range(4)]
        for d in range(n)
    )
    return [re.findall(r"\n *| ?\w+|\s| ?[^\w\s]", " ".join(sentences)) for sentences in chosen]


def histogram(maximum: float, total: int) -> dict[str, list[float]]:
    """Falling counts with the right total, as a sparse feature has them."""
    share = np.exp(-np.arange(BINS) / 9) + 0.04 * np.exp(-((np.arange(BINS) - 38) ** 2) / 40)
    counts = np.floor(share / share.sum() * total)
    counts[0] += total - counts.sum()
    return {"edges": [maximum * i / BINS for i in range(BINS + 1)], "counts": counts.tolist()}


def bands(counted: dict[str, list[float]]) -> list[dict[str, float]]:
    """Five bands, with ends at those of bins."""
    edges, counts = counted["edges"], counted["counts"]
    return [
        {"low": edges[i], "high": edges[j], "rows": sum(counts[i:j])}
        for i, j in itertools.pairwise(BAND_ENDS)
    ]


def shape_of(latent: int) -> tuple[int, float]:
    """(rows where the latent is active, its maximum) out of ROWS."""
    active = int(10 ** (1.2 + 3.6 * chance("density", latent)))
    return active, 2.0 + 9.0 * chance("max", latent)


def text_record(latent: int, docs: list[list[str]], latents: int) -> FeatureRecord:
    label, pattern = CONCEPTS[latent % len(CONCEPTS)]
    active, maximum = shape_of(latent)
    hits = [
        (d, t)
        for d, doc in enumerate(docs)
        for t, token in enumerate(doc)
        if re.fullmatch(pattern, token)
    ]
    value = lambda d, t: maximum * (0.05 + 0.95 * chance(latent, d, t))
    ranked = sorted(hits, key=lambda at: -value(*at))
    ceiling = value(*ranked[0])
    scaled = {at: value(*at) * maximum / ceiling for at in ranked}
    examples = [window("top", None, at, docs, scaled) for at in ranked[:20]]
    for band in range(5):
        inside = [at for at in ranked if min(4, int(scaled[at] / maximum * 5)) == band]
        examples += [window("interval", band, at, docs, scaled) for at in inside[:5]]
    neighbours = [
        {"index": (latent * 7 + 13 * i + 1) % latents, "cosine": round(0.71 * 0.86**i, 5)}
        for i in range(8)
    ]
    tokens = sorted({docs[d][t] for d, t in ranked[:40]})[:10]
    return FeatureRecord(
        index=latent, density=active / ROWS, active_rows=active, max=maximum,
        histogram=histogram(maximum, active),
        bands=bands(histogram(maximum, active)), examples=examples, neighbours=neighbours,
        coactivation=[{"index": n["index"] + 1,
        "jaccard": n["cosine"] / 3} for n in neighbours[:5]],
        logits={
            "top": [{"token": t, "value": 1.9 - 0.11 * i} for i, t in enumerate([*tokens,
            *FILLER][:10])],
            "bottom": [{"token": t, "value": -1.3 + 0.07 * i} for i, t in enumerate(FILLER)],
        },
        label=label if latent % 3 == 0 else None,
    )  # fmt: skip


def window(
    group: str, band: int | None, at: tuple[int, int], docs: list[list[str]], values: dict
) -> Example:
    d, t = at
    first, last = max(0, t - WINDOW), min(len(docs[d]), t + WINDOW + 1)
    return Example(
        group=group, act=values[at], doc_id=d, example_id=d, position=t, interval=band,
        source=f"stories-{d:03d}.txt",
        tokens=docs[d][first:last], values=[values.get((d, i), 0.0) for i in range(first, last)],
        centre=t - first,
    )  # fmt: skip


def text_records(indices: Iterable[int], latents: int) -> Iterator[FeatureRecord]:
    docs = documents()
    return (text_record(latent, docs, latents) for latent in indices)


def densest(n: int, latents: int) -> list[int]:
    """What `--features top:n` picks."""
    return sorted(range(latents), key=lambda latent: -shape_of(latent)[0])[:n]


def hostile_record(latent: int) -> FeatureRecord:
    """Every string that could break a page, in every place that holds a string."""
    values = [float(i) for i in range(len(HOSTILE))]
    examples = [
        Example(
            "top",
            values[-1],
            0,
            0,
            100,
            values,
            source=text,
            tokens=list(HOSTILE),
            centre=place,
            label=text,
        )
        for place, text in enumerate(HOSTILE)
    ]
    entries = [{"token": text, "value": 1.0} for text in HOSTILE]
    return FeatureRecord(
        index=latent, density=0.5, active_rows=ROWS // 2, max=values[-1],
        histogram=histogram(values[-1], ROWS // 2),
        examples=examples, logits={"top": entries, "bottom": entries}, label=HOSTILE[0],
    )  # fmt: skip


def text_meta(
    latents: int, paged: list[int] | None = None, title: str = "SmolLM2-135M · blocks.9 · topk k=32"
) -> PageMeta:
    """A list in which one latent in twelve is dead, unless it has a record."""
    dead = lambda j: chance("dead", j) < 1 / 12 and j not in (paged or ())
    shapes = [(0, 0.0) if dead(j) else shape_of(j) for j in range(latents)]
    return PageMeta(
        title=title, modality="text", model="HuggingFaceTB/SmolLM2-135M", hook="model.layers.9",
        dataset="roneneldan/TinyStories:train", checkpoint="runs/smollm2-topk", d_in=576,
        latents=latents, rows=ROWS,
        sparsity="topk k=32", density=[active / ROWS for active, _ in shapes], max=[maximum for _,
        maximum in shapes],
        metrics={"fvu": 0.1483, "mse": 71.2, "cosine": 0.9231, "l0": 32.0, "dead": 0.0812,
        "loss_recovered": None},
        notes=["Interval examples are at most five a band."], command=COMMAND,
    )  # fmt: skip


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def digit_images(n: int = 400) -> tuple[dict[str, bytes], list[str], np.ndarray, np.ndarray]:
    """(thumbnails by key, key of each image, pixels in [0, 1], labels)"""
    digits = load_digits()
    pixels, labels = digits.images[:n] / 16, digits.target[:n]
    encoded = [png((image * 255).astype(np.uint8)) for image in pixels]
    keys = [hashlib.sha256(content).hexdigest()[:16] for content in encoded]
    return dict(zip(keys, encoded)), keys, pixels, labels


def image_records(
    n: int, keys: list[str], pixels: np.ndarray, labels: np.ndarray
) -> list[FeatureRecord]:
    """A feature looks for one stroke of 2 x 2 pixels, in digits of one kind first."""
    records = []
    for latent in range(n):
        stroke = np.array(
            [[chance("stroke", latent, r, c) - 0.3 for c in range(2)] for r in range(2)]
        )
        patches = pixels.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        match = (patches * stroke).sum((3, 4)) * np.where(labels == latent % 10, 1.6, 1.0)[
            :, None, None
        ]
        threshold = np.quantile(match, 0.8 + 0.19 * chance("density", latent))
        grids = np.maximum(match - threshold, 0).reshape(-1, 16) * (4 + 5 * chance("max", latent))
        records.append(image_record(latent, grids, keys, labels, n))
    return records


def image_record(
    latent: int, grids: np.ndarray, keys: list[str], labels: np.ndarray, latents: int
) -> FeatureRecord:
    best, maximum = grids.max(1), float(grids.max())
    ranked = np.argsort(-best, kind="stable")
    pick = lambda group, band, i: Example(
        group=group, act=float(best[i]), doc_id=int(i), example_id=int(i),
        position=int(grids[i].argmax()), interval=band,
        values=grids[i].tolist(), grid=(4, 4), image=keys[i], label=str(labels[i]),
        source=f"digits/{i:04d}",
    )  # fmt: skip
    examples = [pick("top", None, i) for i in ranked[:24] if best[i] > 0]
    for band in range(5):
        inside = [i for i in ranked if best[i] > 0 and min(4, int(best[i] / maximum * 5)) == band]
        examples += [pick("interval", band, i) for i in inside[:8]]
    positive = grids[grids > 0]
    counts, edges = np.histogram(positive, bins=BINS, range=(0, maximum or 1.0))
    return FeatureRecord(
        index=latent, density=positive.size / grids.size, active_rows=int(positive.size),
        max=maximum, examples=examples,
        histogram={"edges": edges.tolist(), "counts": counts.astype(float).tolist()},
        neighbours=[{"index": (latent + i + 1) % latents,
        "cosine": 0.8 - 0.09 * i} for i in range(8)],
    )  # fmt: skip


def image_meta(records: list[FeatureRecord], latents: int, rows: int) -> PageMeta:
    by_index = {record.index: record for record in records}
    return PageMeta(
        title="digits ViT · blocks.3 · topk k=8", modality="image", model="embedded:digits_vit",
        hook="blocks.3",
        dataset="embedded:digits", checkpoint="runs/digits", d_in=32, latents=latents, rows=rows,
        sparsity="topk k=8",
        density=[by_index[j].density if j in by_index else 0.0 for j in range(latents)],
        max=[by_index[j].max if j in by_index else 0.0 for j in range(latents)],
        metrics={"fvu": 0.0931, "cosine": 0.951, "l0": 8.0, "dead": 0.25},
    )  # fmt: skip

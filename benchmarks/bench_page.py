"""How long a page of synthetic latents takes to open from disk in headless Chromium.

    OMP_NUM_THREADS=1 python benchmarks/bench_page.py --latents 24576 262144

Every latent has a page: two examples, six words in the list, a score, and one in three an automatic
label with its lift; all are on the map and in the lookup of tokens. `open` is from the address to
the drawn gallery and list, the median of three; `first feature` from a click in the list to the
drawn feature; `token` from the first question to its answer, with the file that it needs; `word`
from a word to the list, once that file is there. `CPU` is what all processes of the browser took,
as the kernel counts it. Needs Chromium. Prints one JSON object for each number of latents.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "inspection"))
from conftest import Browser

from saekit.inspection.lookup import BEST, MOST_OF_LATENTS, TOKENS, Lookup
from saekit.inspection.map import DirectionMap
from saekit.inspection.page import PageMeta, write_page
from saekit.inspection.word_pairs import WordTable
from saekit.types import Example, FeatureRecord

TURNS, CONTEXT, WORDS = 3, 24, 5_000


def made_records(latents: int, contexts: dict[int, list[str]]) -> Iterator[FeatureRecord]:
    rng = np.random.default_rng(0)
    words = [f" w{n}" for n in range(WORDS)]
    for j in range(latents):
        examples = []
        for _ in range(2):
            at = int(rng.integers(0, 500))
            contexts[at] = [words[(37 * at + i) % WORDS] for i in range(CONTEXT)]
            example = Example("top", 1.5, at, at, 1, [0.0, 1.5, 0.0], f"document {at}")
            example.tokens, example.centre = contexts[at][:3], 1
            example.context_values = [[1, 1.5]]
            examples.append(example)
        histogram = {"edges": [0.0, 1.0, 2.0], "counts": [3, 1]}
        yield FeatureRecord(j, 1e-3, 4, 2.0, histogram, examples, score=0.5)


def made_meta(latents: int) -> PageMeta:
    rng = np.random.default_rng(1)
    meaning = lambda j: {
        "kind": "token", "text": f" word{j % WORDS}", "count": 20, "of": 30, "lift": 50.0 + j % 900
    }  # fmt: skip
    return PageMeta(
        title=f"{latents:,} synthetic latents",
        modality="text",
        model="none",
        hook="none",
        dataset="none",
        checkpoint="none",
        d_in=1,
        latents=latents,
        rows=1_000_000,
        density=(10.0 ** rng.uniform(-6, -1, latents)).tolist(),
        max=rng.uniform(0.1, 30, latents).tolist(),
        score=rng.random(latents).tolist(),
        meanings=[meaning(j) if j % 3 == 0 else None for j in range(latents)],
        gallery=[{"index": j, "twins": []} for j in range(10)],
    )


def made_lookup(latents: int) -> Lookup:
    """As many tokens of each latent as a page keeps."""
    rng = np.random.default_rng(2)
    first = max(1, min(TOKENS, MOST_OF_LATENTS // latents))
    key = np.unique(rng.integers(0, WORDS * latents, first * latents + BEST * WORDS))
    word, latent = np.divmod(key, latents)
    words = [f" w{n}" for n in range(WORDS)]
    active, total = np.full(latents, 300), np.full(WORDS, 200)
    both = rng.integers(20, 90, len(key))
    table = WordTable(words, total, 1_000_000, active, latent, word, both)
    return Lookup(table, None, None, None, first)


def made_map(latents: int) -> DirectionMap:
    xy = np.random.default_rng(3).normal(size=(latents, 2))
    return DirectionMap("pca", torch.arange(latents), xy, (0.01, 0.01))


def cpu_seconds(group: int) -> float:
    """Of the processes of a group that are there, and of their children that ended."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def measured(latents: int, tab: Browser, folder: Path) -> dict[str, float]:
    contexts: dict[int, list[str]] = {}
    page = write_page(
        made_records(latents, contexts),
        made_meta(latents),
        {},
        folder,
        contexts=contexts,
        jsonl=False,
        direction_map=made_map(latents),
        lookup=made_lookup(latents),
    )
    url = page.index_html.as_uri()
    opened, cpu = [], []
    for _ in range(TURNS):
        before = cpu_seconds(tab.pid)
        opened.append(tab.open(url))
        cpu.append(cpu_seconds(tab.pid) - before)
    feature = timed(tab, f"location.hash = '#/f/{latents // 2}'", f"'{latents // 2}' === main")
    token = timed(tab, typed("token: w7"), "/ latents, on “/.test(found)")
    word = timed(tab, typed("w77"), "/^[0-9,]+ of [0-9,]+ latents$/.test(found)")
    return {
        "latents": latents,
        "open, s": round(statistics.median(opened), 2),
        "open, CPU s": round(statistics.median(cpu), 2),
        "first feature, s": round(feature, 2),
        "token, s": round(token, 2),
        "word, s": round(word, 2),
        "index.html, MB": round(page.index_html.stat().st_size / 1e6, 1),
        "all files, MB": round(page.bytes / 1e6, 1),
    }


def typed(text: str) -> str:
    return (
        f"(box => {{ box.value = {json.dumps(text)};"
        " box.dispatchEvent(new Event('input', { bubbles: true })); })"
        "(document.getElementById('search'))"
    )


def timed(tab: Browser, action: str, done: str) -> float:
    """Seconds from an action until `done` holds of what is shown."""
    began = time.perf_counter()
    tab.evaluate(action)
    tab.wait(
        "((main, found) => " + done + ")(document.getElementById('feature').dataset.latent,"
        " document.getElementById('found').textContent)"
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, nargs="+", default=[24_576, 262_144])
    given = parser.parse_args()
    tab = Browser()
    tab.view(1400, 900)
    try:
        for latents in given.latents:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(measured(latents, tab, Path(folder))), flush=True)
    finally:
        tab.close()


if __name__ == "__main__":
    main()

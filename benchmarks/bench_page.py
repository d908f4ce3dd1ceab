"""How long a page of synthetic latents takes to open from disk in headless Chromium.

    OMP_NUM_THREADS=1 python benchmarks/bench_page.py --latents 24576 262144

Every latent has a page: two examples, six words in the list, a score, and one in three an automatic
label. `open` is from the address to the drawn gallery and list, the median of three; `first
feature` from a click in the list to the drawn feature. Needs Chromium. Prints one JSON object for
each number of latents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "inspection"))
from conftest import Browser

from saekit.inspection.page import PageMeta, write_page
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
    meaning = lambda j: {"kind": "token", "text": f" word{j % WORDS}", "count": 20, "of": 30}
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


def measured(latents: int, tab: Browser, folder: Path) -> dict[str, float]:
    contexts: dict[int, list[str]] = {}
    page = write_page(
        made_records(latents, contexts),
        made_meta(latents),
        {},
        folder,
        contexts=contexts,
        jsonl=False,
    )
    url = page.index_html.as_uri()
    opened = [tab.open(url) for _ in range(TURNS)]
    began = time.perf_counter()
    tab.evaluate(f"location.hash = '#/f/{latents // 2}'")
    tab.wait(f"document.getElementById('feature').dataset.latent === '{latents // 2}'")
    return {
        "latents": latents,
        "open, s": round(statistics.median(opened), 2),
        "first feature, s": round(time.perf_counter() - began, 2),
        "index.html, MB": round(page.index_html.stat().st_size / 1e6, 1),
        "all files, MB": round(page.bytes / 1e6, 1),
    }


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

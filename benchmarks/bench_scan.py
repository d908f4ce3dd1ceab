"""Time and memory of the inspection scan on a trained checkpoint.

    python benchmarks/bench_scan.py CKPT STORE [--features top:500]

Scans the store as `saekit inspect` does, without a cached scan, and writes the page to a temporary
folder. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import saekit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--features", default="top:500")
    a = parser.parse_args()
    shutil.rmtree(a.checkpoint / "scans", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        began, scanned = time.perf_counter(), []
        result = saekit.inspect(
            a.checkpoint,
            a.store,
            Path(folder) / "page",
            features=a.features,
            progress=lambda p: scanned.append(time.perf_counter()) if p.phase == "scan" else None,
        )
        seconds = time.perf_counter() - began
    model, store = saekit.load(a.checkpoint), saekit.open_store(a.store)
    figures = {
        "latents": model.latents,
        "rows": len(store),
        "features on the page": result.features,
        "scan, s": round(scanned[-1] - began, 1),
        "whole page, s": round(seconds, 1),
        "peak memory, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

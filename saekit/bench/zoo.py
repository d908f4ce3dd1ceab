"""`saekit bench zoo`: every sparsity variant on the same rows of a language model, at the same number of active latents.

SmolLM2-135M behind block 9 on Python's documentation, k or target L0 of 32. Each trains alone on all cores; the store is harvested once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import NumericsError
from saekit.models.catalog import options_of
from saekit.models.sparsity import VARIANTS
from saekit.training.run import train

MODEL, DATA, HOOK = "embedded:smollm2-135m", "embedded:pydocs", "blocks.9"
ACTIVE = 32
EPOCHS = 2  # latents are counted as dead over one
FULL = {"rows": 120_000, "latents": 32 * 576, "batch": 4096}
QUICK = {"rows": 30_000, "latents": 2048, "batch": 1024}


@dataclass(frozen=True)
class ZooResult:
    sparsity: str
    latents: int
    rows: int
    fvu: float | None
    """On held-out rows, as l0 and dead; None: the run diverged."""
    l0: float | None
    dead: float | None
    dead_train: float | None
    """Share of latents silent over the last epoch of training."""
    rows_per_s: float | None


def bench_zoo(quick: bool, progress: Callable[[str], None], store: Path | None = None) -> list[ZooResult]:
    """One result a variant. `store`: a harvested one with layout sequence, in place of a new one."""
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="saekit-zoo-") as folder:
        if store is None:
            from saekit.harvesting.run import harvest

            store = Path(folder) / "store"
            found = harvest(MODEL, DATA, store, hook=HOOK, rows=size["rows"], layout="sequence")
            progress(f"{found.rows:,} rows of {MODEL} {HOOK}")
        results = []
        for name in VARIANTS:
            results.append(_trained(name, store, Path(folder) / name, size))
            progress(str(results[-1]))
    return results


def options_for(name: str, active: float) -> dict[str, Any]:
    """The options by which a variant comes to `active` latents a row; sigmoid codes and pursuits have their own."""
    taken = options_of("sae", name)
    if VARIANTS[name].active_above > 0 or name == "matching-pursuit":
        return {}
    return {"k": int(active)} if "k" in taken else {"target_l0": active}


def _trained(name: str, store: Path, out: Path, size: dict[str, int]) -> ZooResult:
    rows = round(EPOCHS * 0.96 * size["rows"])  # a twentieth is held out
    options = options_for(name, ACTIVE)
    try:
        result = train(store, out, sparsity=name, latents=size["latents"], rows=rows, batch=size["batch"], save_seconds=1e9, **options)
    except NumericsError:
        return ZooResult(name, size["latents"], rows, None, None, None, None, None)
    figures = [result.metrics[key] for key in ("fvu", "l0", "dead", "dead_train")]
    return ZooResult(name, size["latents"], result.rows, *figures, result.rows_per_s)

"""Small stores that behave like real ones: correlated rows, documents of uneven length, contexts
within documents."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from saekit.store.files import sha256_of
from saekit.store.manifest import checksum
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter
from saekit.types import ActivationSpec

D = 16


def make_spec(**changes) -> ActivationSpec:
    values = {
        "model": "synthetic", "revision": None, "hook": "blocks.0", "modality": "text", "d_in": D,
        "dtype": "float16", "layout": "flat",
        "scope": "content", "grid": None, "dataset": "synthetic", "context": 8, "seed": 0,
    }  # fmt: skip
    return ActivationSpec(**{**values, **changes})


def make_rows(rows: int, width: int = D, seed: int = 0) -> torch.Tensor:
    """(rows, width): sparse combinations of unit directions plus a mean, which an SAE can explain
    and PCA cannot."""
    gen = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(4 * width, width, generator=gen), dim=1)
    codes = torch.rand(rows, 4 * width, generator=gen) * (
        torch.rand(rows, 4 * width, generator=gen) < 0.06
    )
    return 10 * codes @ directions + 3.0


def write_store(
    path: Path,
    rows: int = 2000,
    *,
    width: int = D,
    shard_bytes: int = 20_000,
    tokens: int = 8,
    holdout: float | None = None,
    x: torch.Tensor | None = None,
    **spec,
) -> Path:
    """Contexts of `tokens` rows, three to a document; blocks of five contexts. `x`: the rows."""
    x = make_rows(rows, width) if x is None else x
    plan = {"rows": rows} if holdout is None else {"rows": rows, "holdout": holdout}
    writer = StoreWriter(path, make_spec(d_in=width, **spec), plan, shard_bytes=shard_bytes)
    row = torch.arange(rows)
    example = row // tokens
    for first in range(0, rows, 5 * tokens):
        part = slice(first, min(first + 5 * tokens, rows))
        examples = []
        for e in example[part].unique().tolist():
            inside = (example[part] == e).nonzero()[:, 0]
            ids = (torch.arange(len(inside)) + e).tolist()
            examples.append(
                StoredExample(
                    e, e // 3, int(inside[0]), len(inside), ids, f"document {e // 3}", str(e % 10)
                )
            )
        writer.append(
            RowBlock(
                x[part], example[part] // 3, example[part], (row[part] % tokens).int(), examples
            )
        )
    writer.finish()
    return path


def damage(store: Store, row: int, value: float = float("nan")) -> tuple[str, int]:
    """Put `value` into a stored row and make the checksums agree, as a faulty writer would leave
    it. Returns the shard's name and the row's number in it."""
    number = int((row >= store._offsets).sum()) - 1
    shard, local = store.shards[number], row - int(store._offsets[number])
    tensors = load_file(shard.path)
    tensors["x"][local, 3] = value
    save_file(tensors, shard.path)
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["shards"][number]["sha256"] = sha256_of(shard.path)
    manifest["checksum"] = checksum(manifest)
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    return shard.shard.name, local

"""Small raw data on disk: pictures, arrays, texts; and reading a store whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from saekit.store.reader import open_store

WORDS = ("river", "mountain", "forest", "desert", "ocean", "island", "valley", "glacier")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def whole(folder: Path, **options):
    return next(open_store(folder).batches(100_000, **options))


def pictures(folder: Path, count: int, size=(3, 2), mode="RGB") -> np.ndarray:
    """`count` images of random pixels in two class folders; (count, height, width, channels)."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(0).integers(
        0, 256, (count, size[1], size[0], *channels), dtype=np.uint8
    )
    for i, each in enumerate(pixels):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each, mode).save(path)
    return pixels


def array(path: Path, *shape: int, dtype=np.float32, **others) -> tuple[str, np.ndarray]:
    x = np.random.default_rng(1).normal(0, 9, shape).astype(dtype)
    np.savez(path, x=x, **others) if path.suffix == ".npz" else np.save(path, x)
    return str(path), x


def texts(path: Path, count: int = 60) -> list[str]:
    rng = np.random.default_rng(2)
    documents = [
        " ".join(rng.choice(WORDS, rng.integers(3, 12), p=np.arange(1, 9) / 36))
        for _ in range(count)
    ]
    documents[4] = "the 1999 of a"  # stop words, a number and a single letter
    documents[5] = documents[5] + " Glacier's GLACIER glacier_2"
    path.write_text("\n\n".join(documents))
    return documents

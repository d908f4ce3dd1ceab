"""Which latents of an autoencoder of embedded:openmoji-vit show a part: wheels, stripes, leaves.

    python benchmarks/openmoji_parts.py demo/image/topk demo/image/store [--part wheel ...]
        [--latent wheel=1234 ...] [--rows 3] [--png FILE]

For every part the best latents: the share of their 20 strongest pictures that show the part by
saekit.embedded.openmoji.parts, plus half of its share of all their activations. `red` and `blue`
are parts too: of patches of which 30 % are that color. `--png` draws the strongest picture of each
of 20 emoji, with a line round the patches where the latent has more than half of its largest value
there; a name in red is not in the table. Whether a child would give them one name, the eye says.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import saekit
from saekit.embedded import openmoji
from saekit.embedded.openmoji.parts import VISIBLE, parts
from saekit.embedded.openmoji.table import table
from saekit.store.reader import Store

PATCHES, GRID, PATCH = 81, 9, 8
STRONGEST = 20
LEAST_PICTURES = 30
COLORS = {"red": (0, 130), "blue": (2, 40)}  # channel, and by how much it exceeds the others


@dataclass
class Codes:
    """Every activation, by latent: its row of the store and value; and the rows' pictures."""

    row: np.ndarray
    latent: np.ndarray
    value: np.ndarray
    pictures: np.ndarray  # of embedded:openmoji, by every PATCHES rows
    latents: int

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values."""
        first, end = np.searchsorted(self.latent, [latent, latent + 1])
        return self.row[first:end], self.value[first:end]

    def strongest(self, latent: int, emoji: bool = False) -> list[tuple[int, int]]:
        """(place among `pictures`, its strongest patch), the strongest picture first; of each emoji
        only one, when asked."""
        rows, values = self.of(latent)
        taken: dict[int, tuple[int, int]] = {}
        for row in rows[np.argsort(-values, kind="stable")].tolist():
            picture, patch = divmod(row, PATCHES)
            document = openmoji.document(int(self.pictures[picture]))
            taken.setdefault(document if emoji else picture, (picture, patch))
            if len(taken) == STRONGEST:
                break
        return list(taken.values())


def codes(checkpoint: str, store: Store) -> Codes:
    model, known = saekit.load(checkpoint), {name: i for i, name in enumerate(openmoji.names())}
    pictures = [known[str(store.example_at(row)[0].ref)] for row in range(0, len(store), PATCHES)]
    rows, latents, values, width = [], [], [], 0
    for first in range(0, len(store), 8192):
        batch = store.take(np.arange(first, min(first + 8192, len(store))))
        with torch.no_grad():
            dense = model.encode(batch.x.float()).to_dense()
        where, width = dense.nonzero(), dense.shape[1]
        rows.append(where[:, 0].numpy() + first)
        latents.append(where[:, 1].numpy())
        values.append(dense[dense != 0].numpy())
    row, latent, value = (np.concatenate(each) for each in (rows, latents, values))
    order = np.argsort(latent, kind="stable")
    return Codes(row[order], latent[order], value[order], np.array(pictures), width)


def shows(part: str, found: Codes) -> np.ndarray:
    """Of every row of the store, whether its picture shows the part, or its patch the color."""
    if part not in COLORS:
        emoji = [table()[openmoji.document(picture)] for picture in found.pictures]
        seen = [parts()[part].get(each.name) == VISIBLE for each in emoji]
        return np.repeat(np.array(seen), PATCHES)
    (channel, least), rows = COLORS[part], []
    for picture in found.pictures:
        x = np.asarray(openmoji.image(picture)).astype(int)
        colored = x[..., channel] - np.delete(x, channel, axis=-1).max(-1) > least
        rows.append(colored.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).ravel() > 0.3)
    return np.concatenate(rows)


def best(part: str, found: Codes, count: int) -> list[tuple[float, int]]:
    """(score, latent)."""
    shown = shows(part, found)
    total = np.bincount(found.latent, found.value, found.latents)
    share = np.bincount(found.latent, found.value * shown[found.row], found.latents)
    share /= np.maximum(total, 1e-9)
    # Only the latents with the largest shares are looked at in pictures.
    pictures = np.unique(found.latent.astype(np.int64) * len(shown) + found.row // PATCHES)
    often = np.bincount(pictures // len(shown), minlength=found.latents) >= LEAST_PICTURES
    candidates = np.argsort(-np.where(often, share, -1))[:400]
    scores = []
    for latent in candidates:
        top = [shown[picture * PATCHES + patch] for picture, patch in found.strongest(latent)]
        scores.append((float(np.mean(top)) + 0.5 * float(share[latent]), int(latent)))
    return sorted(scores, reverse=True)[:count]


def line(part: str, latent: int, found: Codes) -> str:
    shown, (rows, values) = shows(part, found), found.of(latent)
    top = [shown[picture * PATCHES + patch] for picture, patch in found.strongest(latent)]
    share = float((values * shown[rows]).sum() / values.sum())
    strongest, density = np.mean(top), len(rows) / len(shown)
    return (
        f"{part:8} {latent:5}  density {density:7.3%}  strongest {strongest:4.0%}"
        f"  all {share:4.0%}  base {shown.mean():5.1%}"
    )


def sheet(chosen: list[tuple[str, int]], found: Codes, columns: int) -> Image.Image:
    font, step, left = ImageFont.load_default(10), openmoji.SIZE + 4, 96
    picture = Image.new("RGB", (left + columns * step, len(chosen) * (step + 12)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (part, latent) in enumerate(chosen):
        top = number * (step + 12)
        draw.text((2, top + 24), f"{part}\n{latent}", fill="black", font=font)
        rows, values = found.of(latent)
        for column, (place, _) in enumerate(found.strongest(latent, emoji=True)[:columns]):
            x, here = left + column * step, rows // PATCHES == place
            index = found.pictures[place]
            picture.paste(openmoji.image(index), (x, top))
            for patch in rows[here][values[here] > values[here].max() / 2] % PATCHES:
                down, right = divmod(int(patch), GRID)
                box = (x + right * PATCH - 1, top + down * PATCH - 1)
                draw.rectangle((*box, box[0] + PATCH + 1, box[1] + PATCH + 1), outline="#e0007a")
            name = table()[openmoji.document(index)].name
            known = part in COLORS or parts().get(part, {}).get(name) == VISIBLE
            draw.text((x, top + 73), name[:14], fill="black" if known else "red", font=font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("store")
    parser.add_argument("--part", nargs="+", default=[*parts(), *COLORS])
    parser.add_argument("--latent", nargs="+", default=[], help="part=latent, instead of the best")
    parser.add_argument("--rows", type=int, default=3, help="latents per part")
    parser.add_argument("--columns", type=int, default=STRONGEST)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    found = codes(options.checkpoint, Store(Path(options.store)))
    given = [each.split("=") for each in options.latent]
    chosen = [(part, int(latent)) for part, latent in given] or [
        (part, latent) for part in options.part for _, latent in best(part, found, options.rows)
    ]
    for part, latent in chosen:
        print(line(part, latent, found), flush=True)
    if options.png is not None:
        sheet(chosen, found, options.columns).save(options.png)


if __name__ == "__main__":
    main()

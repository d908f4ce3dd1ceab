"""The pictures of models in docs/models.md: `python docs/draw_shapes.py` writes
docs/img/model-*.svg.

All pictures use the same signs. A bar is a layer; its height is the logarithm of its width, so that
784 and 30 fit into one picture and every halving is the same step. Data and hidden layers are blue,
the code is orange, and a pale wedge between two bars is a full weight matrix. An SVG in <img> does
not inherit the colors of its page, so every picture has a white background, also on dark pages.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

OUT = Path(__file__).parent / "img"
INK, SOFT, LINE, BLUE, EDGE = "#2b3644", "#5c6b7d", "#8a99ab", "#c8d9ee", "#4a76a8"
CODE, CODE_EDGE, WEDGE, NOISE = "#f3a35c", "#b8621b", "#edf1f6", "#b03a5b"
STEP, BAR = 15.0, 20.0  # pixels: height per doubling of the width, and breadth of a bar
WIDTH, MIDDLE = 760, 116  # of the picture; height at which bars are centered
HEAD = (
    '<marker id="{0}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    ' orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{1}"/></marker>'
)


def height(width: int) -> float:
    return STEP * math.log2(width) if width > 2 else STEP * 1.4


class Drawing:
    """Elements of one picture, back to front; wedges are drawn first."""

    def __init__(self, name: str, about: str, tall: int = 232) -> None:
        self.name, self.about, self.tall = name, about, tall
        self.wedges: list[str] = []
        self.front: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        color: str = INK,
        size: int = 14,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.front.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}"'
            f' text-anchor="{anchor}"{weight}>{words}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str = BLUE,
        edge: str = EDGE,
        round_: float = 3,
    ) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{round_}"'
        self.front.append(f'<rect {place} fill="{fill}" stroke="{edge}" stroke-width="1.3"/>')

    def dot(self, x: float, y: float, r: float, fill: str = BLUE, edge: str = EDGE) -> None:
        self.front.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}" stroke="{edge}"'
            ' stroke-width="1.3"/>'
        )

    def path(
        self,
        d: str,
        color: str = LINE,
        dashed: bool = False,
        arrow: str = "end",
        wide: float = 1.4,
    ) -> None:
        ends = {"end": f' marker-end="url(#{self.mark(color)})"', "both": "", "": ""}[arrow]
        if arrow == "both":
            ends = f' marker-start="url(#{self.mark(color)})" marker-end="url(#{self.mark(color)})"'
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.front.append(
            f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{wide}"{dash}{ends}/>'
        )

    def arrow(self, x0: float, y0: float, x1: float, y1: float, color: str = SOFT, **how) -> None:
        self.path(f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}", color, **how)

    def wedge(self, x0: float, h0: float, x1: float, h1: float, y: float = MIDDLE) -> None:
        """The weights between two bars of heights h0 and h1."""
        corners = (
            f"{x0:.1f},{y - h0 / 2:.1f} {x1:.1f},{y - h1 / 2:.1f} {x1:.1f},{y + h1 / 2:.1f}"
            f" {x0:.1f},{y + h0 / 2:.1f}"
        )
        self.wedges.append(f'<polygon points="{corners}" fill="{WEDGE}"/>')

    def bar(
        self, x: float, width: int, name: str, sub: str = "", code: bool = False, y: float = MIDDLE
    ) -> None:
        """A layer of `width` units with left edge x. Names and sizes of all layers stand on one
        line, below the tallest bar."""
        h = height(width)
        self.box(x, y - h / 2, BAR, h, *((CODE, CODE_EDGE) if code else (BLUE, EDGE)))
        self.text(x + BAR / 2, self.tall - 28, name, CODE_EDGE if code else INK, bold=code)
        self.text(x + BAR / 2, self.tall - 11, sub, SOFT, 12)

    def cells(self, x: float, top: float, count: int, active: set[int], size: float) -> None:
        """A sparse code: active latents are orange."""
        for i in range(count):
            on = i in active
            self.box(
                x,
                top + i * size,
                BAR,
                size,
                *((CODE, CODE_EDGE) if on else ("#ffffff", LINE)),
                round_=0,
            )

    def mark(self, color: str) -> str:
        return "head" + color[1:]

    def save(self) -> None:
        heads = "".join(
            HEAD.format(self.mark(color), color) for color in (SOFT, LINE, NOISE, CODE_EDGE, EDGE)
        )
        OUT.joinpath(f"model-{self.name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.tall}"'
            f' width="{WIDTH}" height="{self.tall}" role="img" font-family="Helvetica, Arial,'
            f' sans-serif">\n<title>{self.about}</title>\n<defs>{heads}</defs>\n<rect x="0.5"'
            f' y="0.5" width="{WIDTH - 1}" height="{self.tall - 1}" rx="8" fill="#ffffff"'
            ' stroke="#d5dbe3"/>\n' + "\n".join([*self.wedges, *self.front]) + "\n</svg>\n"
        )


# -- stacks of layers
# --------------------------------------------------------------------------------------------------


def stack(
    d: Drawing,
    widths: list[int],
    code: int,
    left: float = 60,
    right: float = WIDTH - 80,
    names: dict[int, str] | None = None,
) -> list:
    """Evenly spaced bars from left to right, the one at index `code` orange. Returns their left
    edges."""
    step = (right - left) / (len(widths) - 1)
    xs = [left + i * step for i in range(len(widths))]
    for i, (x, width) in enumerate(zip(xs, widths)):
        default = (
            "x" if i == 0 else "x̂" if i == len(widths) - 1 else "code" if i == code else "hidden"
        )
        sub = f"D = {width}" if i == 0 else f"F = {width}" if i == code else str(width)
        d.bar(x, width, (names or {}).get(i, default), sub, i == code)
        if i:
            d.wedge(xs[i - 1] + BAR, height(widths[i - 1]), x, height(width))
    return xs


def between(xs: list, i: int) -> float:
    """The middle of the gap after bar i."""
    return (xs[i] + BAR + xs[i + 1]) / 2


def sae() -> None:
    d = Drawing(
        "sae",
        "A sparse autoencoder: input, a code far wider than the input with a few active latents,"
        " reconstruction",
    )
    h, wide = height(64), 154.0
    for x, name in ((110, "x"), (620, "x̂")):
        d.bar(x, 64, name, "D")
    d.cells(365, MIDDLE - wide / 2, 28, {4, 13, 22}, wide / 28)
    d.wedge(130, h, 365, wide)
    d.wedge(385, wide, 620, h)
    d.text(375, d.tall - 28, "sparse code", CODE_EDGE, bold=True)
    d.text(375, d.tall - 11, "F = 32 D, k active", SOFT, 12)
    d.text(247, MIDDLE + 5, "W_enc, then topk | l1 | kl", SOFT, 13)
    d.text(502, MIDDLE + 5, "W_dec: one row a latent", SOFT, 13)
    d.save()


def one_layer(name: str, about: str, up: str, down: str, link: str) -> None:
    d = Drawing(name, about)
    xs = stack(d, [784, 30, 784], 1, 110, 620)
    d.text(between(xs, 0), MIDDLE + 5, up, SOFT, 13)
    d.text(between(xs, 1), MIDDLE + 5, down, SOFT, 13)
    if link:
        linked(d, between(xs, 0), between(xs, 1), 24, link)
    d.save()


def linked(d: Drawing, x0: float, x1: float, y: float, words: str = "") -> None:
    """An arrow with two heads: the same numbers at both ends."""
    d.path(
        f"M{x0:.1f} {y + 34:.1f}C{x0:.1f} {y - 4:.1f} {x1:.1f} {y - 4:.1f} {x1:.1f} {y + 34:.1f}",
        EDGE,
        arrow="both",
    )
    if words:
        d.text((x0 + x1) / 2, y - 2, words, EDGE, 12)


def dense() -> None:
    d = Drawing(
        "dense", "A deep dense autoencoder: mirrored layers 784, 512, 256, 128, code 30, and back"
    )
    stack(d, [784, 512, 256, 128, 30, 128, 256, 512, 784], 4)
    d.save()


def tied() -> None:
    d = Drawing(
        "tied",
        "Tied weights: every layer on the way down uses the transpose of its mirror image's"
        " weights",
    )
    d.tall = 250
    xs = stack(d, [784, 256, 30, 256, 784], 2, 90, 650)
    for i, (up, down) in enumerate((("W₁", "W₁ᵀ"), ("W₂", "W₂ᵀ"))):
        j = 3 - i
        d.text(between(xs, i), MIDDLE + 22, up, SOFT)
        d.text(between(xs, j), MIDDLE + 22, down, SOFT)
        linked(d, between(xs, i), between(xs, j), 14 + 26 * i)
    d.save()


def denoising() -> None:
    d = Drawing(
        "denoising",
        "Denoising: the model sees the noisy input, the loss compares with the clean one",
    )
    d.tall = 262
    xs = stack(d, [784, 784, 512, 30, 512, 784], 3, 60, 660, {1: "noisy x"})
    d.wedges.pop(0)  # noise is not a matrix
    h, rng = height(784), random.Random(3)
    for _ in range(46):
        d.dot(
            xs[1] + rng.uniform(3, BAR - 3),
            MIDDLE + rng.uniform(-h / 2 + 4, h / 2 - 4),
            1.3,
            NOISE,
            NOISE,
        )
    d.arrow(xs[0] + BAR + 4, MIDDLE, xs[1] - 4, MIDDLE, NOISE)
    d.text(between(xs, 0), MIDDLE - 10, "+ noise", NOISE, 13)
    y = MIDDLE + h / 2 + 12
    d.path(
        f"M{xs[0] + BAR / 2:.0f} {y - 8:.0f}V{y + 10:.0f}H{xs[-1] + BAR / 2:.0f}V{y - 8:.0f}",
        LINE,
        dashed=True,
        arrow="both",
    )
    d.text((xs[0] + xs[-1] + BAR) / 2, y + 5, "the loss compares x̂ with the clean x", SOFT, 12)
    d.save()


def contractive() -> None:
    d = Drawing(
        "contractive",
        "Contractive: a small change of the input is asked to change the code as little as"
        " possible",
    )
    xs = stack(d, [784, 512, 30, 512, 784], 2, 90, 650)
    mid, c = MIDDLE, height(30) / 2
    d.path(f"M{xs[0] - 16:.0f} {mid - 26:.0f}V{mid + 26:.0f}", NOISE, arrow="both", wide=2)
    d.text(xs[0] - 26, mid + 5, "dx", NOISE, 14, "end")
    d.path(f"M{xs[2] + BAR + 15:.0f} {mid - 13:.0f}V{mid + 13:.0f}", NOISE, arrow="both")
    d.text(xs[2] + BAR + 26, mid + 5, "dz = J dx", NOISE, 14, "start")
    d.text(xs[2] + BAR / 2, mid - c - 22, "penalty ‖J‖²", NOISE, 13)
    d.save()


def sparse() -> None:
    d = Drawing(
        "sparse",
        "A classic sparse autoencoder: a code as wide as the input or wider, most of its units near"
        " zero",
    )
    h = height(784)
    xs = (110.0, 365.0, 620.0)
    d.bar(xs[0], 784, "x", "D = 784")
    d.bar(xs[2], 784, "x̂", "784")
    d.cells(xs[1], MIDDLE - h / 2, 24, {3, 9, 10, 17, 21}, h / 24)
    d.wedge(xs[0] + BAR, h, xs[1], h)
    d.wedge(xs[1] + BAR, h, xs[2], h)
    d.text(xs[1] + BAR / 2, d.tall - 28, "code", CODE_EDGE, bold=True)
    d.text(xs[1] + BAR / 2, d.tall - 11, "F = 784", SOFT, 12)
    d.text(247, MIDDLE + 5, "relu (l1) or sigmoid (kl)", SOFT, 13)
    d.text(502, MIDDLE + 5, "penalty on the code", SOFT, 13)
    d.save()


def vae() -> None:
    d = Drawing(
        "vae",
        "A variational autoencoder: the encoder gives mean and spread, the code is drawn from them,"
        " the decoder reads it",
    )
    xs = [60, 160, 260, 500, 600, 680]
    for i, (x, width, name, sub) in enumerate(
        zip(
            xs,
            (784, 512, 256, 256, 512, 784),
            ("x", "hidden", "hidden") + ("hidden",) * 2 + ("x̂",),
            ("D = 784", 512, 256, 256, 512, 784),
        )
    ):
        d.bar(x, width, name, str(sub))
        if i not in (0, 3):
            before = (784, 512, 256, 256, 512)[i - 1]
            d.wedge(xs[i - 1] + BAR, height(before), x, height(width))
    small = 56.0
    for y, name in ((MIDDLE - 42, "mean"), (MIDDLE + 42, "sigma")):
        d.box(348, y - small / 2, BAR, small, CODE, CODE_EDGE)
        d.text(374, y + (-12 if y < MIDDLE else 22), name, SOFT, 12, "start")
        corners = (
            f"280,{MIDDLE - height(256) / 2:.1f} 348,{y - small / 2:.1f} 348,{y + small / 2:.1f}"
            f" 280,{MIDDLE + height(256) / 2:.1f}"
        )
        d.wedges.append(f'<polygon points="{corners}" fill="{WEDGE}"/>')
        d.arrow(370, y, 414, MIDDLE + (-16 if y < MIDDLE else 16))
    d.box(418, MIDDLE - small / 2, BAR, small, CODE, CODE_EDGE)
    d.wedge(438, small, 500, height(256))
    d.text(428, d.tall - 28, "z", CODE_EDGE, bold=True)
    d.text(428, d.tall - 11, "F = 30", SOFT, 12)
    d.arrow(428, 30, 428, MIDDLE - small / 2 - 5, NOISE)
    d.text(428, 22, "z = mean + sigma · noise, noise from N(0, I)", NOISE, 12)
    d.save()


# -- other shapes
# --------------------------------------------------------------------------------------------------


def kmeans() -> None:
    d = Drawing(
        "kmeans",
        "k-means: rows as points, each coded by its nearest centroid; the code holds a single 1",
    )
    rng = random.Random(1)
    centres = [(110, 62), (205, 168), (300, 70), (390, 160)]
    for cx, cy in centres:
        for _ in range(14):
            x, y = cx + rng.gauss(0, 26), cy + rng.gauss(0, 19)
            d.arrow(x, y, cx, cy, "#dfe5ec", arrow="")
            d.dot(x, y, 3.2)
    for cx, cy in centres:
        d.front.append(
            f'<path d="M{cx - 7} {cy}h14M{cx} {cy - 7}v14" stroke="{CODE_EDGE}"'
            ' stroke-width="3.5"/>'
        )
    x, y = 332, 100
    d.arrow(x, y, 305, 76, NOISE)
    d.dot(x, y, 4.5, NOISE, NOISE)
    d.text(x + 9, y + 9, "x", NOISE, 15, "start")
    d.cells(560, 40, 6, {2}, 22)
    d.arrow(450, 106, 545, 106)
    d.text(497, 97, "nearest", SOFT, 13)
    d.text(570, d.tall - 28, "code", CODE_EDGE, bold=True)
    d.text(570, d.tall - 11, "a single 1 among F", SOFT, 12)
    d.arrow(590, 106, 640, 106)
    d.text(650, 103, "x̂ = that", INK, 14, "start")
    d.text(650, 121, "centroid", INK, 14, "start")
    d.save()


def pretraining() -> None:
    d = Drawing(
        "pretraining",
        "Pretraining: each pair of layers is trained by itself, then the stack is unrolled and"
        " trained as one",
        258,
    )
    widths = [784, 512, 256, 30]
    for i, (a, b) in enumerate(pairwise(widths)):
        x = 40 + 100 * i
        d.bar(x, a, "x" if i == 0 else "h", str(a), False)
        d.bar(x + 52, b, "code" if i == 2 else "h", str(b), i == 2)
        for share in (-0.4, -0.13, 0.13, 0.4):
            for other in (-0.4, 0, 0.4):
                d.arrow(
                    x + BAR,
                    MIDDLE + share * height(a),
                    x + 52,
                    MIDDLE + other * height(b),
                    LINE,
                    arrow="",
                    wide=0.8,
                )
        d.text(x + 36, 26, f"W{'₁₂₃'[i]}", EDGE)
    d.arrow(338, MIDDLE, 382, MIDDLE, SOFT, wide=2)
    d.text(360, MIDDLE - 10, "unroll", SOFT, 13)
    xs = stack(d, [*widths, *widths[-2::-1]], 3, 396, 706, dict.fromkeys((1, 2, 4, 5), "h"))
    d.text(176, 210, "each pair by itself, from the input up", SOFT, 13)
    d.text(561, 210, "all layers together", SOFT, 13)
    for i, name in enumerate(("W₁", "W₂", "W₃", "W₃ᵀ", "W₂ᵀ", "W₁ᵀ")):
        d.text(between(xs, i), 26, name, EDGE, 12)
    d.save()


def maps(
    d: Drawing, x: float, y: float, side: float, sheets: int, label: str, code: bool = False
) -> tuple[float, float]:
    """Feature maps as a stack of squares, centered at (x, y). Returns their left and right
    edges."""
    fill, edge = (CODE, CODE_EDGE) if code else (BLUE, EDGE)
    shift = 4
    for i in range(sheets):
        off = (i - (sheets - 1) / 2) * shift
        d.box(x - side / 2 + off, y - side / 2 + off, side, side, fill, edge, 1)
    if label:
        d.text(x, y + side / 2 + sheets * shift / 2 + 17, label, SOFT, 12)
    reach = side / 2 + (sheets - 1) * shift / 2
    return x - reach, x + reach


def conv() -> None:
    d = Drawing(
        "conv",
        "A convolutional autoencoder: maps shrink from 28x28 to 14x14 to 7x7, a code, and the same"
        " way back",
    )
    spots = [(70, 96, 1, "28×28×1"), (188, 62, 3, "14×14×16"), (286, 38, 5, "7×7×32")]
    row = [
        *spots,
        *[(WIDTH - x, side, sheets, label) for x, side, sheets, label in reversed(spots)],
    ]
    edges = [maps(d, x, MIDDLE - 8, side, sheets, label) for x, side, sheets, label in row]
    code, h = WIDTH / 2 - BAR / 2, height(30)
    d.box(code, MIDDLE - 8 - h / 2, BAR, h, CODE, CODE_EDGE)
    ends = [*edges[:3], (code, code + BAR), *edges[3:]]
    for before, after in pairwise(ends):
        d.arrow(before[1] + 5, MIDDLE - 8, after[0] - 5, MIDDLE - 8)
    d.text(WIDTH / 2, d.tall - 28, "code", CODE_EDGE, bold=True)
    d.text(WIDTH / 2, d.tall - 11, "F = 30", SOFT, 12)
    d.text(70, d.tall - 28, "x", INK)
    d.text(WIDTH - 70, d.tall - 28, "x̂", INK)
    d.text(188, d.tall - 28, "3×3 convolution, 2×2 mean", SOFT, 12)
    d.text(WIDTH - 188, d.tall - 28, "4×4 transposed, stride 2", SOFT, 12)
    d.save()


def unet() -> None:
    d = Drawing(
        "unet",
        "A U-Net: convolutions down to a bottleneck and up again, with every level's maps handed"
        " across",
        336,
    )
    levels = [(104, 62, 84, 2, "32×32×16"), (214, 158, 52, 3, "16×16×32")]
    below = (WIDTH / 2, 248, 30, 5, "8×8×64")
    left = [maps(d, *level) for level in levels]
    right = [maps(d, WIDTH - x, y, side, n, label) for x, y, side, n, label in levels]
    bottom = maps(d, *below, True)
    for (_, y, *_rest), (_, start), (stop, _) in zip(levels, left, right):
        d.arrow(start + 8, y, stop - 8, y, EDGE, dashed=True)
    d.text(WIDTH / 2, levels[0][1] - 9, "skip: maps of a level, handed across", EDGE, 13)
    d.arrow(164, 100, 186, 122)
    d.arrow(262, 194, bottom[0] - 10, 240)
    d.arrow(bottom[1] + 10, 240, WIDTH - 262, 194)
    d.arrow(WIDTH - 186, 122, WIDTH - 164, 100)
    d.text(32, 66, "x", INK, 15)
    d.text(WIDTH - 28, 58, "x̂ or", INK, 13)
    d.text(WIDTH - 28, 74, "target", INK, 13)
    d.text(below[0], d.tall - 16, "bottleneck", CODE_EDGE, bold=True)
    d.save()


def lowered(index: str) -> str:
    return f'<tspan dy="4" font-size="11">{index}</tspan>'


def recurrent() -> None:
    d = Drawing(
        "recurrent",
        "A recurrent autoencoder: a reader takes the steps one by one, its last state gives the"
        " code, a writer writes them",
        236,
    )
    y, names = 112, ("1", "2", "…", "T")
    reader, writer = [60 + 72 * i for i in range(4)], [444 + 72 * i for i in range(4)]
    for xs, kind in ((reader, "reader"), (writer, "writer")):
        for i, (x, name) in enumerate(zip(xs, names)):
            d.box(x, y - 19, 42, 38, round_=7)
            d.text(x + 21, y + 5, "cell", INK, 13)
            if i < 3:
                d.arrow(x + 45, y, x + 69, y)
            if kind == "reader":
                d.arrow(x + 21, y + 52, x + 21, y + 23)
                d.text(x + 21, y + 68, name if name == "…" else f"x{lowered(name)}", INK, 15)
            else:
                d.arrow(x + 21, y - 23, x + 21, y - 50)
                d.text(x + 21, y - 57, name if name == "…" else f"x̂{lowered(name)}", INK, 15)
    h = height(30)
    code = WIDTH / 2 - BAR / 2 - 3
    d.box(code, y - h / 2, BAR, h, CODE, CODE_EDGE)
    d.arrow(reader[-1] + 45, y, code - 4, y)
    d.arrow(code + BAR + 4, y, writer[0] - 3, y)
    low = y + 58
    d.path(
        f"M{code + BAR / 2:.0f} {y + h / 2 + 2:.0f}V{low}H{writer[-1] + 21}",
        CODE_EDGE,
        arrow="",
        dashed=True,
    )
    for x in writer:
        d.arrow(x + 21, low, x + 21, y + 23, CODE_EDGE, dashed=True)
    d.text(code + BAR / 2, d.tall - 28, "code", CODE_EDGE, bold=True)
    d.text(code + BAR / 2, d.tall - 11, "F", SOFT, 12)
    d.text(190, d.tall - 28, "reader: gru or lstm", SOFT, 13)
    d.text(575, d.tall - 28, "writer: the code enters at every step", SOFT, 13)
    d.save()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    one_layer(
        "pca",
        "PCA: input, code, reconstruction, with the same orthonormal components both ways",
        "− mean, · Cᵀ",
        "· C, + mean",
        "one C",
    )
    one_layer(
        "linear",
        "A linear autoencoder: input, code, reconstruction, with two matrices trained by gradient",
        "W_enc",
        "W_dec",
        "",
    )
    for draw in (
        sae,
        kmeans,
        dense,
        tied,
        pretraining,
        denoising,
        contractive,
        sparse,
        conv,
        unet,
        recurrent,
        vae,
    ):
        draw()


if __name__ == "__main__":
    main()

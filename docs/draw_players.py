"""The pictures of adversarial models in docs/models.md: `python docs/draw_players.py` writes
docs/img/model-gan.svg, model-cgan.svg, model-dcgan.svg and model-aae.svg, in the signs of
draw_shapes.py. What the discriminator sees and says is red."""

from __future__ import annotations

from draw_shapes import BAR, CODE_EDGE, EDGE, LINE, MIDDLE, NOISE, SOFT, Drawing, height, stack

TALL = 262
GENERATOR, OPPONENT = (60, 290), (430, 660)  # left edges of the first and the last bar


def players(name: str, about: str, down: list[int], up: list[int], inner: str) -> Drawing:
    """A generator of layers `down` from its code, and a discriminator of layers `up` to one number;
    training rows come in from above."""
    d = Drawing(name, about, TALL)
    layers(d, down, *GENERATOR, ["z", *[inner] * (len(down) - 2), "G(z)"])
    layers(d, up, *OPPONENT, ["row", *[inner] * (len(up) - 2), "d"])
    first, code = OPPONENT[0] + BAR / 2, GENERATOR[0] + BAR / 2
    d.arrow(GENERATOR[1] + BAR + 4, MIDDLE, OPPONENT[0] - 5, MIDDLE, EDGE)
    d.text((GENERATOR[1] + OPPONENT[0] + BAR) / 2, MIDDLE - 10, "generated", EDGE, 13)
    d.arrow(first, 26, first, MIDDLE - height(up[0]) / 2 - 4, NOISE)
    d.text(first, 20, "or a training row x", NOISE, 13)
    d.arrow(code, 50, code, MIDDLE - height(down[0]) / 2 - 4, CODE_EDGE)
    d.text(code, 44, "N(0, I)", CODE_EDGE, 13)
    return d


def layers(d: Drawing, widths: list[int], left: float, right: float, names: list[str]) -> None:
    """Evenly spaced bars; the code is orange."""
    xs = [left + i * (right - left) / (len(widths) - 1) for i in range(len(widths))]
    subs = {"z": f"F = {widths[0]}", "d": "real?"}
    for i, (x, width, name) in enumerate(zip(xs, widths, names)):
        d.bar(x, width, name, subs.get(name, str(width)), name == "z")
        if i:
            d.wedge(xs[i - 1] + BAR, height(widths[i - 1]), x, height(width))


def gan() -> None:
    about = "A GAN: noise becomes a row, a second network says whether a row is real or generated"
    players("gan", about, [30, 256, 784], [784, 256, 1], "hidden").save()


def dcgan() -> None:
    about = "A DCGAN: transposed convolutions from noise to an image, strided ones to one number"
    # 7x7 maps of 64 channels, 14x14 of 32
    sizes = [3136, 6272]
    d = players("dcgan", about, [30, *sizes, 784], [784, *sizes[::-1], 1], "maps")
    d.text(sum(GENERATOR) / 2 + BAR, 14, "7x7, 64 maps; 14x14, 32 maps", SOFT, 12)
    d.save()


def cgan() -> None:
    about = "A conditional GAN: generator and discriminator both read the class"
    d = players("cgan", about, [30, 256, 784], [784, 256, 1], "hidden")
    bottom = MIDDLE + height(784) / 2 + 22
    left, right = GENERATOR[0] + BAR + 47, sum(OPPONENT) / 2 - 47
    for x in (left, right):
        d.arrow(x, bottom, x, MIDDLE + 24, NOISE)
    d.path(f"M{left:.0f} {bottom:.0f}H{right:.0f}", NOISE, arrow="")
    d.text((left + right) / 2, bottom - 5, "class y", NOISE, 13)
    d.save()


def aae() -> None:
    about = "An adversarial autoencoder: a discriminator compares codes with draws from a prior"
    d = Drawing("aae", about, TALL)
    xs = stack(d, [784, 512, 256, 30, 256, 512, 784], 3)
    x = xs[3] + BAR / 2
    d.arrow(x, MIDDLE - height(30) / 2 - 4, x, 48, NOISE)
    d.box(x - 62, 14, 124, 30, "#ffffff", NOISE)
    d.text(x, 34, "discriminator", NOISE, 13)
    d.text(x + 222, 34, "draws from N(0, I)", CODE_EDGE, 13)
    d.arrow(x + 150, 29, x + 68, 29, CODE_EDGE)
    d.text(x - 74, 34, "code or draw?", NOISE, 13, "end")
    y = MIDDLE + height(784) / 2 + 8
    ends = f"M{xs[0] + BAR / 2:.0f} {y - 6:.0f}V{y + 8:.0f}H{xs[-1] + BAR / 2:.0f}V{y - 6:.0f}"
    d.path(ends, LINE, dashed=True, arrow="both")
    d.text(x, y + 4, "reconstruction", SOFT, 12)
    d.save()


if __name__ == "__main__":
    for draw in (gan, dcgan, cgan, aae):
        draw()

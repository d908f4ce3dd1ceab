"""Feature visualization: pictures made from noise that raise a score (Olah, Mordvintsev and
Schubert 2017, distill.pub/2017/feature-visualization).

    maximize  E over views [ score(view(x)) - tv TV(x) ]  by Adam,   x = sigmoid(color(F^-1 s))

- frequencies: s are Fourier coefficients, divided by their frequency, so that a step changes all
  scales alike; without that, gradients write high frequencies that no picture has;
- color: channels of a picture go together, so the coefficients of RGB are those of decorrelated
  colors (the square root of the covariance of natural pictures, as in the authors' Lucid);
- views: the picture is moved by up to `jitter` pixels at each step, so that it cannot fit the grid
  of patches;
- TV: total variation, the mean |difference| of neighboring pixels; it removes speckles.

Shapes: N pictures, C channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from saekit.attacks.gradients import Score, input_gradient
from saekit.errors import NumericsError, UsageError, opt
from saekit.types import Progress

# square root of the covariance of ImageNet's colors, as published with Lucid
COLOR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
START = 0.01
"""Standard deviation of the coefficients at the start: a nearly gray picture."""


@dataclass(frozen=True)
class VisualizeConfig:
    """How a picture is made. Raises UsageError."""

    steps: int = 256
    lr: float = 0.05
    """Learning rate of Adam."""
    jitter: int = 4
    """Pixels by which the picture is moved at each step, at most."""
    tv: float = 50.0
    """Weight of the total variation."""
    fourier: bool = True
    """Optimize frequencies; otherwise pixels."""

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("jitter", 0), ("tv", 0.0)):
            if not lowest <= getattr(self, name) < float("inf"):
                raise UsageError(f"{opt(name, getattr(self, name))} must be at least {lowest}")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"{opt('lr', self.lr)} must be above 0")


class Canvas(nn.Module):
    """Pictures (N,C,h,w) in (0,1) by their Fourier coefficients, or by pixels before the
    sigmoid."""

    def __init__(
        self, shape: tuple[int, int, int, int], fourier: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        N, C, h, w = shape
        self.size, self.fourier = (h, w), fourier
        columns = (w // 2 + 1, 2) if fourier else (w,)
        start = START * torch.randn(N, C, h, *columns, generator=generator)
        self.values = nn.Parameter(start if fourier else 10 * start)
        frequency = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None])
        self.scale = nn.Buffer((h * w) ** 0.5 / frequency.clamp_min(1 / max(h, w)))
        color = torch.tensor(COLOR)
        self.color = nn.Buffer(color / color.norm(dim=0).amax() if C == 3 else torch.eye(C))

    def forward(self) -> torch.Tensor:
        if self.fourier:
            spectrum = torch.view_as_complex(self.values) * self.scale
            values = torch.fft.irfft2(spectrum, s=self.size)
        else:
            values = self.values
        return torch.einsum("nchw,dc->ndhw", values, self.color).sigmoid()


@dataclass(frozen=True)
class Visualized:
    """x (N,C,h,w) in [0,1]: the best picture of each start, judged without jitter."""

    x: torch.Tensor
    scores: torch.Tensor
    """(N,)."""
    curve: list[float]
    """The largest score after each step."""


def visualize(
    score: Score,
    shape: tuple[int, int, int],
    config: VisualizeConfig,
    count: int = 1,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Visualized:
    """`count` pictures (C,h,w), each from a noise of its own. Raises NumericsError."""
    generator = torch.Generator().manual_seed(seed)
    canvas = Canvas((count, *shape), config.fourier, generator)
    optimizer = torch.optim.Adam(canvas.parameters(), lr=config.lr)
    with torch.no_grad():
        best = canvas()
        best_N = score(best)
    curve: list[float] = []
    for step in range(config.steps):
        progress(Progress("visualize", step, config.steps, "steps"))
        ascend(canvas, score, config, optimizer, generator)
        with torch.no_grad():
            x = canvas()
            score_N = score(x)
        if not torch.isfinite(score_N).all():
            raise NumericsError("the picture has a score of NaN or infinity", opt("lr", 0.01))
        better_N = score_N > best_N
        best_N = torch.where(better_N, score_N, best_N)
        best = torch.where(better_N[:, None, None, None], x, best)
        curve.append(float(best_N.max()))
    progress(Progress("visualize", config.steps, config.steps, "steps"))
    return Visualized(best, best_N, curve)


def ascend(
    canvas: Canvas,
    score: Score,
    config: VisualizeConfig,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """One step on a moved picture."""
    shift = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=generator).tolist()

    def objective(x: torch.Tensor) -> torch.Tensor:
        return score(x.roll(shift, (2, 3))) - config.tv * total_variation(x)

    with torch.enable_grad():
        x = canvas()
        _, gradient = input_gradient(objective, x)
        optimizer.zero_grad()
        x.backward(-gradient)
        optimizer.step()


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """(N,): mean |difference| of neighboring pixels, down and across."""
    down, across = x.diff(dim=2).abs(), x.diff(dim=3).abs()
    return down.flatten(1).mean(1) + across.flatten(1).mean(1)

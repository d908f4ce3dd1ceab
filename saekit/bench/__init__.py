"""How fast this machine is. Every claim is a ratio of implementations that were interleaved in one
run; times are medians, with the 20th and 80th percentile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from saekit.errors import UsageError, check_choice, opt

if TYPE_CHECKING:
    import torch

    from saekit.bench.timing import Measurement

SUITES = ("kernels", "train")


def run_suite(
    suite: str,
    shapes: list[str],
    k: int,
    against: list[str],
    quick: bool,
    device: torch.device,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """The measurements of `saekit bench kernels|train`.

    Raises UsageError, MissingError for a peer that is not installed.
    """
    check_choice("suite", suite, SUITES)
    from saekit.bench.kernels import bench_kernels
    from saekit.bench.peers import STEPS, check_peers
    from saekit.bench.shapes import parse_shapes
    from saekit.bench.train import bench_train

    chosen, peers = parse_shapes(shapes) or None, check_peers(against, STEPS)
    if k < 1 or any(k > shape.F for shape in chosen or []):
        raise UsageError(f"{opt('k', k)} must be between 1 and the number of latents")
    if suite == "train":
        return bench_train(chosen, k, peers, quick, device, progress)
    if peers:
        raise UsageError(f"{opt('against', peers[0])} applies to bench train")
    return bench_kernels(chosen, k, quick, device, progress)

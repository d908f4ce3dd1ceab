"""How fast this machine is. Every claim is a ratio of implementations that were interleaved in one
run; times are medians, with the 20th and 80th percentile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saekit.errors import UsageError, check_choice, opt

if TYPE_CHECKING:
    import torch

    from saekit.bench.timing import Measurement, Timer

    Cases = list[tuple[str, Callable[[], Iterator[Measurement]]]]  # name, what measures it

SUITES = ("kernels", "train")
ALL = "all"
ROUNDS = {("cpu", True): 3, ("cpu", False): 7, ("cuda", True): 10, ("cuda", False): 30}


@dataclass(frozen=True)
class Asked:
    """What `saekit bench` is asked for."""

    suite: str  # kernels | train
    shapes: tuple[str, ...] = ()  # DxFxB; (): those of the suite
    k: int = 32
    variants: tuple[str, ...] = ()
    """For train: these, each beside topk and its own dense step; ("all",): every variant."""
    against: tuple[str, ...] = ()
    quick: bool = False
    seconds: float | None = None
    """No case starts later than that."""
    cpu_time: bool = False
    """Count the CPU time of the process, not the time that passes."""


def run_suite(
    asked: Asked, device: torch.device, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Measurement]:
    """The measurements of `saekit bench kernels|train`, each when it is made.

    Raises UsageError, MissingError for a peer that is not installed.
    """
    check_choice("suite", asked.suite, SUITES)
    from saekit_kernels import keep_freed_memory

    from saekit.bench.timing import Timer

    clock = time.process_time if asked.cpu_time else time.perf_counter
    timer = Timer(device, ROUNDS["cuda" if device.type == "cuda" else "cpu", asked.quick], clock)
    cases = _cases(asked, timer)
    keep_freed_memory()
    return _until(cases, asked.seconds, progress)


def _cases(asked: Asked, timer: Timer) -> Cases:
    """In the order in which they run. Raises UsageError, MissingError."""
    from saekit.bench.kernels import kernel_cases
    from saekit.bench.peers import STEPS, check_peers
    from saekit.bench.shapes import parse_shapes
    from saekit.bench.train import bench_beside_topk, bench_step, cases_of, variant_cases

    shapes = parse_shapes(asked.shapes) or None
    peers, variants = check_peers(asked.against, STEPS), _variants(asked.variants)
    if asked.k < 1 or any(asked.k > shape.F for shape in shapes or []):
        raise UsageError(f"{opt('k', asked.k)} must be between 1 and the number of latents")
    for name, given in (("against", peers), ("variants", variants)):
        if given and asked.suite != "train":
            raise UsageError(f"{opt(name, given[0])} applies to bench train")
    if variants and peers:
        raise UsageError(f"{opt('variants')} and {opt('against')}: ask for one of them")
    kind = timer.device.type
    if asked.suite == "kernels":
        return kernel_cases(timer, shapes, asked.k, asked.quick)
    if variants:
        return [
            (str(case), lambda case=case: bench_beside_topk(case, timer))
            for case in variant_cases(variants, shapes, asked.k, kind)
        ]

    # compiling takes a minute or two per case
    def compiles(sparsity: str) -> bool:
        return kind == "cuda" and (sparsity == "topk" or not asked.quick)

    return [
        (str(case), lambda case=case: bench_step(case, timer, peers, compiles(case.sparsity)))
        for case in cases_of(shapes, asked.k, asked.quick, kind)
    ]


def _variants(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for a name that is not a variant."""
    from saekit.models.sparsity import VARIANTS

    if ALL in names:
        return tuple(VARIANTS)
    for name in names:
        check_choice("variants", name, [ALL, *VARIANTS])
    return names


def _until(
    cases: Cases, seconds: float | None, progress: Callable[[str], None]
) -> Iterator[Measurement]:
    """Case by case, as long as there is time."""
    began = time.monotonic()
    for at, (name, case) in enumerate(cases):
        if seconds is not None and time.monotonic() - began > seconds:
            left = ", ".join(name for name, _ in cases[at:])
            progress(f"{seconds:g} seconds are over; not measured: {left}")
            return
        progress(name)
        yield from case()

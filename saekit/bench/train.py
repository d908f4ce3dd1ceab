"""`saekit bench train`: whole training steps (loss, gradients, projection, Adam, unit norm; no
loading), saekit against dense torch.

`dense` is plain torch (saekit.bench.reference: autograd, fused Adam, unit norm), on a GPU in bf16
autocast and also compiled; `floor` is the encoder product and fused Adam on both weight matrices;
`saekit` is the step of `saekit train`, and `saekit fp32` the same without the bf16 filter where
that is the default. Peers run on request, where they are installed. Given variants are each
measured beside topk and beside their own dense step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from saekit_kernels import (
    encoder_plan,
    relu_reconstruction,
    resolve_backend,
    topk_reconstruction,
)

from saekit.bench.memory import peak_mb
from saekit.bench.shapes import ON_CPU, ON_GPU, Shape, hidden_rows, sae_for
from saekit.bench.steps import Arm, batch_of, dense_step, floor_step, peer_step, saekit_step
from saekit.bench.timing import Measurement, Timer, version_of
from saekit.models.sae import SAE
from saekit.models.sparsity.penalised import L1
from saekit.models.sparsity.topk import TopK
from saekit.types import LossTerms

STATES = 5  # of the size of the weights that an arm holds: weights, gradients, moments, a bf16 copy
SMALL = [Shape(64, 512, 1024), Shape(64, 2048, 4096), Shape(384, 768, 1024), Shape(384, 3072, 1024)]


Arms = dict[str, Callable[[], Arm]]  # name -> what builds it


class Case(NamedTuple):
    sparsity: str
    shape: Shape
    active: float  # k, or L0

    def __str__(self) -> str:
        return f"{self.sparsity} {self.shape}, {self.active:g} active"


def cases_of(shapes: list[Shape] | None, k: int, quick: bool, device_type: str) -> list[Case]:
    """TopK, L1 and KL at the given shapes; by default one shape and small widths on a CPU, a grid
    of shapes, batches, k and L0 on a GPU."""
    on_gpu = device_type == "cuda"
    several_l0 = (32.0, 64.0, 128.0, 256.0) if on_gpu and not quick else (64.0,)
    chosen, cases = shapes or (ON_GPU[:1] if on_gpu and quick else ON_GPU if on_gpu else ON_CPU), []
    for shape in chosen:
        cases += [
            Case("topk", shape, k),
            *(Case("l1", shape, l0) for l0 in several_l0),
            Case("kl-sigmoid", shape, k),
        ]
    if shapes is not None or (on_gpu and quick):
        return cases
    if on_gpu:
        cases += [Case("topk", shape, other) for shape in chosen for other in (64, 256)]
        return cases + [
            Case("topk", shape._replace(B=B), k) for shape in chosen for B in (4096, 32768)
        ]
    return cases + [Case("topk", shape, k) for shape in SMALL]


def variant_cases(
    names: tuple[str, ...], shapes: list[Shape] | None, k: int, device_type: str
) -> list[Case]:
    """Each variant at the given shapes, or at the first of the default ones."""
    chosen = shapes or (ON_GPU[:1] if device_type == "cuda" else ON_CPU)
    return [Case(name, shape, k) for shape in chosen for name in names]


def bench_step(
    case: Case, timer: Timer, against: tuple[str, ...] = (), compiled: bool = False
) -> Iterator[Measurement]:
    """All implementations of a case's step."""
    x = hidden_rows(case.shape.B, case.shape.D).to(timer.device)
    model, batch = sae_for(case.shape, x, case.sparsity, case.active), batch_of(x)
    backend = resolve_backend("auto", timer.device.type).name
    # What runs: the others are compared with the first two.
    arms: Arms = {
        "dense": partial(dense_step, model, batch),
        "floor": partial(floor_step, model, batch),
        "saekit": partial(saekit_step, model, batch, backend),
    }
    if encoder_plan(x, model.W_enc) == "filter" and _filters(model):
        arms["saekit fp32"] = partial(saekit_step, model, batch, backend, "gemm")
    if compiled:
        arms["dense compiled"] = partial(dense_step, model, batch, compiled=True)
    for peer in against if case.sparsity == "topk" else ():
        arms[peer] = partial(peer_step, peer, model, batch)
    # Results.
    path = _path(model, x)
    results = _measured(case, arms, timer, model)
    dense, floor = results["dense"].ms, results["floor"].ms
    for name, row in results.items():
        row.ratio, row.of_floor = round(dense / row.ms, 2), round(row.ms / floor, 2)
        if name.startswith("saekit"):
            row.backend = backend
            row.note = "; ".join(filter(None, (row.note, path if backend == "torch" else "")))
        elif name in against:
            row.note = version_of(name)
        yield row


def bench_beside_topk(case: Case, timer: Timer) -> Iterator[Measurement]:
    """A variant's step and its dense step, in turn with the step of topk."""
    x = hidden_rows(case.shape.B, case.shape.D).to(timer.device)
    model, batch = sae_for(case.shape, x, case.sparsity, case.active), batch_of(x)
    backend = resolve_backend("auto", timer.device.type).name
    arms: Arms = {
        "saekit": partial(saekit_step, model, batch, backend),
        "dense": partial(dense_step, model, batch),
    }
    if case.sparsity != "topk":
        topk = sae_for(case.shape, x, "topk", case.active)
        arms["topk"] = partial(saekit_step, topk, batch, backend)
    results = _measured(case, arms, timer, model)
    topk_ms = results.pop("topk", results["saekit"]).ms
    for row in results.values():
        row.backend = backend if row.mode == "saekit" else "torch"
        row.ratio = round(results["dense"].ms / row.ms, 2)
        row.ratio_topk = round(row.ms / topk_ms, 2)
        yield row


def _measured(case: Case, arms: Arms, timer: Timer, model: SAE) -> dict[str, Measurement]:
    """Times of all arms and, arm by arm, the peak of memory. All are in memory at once where they
    fit, and take turns; else one is built after the other."""
    fits = timer.fits(len(arms) * STATES * sum(p.nbytes for p in model.parameters()))
    groups = [list(arms)] if fits else [[name] for name in arms]
    results = {}
    for names in groups:
        built = {name: arms[name]() for name in names}
        timings = timer(built, 5 if case.shape in SMALL else 1)
        for name, ms in timings.items():
            results[name] = row = Measurement(
                f"{case.sparsity}_step", name, "torch", str(case.shape), "float32", *ms
            )
            row.rows_per_s = round(1e3 * case.shape.B / ms[0])
            row.k = getattr(model.config, "k", None)
            row.note = "" if fits else "not interleaved"
            arm = built.pop(name)
            if isinstance(terms := arm.last, LossTerms) and terms.fired is not None:
                row.l0 = round(float(terms.fired.sum()) / case.shape.B, 1)
            arm.drop_buffers()
            row.peak_mb = peak_mb(arm, timer.device)
    return results


def _filters(model: SAE) -> bool:
    """Whether the encoder of its step has a plan with the bf16 filter."""
    return isinstance(model, TopK | L1)


def _path(model: SAE, x: torch.Tensor) -> str:
    """The path that the torch backend takes, where it has two."""
    with torch.no_grad():
        if isinstance(model, TopK):
            return f"{topk_reconstruction(x, *model.weights, model.config.k).path} path"
        if isinstance(model, L1):
            return f"{relu_reconstruction(x, *model.weights, 0.0).path} path"
    return ""

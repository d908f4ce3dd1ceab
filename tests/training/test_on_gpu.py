"""Training on a CUDA device, end to end, on rows of which one in forty is long: like those of
language models."""

from __future__ import annotations

import json
import warnings
from functools import partial

import pytest
import torch
from made_language import made_language
from made_runs import break_off, equal, tensors
from made_stores import write_store
from saekit_kernels.cost import topk_step_floor_ms
from saekit_kernels.gpu.encode import encode_topk, plan_of

import saekit
import saekit.intervention.finetune as finetuning
from saekit.bench import Asked, run_suite
from saekit.bench.memory import peak_mb
from saekit.bench.shapes import Shape, hidden_rows, sae_for
from saekit.bench.steps import batch_of, dense_step, saekit_step
from saekit.bench.timing import Timer
from saekit.intervention.objective import take_step
from saekit.models.sparsity import VARIANTS
from saekit.training.config import TrainConfig
from saekit.training.loop import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
SHAPE = Shape(256, 4096, 2048)
REFERENCE = Shape(768, 24_576, 8192)
ENCODED = [REFERENCE, Shape(2304, 73_728, 8192), Shape(4096, 131_072, 8192)]
K, ROUNDS = 32, 20
STEPS = 48
SETTINGS = {
    "latents": SHAPE.F,
    "batch": SHAPE.B,
    "rows": STEPS * SHAPE.B,
    "device": str(CUDA),
    "backend": "triton" if CUDA.type == "cuda" else "torch",
}


@pytest.fixture(scope="module")
def rows():
    return hidden_rows(8 * SHAPE.B, SHAPE.D)


def active(sparsity):
    takes_k = hasattr(VARIANTS[sparsity].config_class, "k")
    return {"k": 8} if takes_k else {"target_l0": 8.0}


def figures(sparsity, rows, **settings):
    options = active(sparsity) | SETTINGS | settings
    return saekit.train(rows, sparsity=sparsity, **options).metrics


@pytest.mark.parametrize("sparsity", VARIANTS)
def test_every_variant_trains_on_rows_of_which_some_are_long(sparsity, rows):
    """The torch path on the same device takes the same run to the same error."""
    if VARIANTS[sparsity].needs_previous:
        rows = rows.view(-1, 64, SHAPE.D)
    ours, torchs = (figures(sparsity, rows, backend=b) for b in (SETTINGS["backend"], "torch"))
    assert ours["fvu"] == pytest.approx(torchs["fvu"], rel=0.02) and ours["fvu"] < 1
    assert ours["l0"] == pytest.approx(torchs["l0"], rel=0.1)


def test_a_penalty_trains_through_the_switch_from_dense_to_sparse(rows):
    """L0 begins at half of all latents and ends far below the crossover."""
    metrics = figures("l1", rows, start_l0=SHAPE.F / 2)
    assert metrics["fvu"] < 1 and metrics["l0"] < SHAPE.F / 8


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "matryoshka", "l1", "kl-rates"])
def test_a_run_gives_the_same_bits_twice_and_when_it_is_resumed(sparsity, tmp_path):
    store = write_store(tmp_path / "store", 8000)
    settings = SETTINGS | {"latents": 512, "batch": 256, "rows": 40 * 256, "sparsity": sparsity}
    settings |= active(sparsity)
    for name in ("once", "twice"):
        saekit.train(store, tmp_path / name, **settings)
    break_off(store, tmp_path / "resumed", TrainConfig().with_options(settings), 17)
    saekit.train(store, tmp_path / "resumed", resume=True, **settings)
    once, twice, resumed = (tensors(tmp_path / name) for name in ("once", "twice", "resumed"))
    assert equal(once, twice) and equal(once, resumed)


# topk never waits; the shapes after other encoders depend on the number of entries, which is read
# back once (saekit_kernels/gpu/encode.py)
@pytest.mark.parametrize(
    ("sparsity", "waits"), [("topk", 0), ("batchtopk", 1), ("l1", 1), ("jumprelu", 1), ("gated", 1)]
)
def test_a_step_waits_for_the_device_at_most_once(sparsity, waits):
    x = hidden_rows(SHAPE.B, SHAPE.D).to(CUDA)
    step = saekit_step(sae_for(SHAPE, x, sparsity, 8), batch_of(x), SETTINGS["backend"])
    for _ in range(3):  # compiles; batchtopk's next guess is close
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == waits


def test_no_step_of_a_run_waits_for_the_device_between_polls(rows, monkeypatch):
    ordinary, watched = Trainer.train_step, []

    def strict(self, raw):
        self.poll_every = 8
        if self.step == 0 or (self.step + 1) % self.poll_every == 0:  # compiles, or polls
            return ordinary(self, raw)
        watched.append(self.step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return ordinary(self, raw)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_step", strict)
    figures("topk", rows)
    assert len(watched) > STEPS / 2


def test_a_hundred_steps_end_where_the_dense_step_in_bfloat16_ends():
    x = hidden_rows(SHAPE.B, SHAPE.D).to(CUDA)
    model = sae_for(SHAPE, x, "topk", 8)
    ours, dense = (
        saekit_step(model, batch_of(x), SETTINGS["backend"]),
        dense_step(model, batch_of(x)),
    )
    for _ in range(100):
        ours(), dense()
    variance = (x - x.mean(0)).square().sum(1).mean()
    ours, dense = (arm.last.terms["reconstruction"].detach() / variance for arm in (ours, dense))
    assert abs(float(ours) - float(dense)) < 0.002


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device_trains_the_same_model(rows):
    first, second = (figures("topk", rows, device=f"cuda:{n}") for n in (0, 1))
    assert first["fvu"] == second["fvu"]


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "jumprelu", "l1"])
def test_a_step_holds_no_matrix_of_all_pre_activations(sparsity):
    """Gradients of both weight matrices, and a few chunks."""
    shape = Shape(256, 65_536, 8192)  # 2.1 GB of pre-activations in fp32, weights of 67 MB each
    x = hidden_rows(shape.B, shape.D).to(CUDA)
    step = saekit_step(sae_for(shape, x, sparsity, 16), batch_of(x), SETTINGS["backend"])
    step()
    step.drop_buffers()
    assert peak_mb(step, CUDA) < 4 * shape.B * shape.F / 1e6


def test_benches_fit_a_time_limit_and_say_what_they_left_out(tmp_path):
    said = []
    asked = Asked(
        "train", shapes=(str(SHAPE),), k=8, variants=("topk", "l1"), quick=True, seconds=0
    )
    measured = list(run_suite(asked, CUDA, said.append))
    assert len(measured) in (0, 2) and (not measured or "not measured" in said[-1])
    assert all(row.ms > 0 and row.peak_mb for row in measured)


def test_a_step_is_not_far_from_its_model():
    """Neither from the measured floor nor, on a device whose rates are known, from the cost model
    (docs/notes/gpu.md, "Guards of speed")."""
    asked = Asked("train", shapes=(str(REFERENCE),), k=K, quick=True)
    rows = {row.mode: row for row in run_suite(asked, CUDA) if row.op == "topk_step"}
    times, ours = json.dumps({name: row.ms for name, row in rows.items()}), rows["saekit"]
    assert ours.ratio > 1.5 and ours.of_floor < 4, times
    D, F, B = REFERENCE
    modeled = topk_step_floor_ms(B, D, F, K, torch.cuda.get_device_name())
    assert modeled is None or ours.ms <= 1.5 * modeled, times


@pytest.mark.parametrize("shape", ENCODED, ids=str)
def test_the_encoder_takes_little_more_than_the_product_of_the_vendor(shape):
    """Of the plans the faster one is chosen, too: else FUSED_UP_TO_D or filter.LAUNCH is wrong
    (docs/notes/gpu.md, "Guards of speed")."""
    D, F, B = shape
    x, b = hidden_rows(B, D).to(CUDA, torch.bfloat16), torch.zeros(F, device=CUDA)
    W = (torch.randn(F, D, device=CUDA) * D**-0.5).bfloat16()
    pre = torch.empty(B, F, device=CUDA, dtype=torch.bfloat16)
    calls = {"product": lambda: torch.mm(x, W.T, out=pre)}
    for plan in ("fused", "gemm"):
        calls[plan] = partial(encode_topk, x, W, b, K, plan)
    ms = {name: median for name, (median, *_) in Timer(CUDA, ROUNDS)(calls).items()}
    chosen = ms[plan_of("auto", x, W)]
    assert chosen <= 1.6 * ms["product"], ms
    assert chosen <= 1.1 * min(ms["fused"], ms["gemm"]), ms


def test_a_store_is_harvested_and_swept(tmp_path):
    store = tmp_path / "store"
    saekit.harvest(
        "embedded:smollm2-135m", ["the cat sat on the mat. " * 20] * 8, store, hook="blocks.3",
        device=str(CUDA), rows=600, ctx=64,
    )  # fmt: skip
    swept = saekit.sweep(
        store, tmp_path / "sweep", {"k": [4, 8], "latents": [64], "rows": [4096], "batch": [256]},
        device=str(CUDA),
    )  # fmt: skip
    assert len(swept.members) == 2 and all(member.metrics for member in swept.members)


def test_a_checkpoint_is_finetuned_as_on_a_cpu(tmp_path, monkeypatch):
    """The figures are those of the CPU, the divergence falls, and a killed run is resumed."""
    made, settings = made_language(tmp_path), {"rows": 4000, "lr": 3e-3, "save_seconds": 0.0}
    cpu = saekit.finetune(made.run, tmp_path / "cpu", device="cpu", **settings)
    whole = saekit.finetune(made.run, tmp_path / "whole", device=str(CUDA), **settings)
    steps = []

    def killed(*arguments):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(take_step(*arguments))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(finetuning, "take_step", killed)
        saekit.finetune(made.run, tmp_path / "resumed", device=str(CUDA), **settings)
    resumed = saekit.finetune(
        made.run, tmp_path / "resumed", device=str(CUDA), resume=True, **settings
    )
    assert whole.before == pytest.approx(cpu.before, rel=1e-3)
    assert whole.after["kl"] < 0.9 * whole.before["kl"]
    for result in (whole, resumed):
        assert result.steps == cpu.steps and result.rows == cpu.rows
        assert result.after == pytest.approx(cpu.after, rel=0.02)
        written = saekit.evaluate(result.path, made.store, device="cpu")[0].metrics
        recorded = json.loads((tmp_path / result.path / "config.json").read_text())
        assert recorded["result"]["metrics"]["fvu"] == pytest.approx(written["fvu"], rel=1e-3)

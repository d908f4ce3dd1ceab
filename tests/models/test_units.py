"""Constants are in units of the data's own variance; what a run logs and resamples is the model's
own."""

from __future__ import annotations

import json

import pytest
import torch
from made_stores import make_rows, make_spec, write_store

import saekit
from saekit.errors import SaekitError
from saekit.models.catalog import build
from saekit.models.metrics import RowSums
from saekit.models.sparsity.penalised import SMALLEST
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter
from saekit.training.optim import make_adam, reset_moments
from saekit.types import ActivationBatch, Step

D = 16


def batch_of(x: torch.Tensor) -> ActivationBatch:
    numbers = torch.arange(len(x))
    return ActivationBatch(x, numbers, numbers, numbers.int(), rows=numbers)


def store_of(path, x: torch.Tensor, **spec):
    writer = StoreWriter(
        path,
        make_spec(dtype="float32", d_in=x.shape[1], **spec),
        {"rows": len(x)},
        shard_bytes=1 << 20,
    )
    n = torch.arange(len(x))
    examples = [
        StoredExample(i, i // 8, i, 1, [i], f"document {i // 8}", None) for i in range(len(x))
    ]
    writer.append(RowBlock(x, n // 8, n, n.int() % 8, examples))
    writer.finish()
    return path


def made(sparsity: str, x: torch.Tensor, scale: float, **options):
    """An SAE for `scale` times the rows, whose weights are those for the rows themselves, expressed
    in the larger units."""
    sae = build("sae", D, {"sparsity": sparsity, "latents": 48, **options}).double()
    sae.initialise_from(x, torch.Generator().manual_seed(2))
    sae = sae.double()
    with torch.no_grad():
        for name in ("b_enc", "b_dec", "slow_theta", "b_mag"):
            if hasattr(sae, name):
                getattr(sae, name).mul_(scale)
        if sae.thresholded:
            sae.threshold.mul_(scale)
    variance = float((scale * (x - x.mean(0))).square().sum(1).mean())
    sae.start_at(scale * x.mean(0), variance, scale * x, scale * x)
    return sae


@pytest.mark.parametrize(
    "sparsity",
    ["l1", "tanh", "log", "p-anneal", "gated", "jumprelu", "kl-rates", "topk", "matryoshka-topk"],
)
@pytest.mark.parametrize("step", [20, 90])
def test_rows_of_another_scale_have_the_same_loss_in_units_of_their_variance(sparsity, step):
    x, scale = make_rows(400, D).double(), 37.0
    options = (
        {"k": 4} if "topk" in sparsity else {"freq_coef": 0.3} if sparsity == "jumprelu" else {}
    )
    small, large = made(sparsity, x, 1.0, **options), made(sparsity, x, scale, **options)
    at = Step(step, 100, dead=torch.arange(5, 17))
    expected, found = small.loss(batch_of(x), at), large.loss(batch_of(scale * x), at)
    # The first biases lie on one of the sample's values, which rounding puts on this side of 0 or
    # on that: one firing of a row.
    torch.testing.assert_close(
        found.total / scale**2,
        expected.total,
        rtol=1e-3 if sparsity == "kl-rates" else 1e-6,
        atol=0,
    )
    assert expected.terms.keys() == found.terms.keys()


def test_the_auxiliary_loss_weighs_a_32nd_of_the_variance(tmp_path):
    x = torch.rand(2000, D, generator=torch.Generator().manual_seed(0)) * torch.arange(1, D + 1)
    variance = float((x - x.mean(0)).square().sum(1).mean())
    sae = build("sae", D, {"k": 2, "latents": 64, "revive": "aux"})
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    assert sae.loss(batch_of(x[:300]), Step(3, 10, dead=torch.arange(8))).weights[
        "aux"
    ] == pytest.approx(variance / 32, rel=1e-5)


def test_moments_are_reset_by_name_when_there_are_as_many_latents_as_inputs():
    sae = build("sae", D, {"sparsity": "gated", "latents": D})
    sae.initialise_from(make_rows(200, D), torch.Generator().manual_seed(0))
    optimizer = make_adam(sae, 1e-3)
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    reset_moments(optimizer, torch.tensor([1, 6]), sae.latents)
    for name, parameter in sae.named_parameters():
        zero = (
            (optimizer.state[parameter]["exp_avg"].reshape(len(parameter), -1) == 0)
            .all(1)
            .nonzero()[:, 0]
            .tolist()
        )
        assert zero == ([] if name == "b_dec" else [1, 6]), name


@pytest.mark.parametrize(
    "sparsity", ["gated", "matryoshka-topk", "hierarchical", "topk", "jumprelu"]
)
def test_the_logged_fvu_is_that_of_the_models_own_reconstruction(tmp_path, sparsity):
    store = write_store(tmp_path / "acts", 3000)
    options = {"k": 4} if sparsity in ("topk", "hierarchical", "matryoshka-topk") else {"coef": 0.5}
    saekit.train(
        store, tmp_path / "run", sparsity=sparsity, latents=64, rows=256 * 150, batch=256, **options
    )
    lines = [
        json.loads(line)["fvu"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ][-10:]
    true = saekit.evaluate(tmp_path / "run", store, split="train")[0].metrics["fvu"]
    assert sum(lines) / 10 == pytest.approx(true, rel=0.15)


def test_resampling_weighs_rows_by_the_loss_of_the_gated_code():
    x = make_rows(64, D)
    sae = build("sae", D, {"sparsity": "gated", "latents": 40})
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.r_mag += 0.7
        sae.b_mag -= 0.2
        gate = x @ sae.W_enc.T + sae.b_enc
        z = (sae.r_mag.exp() * (gate - sae.b_enc) + sae.b_mag).relu() * (gate > 0)
        torch.testing.assert_close(sae.reconstructed(x, Step()), z @ sae.W_dec + sae.b_dec)


def test_a_silent_latent_near_its_threshold_is_pulled_up_by_kl_rates():
    x = make_rows(256, D)
    sae = build("sae", D, {"sparsity": "kl-rates", "latents": 24, "revive": "none"})
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        highest = (x @ sae.W_enc[3] + sae.b_enc[3]).max()
        sae.b_enc[3] -= highest + 0.05  # silent, its best row inside the window
    terms = sae.loss(batch_of(x), Step(5, 10))
    (gradient,) = torch.autograd.grad(terms.terms["kl"], sae.b_enc)
    assert int(terms.fired[3]) == 0 and gradient[3] < 0


def test_p_annealing_keeps_the_price_of_the_same_codes():
    x = make_rows(300, D)
    sae = build("sae", D, {"sparsity": "p-anneal", "latents": 48, "coef": 1.0})
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    prices = [
        float(sae.loss(batch_of(x), Step(step, 400)).terms["lp"].detach())
        for step in (100, 220, 300, 399)
    ]
    assert prices == pytest.approx([prices[0]] * 4, rel=1e-5)
    power, factor = sae.variant_state().values()
    pre = (x @ sae.W_enc.T + sae.b_enc).relu() / sae.unit
    assert factor == pytest.approx(
        float(pre.sum() / ((pre + SMALLEST) ** power - SMALLEST**power).sum()), rel=1e-4
    )


def test_a_transcoders_bias_starts_at_the_targets_mean(tmp_path):
    x = make_rows(2000, D)
    y = (
        torch.tanh(x @ torch.randn(D, 6, generator=torch.Generator().manual_seed(1)) / 8)
        + torch.arange(6) * 8.0
    )
    store, target = store_of(tmp_path / "x", x), store_of(tmp_path / "y", y, hook="blocks.0.mlp")
    for normalize in ("none", "scale"):
        out = tmp_path / normalize
        result = saekit.train(
            store,
            out,
            sparsity="topk",
            k=4,
            latents=32,
            target_store=str(target),
            normalize=normalize,
            rows=12_800,
            batch=128,
        )
        assert result.metrics["fvu"] < 1
        first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
        assert first["fvu"] < 1.2


def test_archetypal_atoms_of_a_transcoder_are_mixtures_of_the_target(tmp_path):
    x = make_rows(1500, D)
    y = torch.zeros(1500, 9)
    y[:, 5:] = x[:, :4]
    store, target = store_of(tmp_path / "x", x), store_of(tmp_path / "y", y, hook="blocks.0.mlp")
    options = {
        "sparsity": "archetypal",
        "k": 3,
        "latents": 30,
        "archetypes": 64,
        "rows": 30_000,
        "batch": 128,
    }
    result = saekit.train(store, tmp_path / "run", target_store=str(target), **options)
    W_dec = saekit.load(tmp_path / "run").W_dec
    assert (
        W_dec.shape == (30, 9)
        and float(W_dec[:, :5].abs().max()) < 1e-5
        and result.metrics["fvu"] < 0.6
    )


def test_archetypal_latents_are_resampled_to_rows_and_learn_from_the_auxiliary_loss():
    x = make_rows(300, D)
    sae = build("sae", D, {"sparsity": "archetypal", "k": 3, "latents": 30, "archetypes": 50})
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    at = Step(3, 10, dead=torch.tensor([4, 9]))
    sae.loss(batch_of(x), at).total.backward()
    assert sae.mixture.grad[[4, 9]].abs().sum() > 0
    sae.resample(torch.tensor([4, 9]), batch_of(x), torch.Generator().manual_seed(1), at)
    torch.testing.assert_close(sae.W_dec[[4, 9]], sae.decoder()[[4, 9]])
    share = (30.0 * sae.mixture[4]).softmax(0).max()
    assert share > 0.99, "near one row"


def test_figures_are_exact_far_from_the_origin():
    noise = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mean in (0.0, 1e6, 1e8):
        sums = RowSums(None)
        for part in (mean + noise).split(700):
            sums.add(part, part + 0.1, torch.zeros(len(part), 1))
        variance = (noise - noise.mean(0)).square().sum().item()
        assert sums.figures()["fvu"] == pytest.approx(5000 * 8 * 0.01 / variance, rel=1e-6)


def test_raw_values_of_a_large_scale_are_remarked_on(tmp_path):
    said = []
    store = store_of(tmp_path / "big", 300 * make_rows(800, D), model="raw:array")
    saekit.train(
        store,
        tmp_path / "a",
        k=2,
        latents=32,
        rows=400,
        batch=100,
        progress=lambda p: said.append(p.message),
    )
    assert any('normalize="center+scale"' in message for message in said if message)
    said.clear()
    for number, (path, options) in enumerate(
        ((store, {"normalize": "center+scale"}), (store_of(tmp_path / "1", torch.rand(800, D)), {}))
    ):
        settings = {"k": 2, "latents": 32, "rows": 400, "batch": 100, **options}
        saekit.train(
            path, tmp_path / f"b{number}", progress=lambda p: said.append(p.message), **settings
        )
    assert not any("normalize" in message for message in said if message)


def test_a_p_annealed_run_resumes_with_its_factor(tmp_path):
    store = Store(write_store(tmp_path / "acts", 1500))
    settings = {"sparsity": "p-anneal", "latents": 48, "rows": 12_800, "batch": 128}
    saekit.train(store.path, tmp_path / "whole", **settings)

    class Enough(SaekitError):
        pass

    def stop(report):
        if report.done >= 10_000:
            raise Enough("stopped")

    with pytest.raises(Enough):
        saekit.train(store.path, tmp_path / "broken", save_seconds=0.0, progress=stop, **settings)
    saekit.train(store.path, tmp_path / "broken", resume=True, **settings)
    weights = [saekit.load(tmp_path / name).state_dict() for name in ("whole", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

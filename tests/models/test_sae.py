"""Losses, gradients and folding of the sparse autoencoder, against values worked out by hand or in
fp64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from batches import batch_of
from made_stores import make_rows

from saekit.errors import UsageError
from saekit.models.base import geometric_median, remove_parallel_
from saekit.models.catalog import build
from saekit.models.noise import gaussian, step_generator
from saekit.models.normalizer import Normalizer
from saekit.models.sae import SAE
from saekit.models.sae.dead import auxk_loss
from saekit.types import ActivationBatch, Step

D = 16


def make_sae(sparsity="topk", dtype=torch.float64, **options) -> SAE:
    k = {"k": min(8, options.pop("k", 8))} if sparsity == "topk" else {}
    sae = build("sae", D, {"latents": 64, "sparsity": sparsity, **k, **options}).to(dtype)
    x = normalized(512, dtype)
    if dtype == torch.float32:
        sae.initialise_from(x, torch.Generator().manual_seed(0))
    else:
        single = SAE(sae.config)
        single.initialise_from(x.float(), torch.Generator().manual_seed(0))
        sae.load_state_dict(single.state_dict())
    return sae


def normalized(rows, dtype=torch.float64, seed=0):
    x = make_rows(rows, D, seed).to(dtype)
    x = x - x.mean(0)
    return x * (D / x.square().sum(1).mean()).sqrt()


def dense(code):
    return code.to_dense()


def test_the_l1_term_is_the_mean_over_rows_of_the_norm_weighted_sum():
    sae, x = make_sae("l1", decoder_norm="free"), normalized(12)
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2.0, 64, dtype=torch.float64)[:, None]
    z = sae.encode(x)
    expected = (
        sum(z[b, j].item() * sae.W_dec[j].norm().item() for b in range(12) for j in range(64)) / 12
    )
    assert sae.loss(batch_of(x)).terms["l1"].item() == pytest.approx(expected, rel=1e-12)


def test_the_kl_term_by_hand():
    sae, x = make_sae("kl-sigmoid", target_rate=0.1), normalized(9)
    f = torch.sigmoid(x @ sae.W_enc.T + sae.b_enc)
    expected = sum(
        0.1 * math.log(0.1 / m) + 0.9 * math.log(0.9 / (1 - m)) for m in f.mean(0).tolist()
    )
    assert sae.loss(batch_of(x)).terms["kl"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sparsity", ["topk", "l1", "kl-sigmoid"])
def test_the_total_is_the_weighted_sum_of_the_terms(sparsity):
    sae = make_sae(sparsity, **({"revive": "aux"} if sparsity == "topk" else {}))
    terms = sae.loss(batch_of(normalized(64)), Step(50, 100, dead=torch.tensor([3, 9, 11])))
    assert set(terms.terms) == {
        "reconstruction",
        {"topk": "aux", "kl-sigmoid": "kl"}.get(sparsity, sparsity),
    }
    total = sum(terms.terms[name] * terms.weights[name] for name in terms.terms)
    torch.testing.assert_close(terms.total, total, rtol=0, atol=0)


@pytest.mark.parametrize("sparsity", ["topk", "l1", "kl-sigmoid"])
def test_the_reconstruction_term_is_the_mean_squared_norm_of_the_error(sparsity):
    sae, x = make_sae(sparsity), normalized(64)
    x_hat = dense(sae.encode(x)) @ sae.W_dec + sae.b_dec
    expected = sum((row - hat).square().sum().item() for row, hat in zip(x, x_hat)) / len(x)
    assert sae.loss(batch_of(x)).terms["reconstruction"].item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("sparsity", ["l1", "kl-sigmoid"])
def test_gradients_of_the_dense_variants_pass_gradcheck(sparsity):
    sae = make_sae(sparsity, coef=0.7, coef_warmup=0.0, decoder_norm="free")
    x = normalized(5)
    names = [name for name, _ in sae.named_parameters()]

    def total(*values):
        return torch.func.functional_call(
            _Loss(sae), {f"sae.{n}": v for n, v in zip(names, values)}, (x,)
        )

    # A point away from the kinks of the ReLU.
    values = [p.detach().clone().requires_grad_() for p in sae.parameters()]
    assert torch.autograd.gradcheck(total, values, eps=1e-6, atol=1e-5)


class _Loss(torch.nn.Module):
    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, x):
        return self.sae.loss(batch_of(x)).total


def test_the_l1_coefficient_rises_linearly_over_its_share_of_the_run():
    sae = make_sae("l1", coef=4.0, coef_warmup=0.1)
    weights = [
        sae.loss(batch_of(normalized(8)), Step(step, 200)).weights["l1"]
        for step in (0, 9, 19, 20, 150)
    ]
    assert weights == pytest.approx([0.2, 2.0, 4.0, 4.0, 4.0])


def test_the_auxiliary_loss_reaches_the_encoder_of_dead_latents_and_not_the_residual():
    sae = make_sae("topk", revive="aux")
    dead = torch.tensor([5, 17, 40])
    with torch.no_grad():
        sae.b_enc[dead] = -1e3  # silent on every row, deep in the flat part of a ReLU
    x = normalized(64)
    terms = sae.loss(batch_of(x))
    assert terms.fired[dead].max() == 0 and terms.fired.sum() > 0
    terms.total.backward()
    assert sae.W_enc.grad[dead].abs().max() == 0, (
        "the reconstruction term has no gradient for a dead latent"
    )
    sae.zero_grad()
    sae.loss(batch_of(x), Step(dead=dead)).total.backward()
    assert (sae.W_enc.grad[dead].norm(dim=1) > 0).all() and (sae.b_enc.grad[dead] != 0).all()
    assert (sae.W_dec.grad[dead].norm(dim=1) > 0).all()

    alive = torch.ones(64, dtype=torch.bool)
    alive[dead] = False
    with_aux = sae.W_dec.grad[alive].clone(), sae.b_dec.grad.clone()
    sae.zero_grad()
    sae.loss(batch_of(x)).total.backward()
    torch.testing.assert_close(sae.W_dec.grad[alive], with_aux[0])
    torch.testing.assert_close(sae.b_dec.grad, with_aux[1])


def test_the_auxiliary_loss_by_hand():
    sae = make_sae("topk", aux_k=1)
    x, residual, dead = normalized(6), torch.randn(6, D, dtype=torch.float64), torch.tensor([2, 30])
    e = -residual
    e_hat = []
    for row in x:
        pre = [(row @ sae.W_enc[j] + sae.b_enc[j]).item() for j in dead]
        best = int(pre[1] > pre[0])
        e_hat.append(pre[best] * sae.W_dec[dead[best]])
    error = (e - torch.stack(e_hat)).square().sum(1).mean()
    spread = (e - e.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(auxk_loss(sae, x, residual, dead), error / spread)


def test_the_auxiliary_loss_is_one_for_latents_that_explain_nothing():
    sae = make_sae("topk")
    with torch.no_grad():
        sae.W_dec[7] = 0
    x = normalized(200)
    residual = x - x.mean(0)
    assert auxk_loss(sae, x, residual, torch.tensor([7])).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "sparsity,norm",
    [
        ("topk", "unit"),
        ("l1", "unit"),
        ("l1", "free"),
        ("kl-sigmoid", "free"),
        ("kl-sigmoid", "unit"),
    ],
)
def test_a_folded_model_does_on_raw_rows_what_the_trained_one_does_on_normalized_rows(
    sparsity, norm
):
    sae = make_sae(sparsity, decoder_norm=norm)
    raw = make_rows(100, D).double() * 7
    mean, scale = raw.mean(0), 0.03
    folded = SAE(sae.config, folded=True).double()
    folded.load_state_dict(sae.folded(Normalizer(mean, scale)))
    inside, outside = sae((raw - mean) * scale), folded(raw)
    torch.testing.assert_close(outside.x_hat, inside.x_hat / scale + mean)
    homogeneous = sparsity != "kl-sigmoid"
    torch.testing.assert_close(
        dense(outside.code), dense(inside.code) / (scale if homogeneous else 1.0)
    )


@pytest.mark.parametrize("sparsity", ["topk", "l1"])
def test_initialisation(sparsity):
    sae, x = make_sae(sparsity, torch.float32), normalized(512, torch.float32)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(sae.b_dec, geometric_median(x))
    ratio = sae.W_enc.detach().norm(dim=1)
    torch.testing.assert_close(
        sae.W_enc.detach(), ratio[:, None] * sae.W_dec.detach(), rtol=1e-4, atol=1e-6
    )
    error = sae.loss(batch_of(x)).terms["reconstruction"]
    for factor in (0.9, 1.1):
        with torch.no_grad():
            sae.W_enc *= factor
            sae.b_enc *= factor
            worse = sae.loss(batch_of(x)).terms["reconstruction"]
            sae.W_enc /= factor
            sae.b_enc /= factor
        assert worse > error, "the encoder's scale is the best one on the sample"


def test_kl_codes_start_near_the_target_rate():
    sae = make_sae("kl-sigmoid", torch.float32, target_rate=0.05)
    assert 0.05 <= sae.encode(normalized(512, torch.float32)).mean().item() <= 0.1


def test_the_geometric_median_ignores_a_far_row_and_is_stationary():
    x = torch.randn(99, 5, dtype=torch.float64)
    far = torch.cat([x, torch.full((1, 5), 1e4, dtype=torch.float64)])
    median = geometric_median(far, tolerance=1e-12, iterations=2000)
    pull = torch.nn.functional.normalize(far - median, dim=1).sum(0)
    assert pull.norm() < 1e-4
    assert (median - x.mean(0)).norm() < 1 < (far.mean(0) - x.mean(0)).norm()


def test_decoder_rows_stay_unit_and_gradients_tangent():
    W, grad = torch.nn.functional.normalize(torch.randn(9, 4), dim=1), torch.randn(9, 4)
    expected = grad - (grad * W).sum(1, keepdim=True) * W
    remove_parallel_(grad, W)
    torch.testing.assert_close(grad, expected)
    sae = make_sae("topk", torch.float32)
    with torch.no_grad():
        sae.W_dec *= 3
    sae.after_step()
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(64))


def level_by_hand(sae, x, latent):
    """(B,): what the pre-activation of a latent must exceed, from all pre-activations."""
    pre = (x @ sae.W_enc.T + sae.b_enc).detach()
    if sae.sparsity == "topk":
        return pre.relu().topk(8, 1).values[:, -1]
    if sae.sparsity == "abs-topk":
        return pre.abs().topk(sae.config.k, 1).values[:, -1]
    if sae.sparsity == "gated":
        return torch.zeros(len(x))
    return sae.threshold[latent].expand(len(x))


@pytest.mark.parametrize(
    "sparsity", ["topk", "abs-topk", "batchtopk", "matryoshka", "jumprelu", "gated"]
)
def test_a_nudge_closes_a_share_of_the_gap_on_the_rows_where_a_latent_nearly_fires(sparsity):
    options = {} if sparsity in ("topk", "gated") else {"k": 8}
    if sparsity in ("jumprelu", "gated"):
        options = {"target_l0": 8.0}
    sae, x = make_sae(sparsity, torch.float32, **options), normalized(64, torch.float32)
    sae.loss(batch_of(x), Step(90, 100))  # batchtopk has its threshold from a batch
    dead = torch.tensor([6, 50])
    with torch.no_grad():
        sae.b_enc[dead] -= 20
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    expected, share = {}, 0.05 if sparsity == "jumprelu" else 0.1
    for j in dead.tolist():
        pre = (x @ sae.W_enc[j] + sae.b_enc[j]).detach()
        gap, rows = (level_by_hand(sae, x, j) - pre).sort()
        gap, rows = gap[:8], rows[:8]
        assert gap[0] > 0
        expected[j] = rows, pre[rows].mean() + share * gap.mean()
    lacks = (x - sae.reconstructed(x, Step(90, 100))).detach()
    sae.nudge(dead, batch_of(x), Step(90, 100))
    for j, (rows, mean) in expected.items():
        torch.testing.assert_close((x[rows] @ sae.W_enc[j] + sae.b_enc[j]).detach().mean(), mean)
        if sparsity == "jumprelu":  # a share of the direction that these rows lack
            toward = torch.nn.functional.normalize(lacks[rows].mean(0), dim=0)
            turned = 0.95 * before["W_dec"][j] + 0.05 * toward
            torch.testing.assert_close(sae.W_dec[j].detach(), turned / turned.norm())
    # nothing else has changed
    moved = {"W_enc", "b_enc", "b_mag"} | ({"W_dec"} if sparsity == "jumprelu" else set())
    others = torch.ones(64, dtype=torch.bool)
    others[dead] = False
    for name, value in sae.state_dict().items():
        same = others if name in moved else slice(None)
        assert torch.equal(value[same], before[name][same]), name


def test_a_latent_that_fires_is_not_nudged():
    sae, x = make_sae("topk", torch.float32), normalized(512, torch.float32)
    fired = sae.loss(batch_of(x)).fired
    before = sae.W_enc.detach().clone(), sae.b_enc.detach().clone()
    sae.nudge(fired.nonzero()[:, 0], batch_of(x), Step())
    assert torch.equal(sae.W_enc, before[0]) and torch.equal(sae.b_enc, before[1])


def test_a_nudge_leaves_the_decoder_of_a_latent_that_fires():
    sae, x = make_sae("jumprelu", torch.float32, target_l0=8.0), normalized(512, torch.float32)
    fired = sae.loss(batch_of(x)).fired
    before = sae.W_dec.detach().clone()
    sae.nudge(fired.nonzero()[:, 0], batch_of(x), Step())
    assert torch.equal(sae.W_dec, before)


def test_what_a_transcoder_lacks_is_judged_by_its_target():
    sae, x = make_sae("jumprelu", torch.float32, target_l0=8.0), normalized(64, torch.float32)
    batch, dead = batch_of(x), torch.tensor([5])
    batch = dataclasses.replace(batch, target=normalized(64, torch.float32).flip(0))
    with torch.no_grad():
        sae.b_enc[dead] -= 20
    before, lacks = sae.W_dec[5].clone(), batch.target - sae.reconstructed(x, Step())
    rows = (x @ sae.W_enc[5]).topk(8).indices
    sae.nudge(dead, batch, Step())
    turned = 0.95 * before + 0.05 * torch.nn.functional.normalize(lacks[rows].mean(0), dim=0)
    torch.testing.assert_close(sae.W_dec[5], turned / turned.norm())


def test_resampling_points_dead_latents_at_rows_with_a_large_error():
    sae = make_sae("l1", torch.float32)
    x = normalized(64, torch.float32) * 0.01
    x[13] = 50 * torch.nn.functional.normalize(torch.randn(D), dim=0)
    # rows are drawn without replacement, so only one latent can get the outlier
    dead = torch.tensor([6])
    before = sae.W_enc.detach().clone()
    sae.resample(dead, batch_of(x), torch.Generator().manual_seed(0), Step())
    direction = torch.nn.functional.normalize(x[13] - sae.b_dec.detach(), dim=0)
    alive_norm = sae.W_enc.detach()[[i for i in range(64) if i != 6]].norm(dim=1).mean()
    for j in dead:
        torch.testing.assert_close(sae.W_dec[j].detach(), direction)
        torch.testing.assert_close(sae.W_enc[j].detach(), 0.2 * alive_norm * direction)
    assert torch.equal(sae.W_enc.detach()[0], before[0])
    assert (sae.encode(x[13:14])[0, dead] > 0).all(), (
        "a resampled latent fires on the row that it was pointed at"
    )


@pytest.mark.parametrize(
    "options,words",
    [
        ({"sparsity": "k1"}, 'sparsity="k1": did you mean'),
        ({"sparsity": "kl-sigmoid", "target_rate": 1.5}, r"target_rate=1\.5 must be in \(0, 1\)"),
        (
            {"sparsity": "kl-sigmoid", "target_rate": 0.1, "target_l0": 4.0},
            "target_rate and target_l0 both say how often",
        ),
        ({"expansion": 0}, "expansion=0 must be above 0"),
        ({"k": 600}, "k=600 must be between 1 and the number of latents, 512"),
        ({"sparsity": "l1", "coef": -1.0}, "coef=-1 must not be negative"),
        ({"decoder_norm": "frei"}, 'decoder_norm="frei": did you mean free'),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        build("sae", D, options)


@pytest.mark.parametrize("sparsity", ["topk", "l1", "kl-sigmoid"])
def test_noise_damages_what_is_encoded_and_not_the_target(sparsity):
    options = {"k": 3} if sparsity == "topk" else {"coef": 0.7}
    sae = build(
        "sae", 6, {"latents": 10, "sparsity": sparsity, "noise": "gaussian:0.5", **options}
    ).double()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sae.initialise_from(x, torch.Generator().manual_seed(1))
    terms = sae.loss(ActivationBatch(x, None, None, None), Step(5, 10, seed=3))
    noisy = gaussian(x, 0.5, step_generator(3, 5, x.device))
    assert not torch.equal(noisy, x)
    # constants are meant for a variance of 1 per dimension
    unit = (x.var(0, correction=0).sum() / 6).sqrt()
    pre = noisy @ sae.W_enc.T + sae.b_enc
    if sparsity == "topk":
        z, penalty = (
            torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values.relu()),
            0.0,
        )
    elif sparsity == "l1":
        z = pre.relu()
        penalty = 0.7 * unit * (z * sae.W_dec.norm(dim=1)).sum(1).mean()
    else:
        z = pre.sigmoid()
        rho, mean = 0.01, z.mean(0)
        penalty = (
            0.7
            * unit**2
            * (rho * (rho / mean).log() + (1 - rho) * ((1 - rho) / (1 - mean)).log()).sum()
        )
    expected = (x - z @ sae.W_dec - sae.b_dec).square().sum(1).mean() + penalty
    torch.testing.assert_close(terms.total, expected)
    assert torch.equal(terms.fired, (z > (0.5 if sparsity == "kl-sigmoid" else 0.0)).sum(0))
    terms.total.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in sae.parameters()
    )

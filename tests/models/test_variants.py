"""Every sparsity variant: its loss by an independent dense formula in fp64, its gradient by finite
differences or by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from batches import batch_with_previous as batch_of
from made_stores import make_rows, write_store

import saekit
from saekit.errors import UsageError
from saekit.models.catalog import build
from saekit.models.normalizer import Normalizer
from saekit.models.sae import SAE
from saekit.models.sae.control import Control
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.archetypal import SPEED
from saekit.models.sparsity.jumprelu import Heaviside, Jump
from saekit.models.sparsity.nested import level_of_latents
from saekit.models.sparsity.temporal import info_nce
from saekit.training import loop
from saekit.types import Step

D, F, K = 12, 48, 4


def rows(count=40, seed=0):
    x = make_rows(count, D, seed).double()
    x = x - x.mean(0)
    return x * (D / x.square().sum(1).mean()).sqrt()


def options_for(name, **more):
    fields = VARIANTS[name].config_class.__dataclass_fields__
    given = {"sparsity": name, "latents": F, "revive": "none"}
    given |= {"k": K} if "k" in fields else {}
    given |= {"target_l0": K} if "target_l0" in fields and name != "kl-sigmoid" else {}
    given |= {"archetypes": 16} if "archetypes" in fields else {}
    return given | more


def made(name, **more):
    sae = build("sae", D, options_for(name, **more))
    sae.initialise_from(rows(400).float(), torch.Generator().manual_seed(0))
    return sae.double()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_total_is_the_weighted_sum_of_the_terms(name):
    terms = made(name).loss(batch_of(rows()), Step(50, 100))
    total = sum(terms.terms[key] * terms.weights[key] for key in terms.terms)
    torch.testing.assert_close(terms.total, total, rtol=1e-12, atol=0)


# the others have no true gradient
SMOOTH = [name for name in VARIANTS if "jumprelu" not in name and name != "kl-rates"]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_finite_differences(name):
    # with a target its rho follows the latents, and is taken as constant
    more = {"target_l0": 0} if name == "kl" else {}
    sae, batch = (
        made(name, decoder_norm="free" if name != "matching-pursuit" else "unit", **more),
        batch_of(rows(9)),
    )
    sae.loss(batch, Step(50, 100)).total.backward()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in sae.named_parameters():
        if parameter.grad is None:
            assert (name, key) in {
                ("archetypal", "W_dec"),
                ("matching-pursuit", "W_enc"),
                ("matching-pursuit", "b_enc"),
            }, key
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values, old = [], parameter.data.clone()
        for sign in (1, -1):
            parameter.data = old + sign * 1e-6 * direction
            # the second reconstruction holds its decoder constant: its part of the slope is not
            # there
            if name == "gated":
                pre = sae.preactivations(batch.x, Step(50, 100))
                frozen = sae.W_dec.data, sae.b_dec.data
                if key in ("W_dec", "b_dec"):
                    values.append(
                        (batch.x - pre.decode(sae.activate(pre), *frozen))
                        .square()
                        .sum(1)
                        .mean()
                        .item()
                    )
                    continue
            values.append(sae.loss(batch, Step(50, 100)).total.item())
        parameter.data = old
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(
            slope, rel=2e-4, abs=1e-6
        ), key


def test_a_jump_passes_the_gradients_of_the_paper():
    eps = 0.5
    pre = torch.tensor([0.2, 0.8, 1.1, 1.3, 2.0], dtype=torch.float64, requires_grad=True)
    theta = torch.full_like(pre, 1.0).requires_grad_()
    z = Jump.apply(pre, theta, eps)
    assert z.tolist() == [0, 0, 1.1, 1.3, 2.0]
    z.sum().backward()
    assert pre.grad.tolist() == [0, 0, 1, 1, 1]
    # Within [0.75, 1.25]: 0.8, below the threshold, and 1.1, above it. A window on z would not see
    # the first.
    assert theta.grad.tolist() == [0, -2.0, -2.0, 0, 0]
    theta.grad = None
    step = Heaviside.apply(pre, theta, eps, False)
    assert step.tolist() == [0, 0, 1, 1, 1]
    step.sum().backward()
    assert theta.grad.tolist() == [0, -2.0, -2.0, 0, 0]


def test_rho_of_kl_means_follows_the_latents_and_is_constant_for_the_gradient():
    sae, x = made("kl"), rows(50)
    with torch.no_grad():
        sae.b_enc += torch.randn(F, generator=torch.Generator().manual_seed(0))
    term = sae.loss(batch_of(x), Step(0, 100)).terms["kl"]
    (slope,) = torch.autograd.grad(term, [sae.b_enc])
    codes = torch.sigmoid(x @ sae.W_enc.T + sae.b_enc).detach()
    means = codes.mean(0)
    rho = means.mean()
    kl = rho * (rho / means).log() + (1 - rho) * ((1 - rho) / (1 - means)).log()
    by_mean = (1 - rho) / (1 - means) - rho / means
    assert term.item() == pytest.approx(kl.sum().item())
    torch.testing.assert_close(slope, by_mean * (codes * (1 - codes)).mean(0))


def test_the_jumprelu_penalty_pushes_thresholds_up_when_too_many_are_active():
    sae = made("jumprelu", start_l0=20)
    terms = sae.loss(batch_of(rows(200)), Step(0, 100))
    l0 = float(terms.fired.sum()) / 200
    assert l0 > 10 and terms.terms["l0"].item() == pytest.approx((l0 / K - 1) ** 2)
    (slope,) = torch.autograd.grad(terms.terms["l0"], [sae.slow_theta])
    assert (slope <= 0).all() and (slope < 0).any()


def test_the_frequency_penalty_is_the_sum_of_squared_rates():
    sae = made("jumprelu", freq_coef=0.3)
    x = rows(200)
    terms = sae.loss(batch_of(x), Step(0, 100))
    rate = (x @ sae.W_enc.T + sae.b_enc > 10 * sae.slow_theta).double().mean(0)
    assert terms.terms["frequency"].item() == pytest.approx((rate.square().sum() / 0.01).item())


@pytest.mark.parametrize(
    "name,phi",
    [
        ("l1", lambda a: a),
        ("tanh", lambda a: torch.tanh(4 * a) / 4),
        ("log", lambda a: torch.log(1 + 4 * a) / 4),
    ],
)
def test_penalties_are_their_formulas(name, phi):
    sae, x = made(name, decoder_norm="free"), rows()
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2.0, F, dtype=torch.float64)[:, None]
    a = (x @ sae.W_enc.T + sae.b_enc).relu() * sae.W_dec.norm(dim=1)
    assert sae.loss(batch_of(x), Step(75, 100)).terms[name].item() == pytest.approx(
        phi(a).sum(1).mean().item(), rel=1e-9
    )


def test_p_anneal_keeps_its_price_for_the_rows_on_which_p_falls_and_its_formula_for_others():
    sae, x, others = made("p-anneal", decoder_norm="free"), rows(), 2 * rows().flip(1)
    a, b = ((y @ sae.W_enc.T + sae.b_enc).relu() * sae.W_dec.norm(dim=1) for y in (x, others))

    def phi(sizes):  # three quarters of the run: p is half way from 1 to 0.2
        return ((sizes + 1e-3) ** 0.6 - 1e-3**0.6).sum(1).mean()

    assert sae.loss(batch_of(x), Step(75, 100)).terms["lp"].item() == pytest.approx(
        a.sum(1).mean().item(), rel=1e-9
    )
    factor = a.sum(1).mean() / phi(a)
    assert sae.loss(batch_of(others), Step(75, 100)).terms["lp"].item() == pytest.approx(
        (factor * phi(b)).item(), rel=1e-9
    )


@pytest.mark.parametrize("name", ["matryoshka-topk", "matryoshka", "hierarchical"])
def test_the_error_is_the_mean_over_nested_reconstructions(name):
    sae, x = made(name), rows()
    z = sae.encode(x)
    z = (z if torch.is_tensor(z) else z.to_dense()).detach()
    if name == "hierarchical":
        rank = z.argsort(dim=1, descending=True).argsort(dim=1)
        parts = [torch.where(rank < k, z, 0.0) for k in (1, 2, 4)]
    else:
        assert level_of_latents(sae).bincount().tolist() == [3, 3, 6, 12, 24]
        parts = [torch.where(torch.arange(F) < end, z, 0.0) for end in (3, 6, 12, 24, 48)]
    errors = [(part @ sae.W_dec + sae.b_dec - x).square().sum(1).mean() for part in parts]
    assert sae.loss(batch_of(x), Step(99, 100)).terms["reconstruction"].item() == pytest.approx(
        torch.stack(errors).mean().item(), rel=1e-9
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_trained_model_gives_the_code_of_training_in_raw_units(name):
    sae, x = made(name), rows(64)
    if "theta" in str(list(dict(sae.named_parameters()))):
        sae.after_step()
    sae.loss(batch_of(x), Step(99, 100))
    if hasattr(sae, "threshold"):
        # batchtopk's is a value of this very batch, which rounding would put on either side
        sae.threshold *= 1.0001
    sae.eval()
    mean, scale = torch.randn(D, dtype=torch.float64), 0.37
    raw = SAE(sae.config, folded=True).double()
    raw.load_state_dict(sae.folded(Normalizer(mean, scale)))
    raw.eval()
    same = SAE(sae.config, folded=True).double()
    same.load_state_dict(sae.folded(Normalizer(torch.zeros(D, dtype=torch.float64), 1.0)))
    same.eval()
    torch.testing.assert_close(
        raw(x / scale + mean).x_hat, same(x).x_hat / scale + mean, rtol=1e-6, atol=1e-6
    )


def test_a_gated_code_is_that_of_the_jumprelu_it_is_saved_as():
    sae, x = made("gated"), rows(64)
    with torch.no_grad():
        sae.r_mag.uniform_(-0.5, 0.5)
        sae.b_mag += 0.1
    gate = x @ sae.W_enc.T + sae.b_enc
    z = torch.where(gate > 0, (gate - sae.b_enc) * sae.r_mag.exp() + sae.b_mag, 0.0).relu()
    saved = SAE(sae.config, folded=True).double()
    saved.load_state_dict(sae.folded(Normalizer(torch.zeros(D, dtype=torch.float64), 1.0)))
    torch.testing.assert_close(saved.encode(x), z)


def test_matching_pursuit_subtracts_what_it_has_explained():
    sae, x = made("matching-pursuit"), rows(5)
    z = sae.encode(x)
    W = sae.W_dec.detach()
    for row, code in zip(x, z):
        r, expected = row - sae.b_dec.detach(), torch.zeros(F, dtype=torch.float64)
        for _ in range(K):
            j = (W @ r).argmax()
            value = W[j] @ r
            expected[j] += value
            r = r - value * W[j]
        torch.testing.assert_close(code.detach(), expected)


def test_atoms_stay_mixtures_of_rows():
    sae = made("archetypal")
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.05)
    for step in range(5):
        sae.loss(batch_of(rows(100)), Step(step, 100)).total.backward()
        optimizer.step()
        sae.after_step()
        optimizer.zero_grad()
    weights = (SPEED * sae.mixture).softmax(1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(F, dtype=torch.float64))
    torch.testing.assert_close(sae.W_dec.data, (weights @ sae.points).detach())


def test_info_nce_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[3.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    c = [[1.0, math.sqrt(0.5)], [0.0, math.sqrt(0.5)]]  # cosines
    rows_ = [
        -math.log(math.exp(c[i][i] / 0.5) / sum(math.exp(v / 0.5) for v in c[i])) for i in range(2)
    ]
    columns = [
        -math.log(math.exp(c[i][i] / 0.5) / sum(math.exp(c[j][i] / 0.5) for j in range(2)))
        for i in range(2)
    ]
    assert info_nce(a, b, 0.5).item() == pytest.approx((sum(rows_) + sum(columns)) / 4)


def test_signed_codes_are_active_on_both_sides():
    sae, x = made("abs-topk"), rows()
    z = sae.encode(x)
    assert ((z != 0).sum(1) == K).all() and (z < 0).any()
    assert sae.loss(batch_of(x), Step(0, 100)).fired.sum() == K * len(x)


def test_k_falls_to_its_value():
    sae, x = made("topk", k_start=20, k_anneal=0.5), rows()
    counts = [
        int(sae.loss(batch_of(x), Step(step, 100)).fired.sum()) / len(x) for step in (0, 25, 50, 99)
    ]
    assert counts[0] > 15 and 8 < counts[1] < 14 and counts[2:] == [K, K]


class Asked:
    coef, coef_warmup, target_l0, steered = 1.0, 0.1, 64.0, "coef"


# 20 steps: a twentieth of the run
@pytest.mark.parametrize("passed,acts", [(1, 1 / 20), (4, 4 / 20), (32, 0.4)])
def test_what_latents_must_pass_rises_with_the_error_and_the_steps_since_the_last_look(
    passed, acts
):
    control = Control(Asked)
    control.observe(64, 200, 400)
    assert control.observe(64 * math.e**0.5, 200 + passed, 400) == pytest.approx(
        math.exp(0.5 * acts)
    )
    assert control.observe(64 * math.e**-0.5, 200 + 2 * passed, 400) == pytest.approx(
        math.exp(-0.5 * acts)
    )


def test_a_training_batch_counts_as_much_as_held_out_rows_are_more_active():
    control = Control(Asked)
    control.observe(50, 200, 400)
    control.observe(70, 201, 400)
    control.compare(90)  # half of the way to 90 / 60
    gap = 1.5**0.5
    assert control.observe(64 / gap, 202, 400) == pytest.approx(1)
    control.compare(64 * gap)
    assert control.gap == pytest.approx((gap * gap**2) ** 0.5)
    control.compare(1000)  # nothing to compare with
    assert control.gap == pytest.approx(gap**1.5)


@pytest.mark.parametrize("name", ["l1", "jumprelu"])
def test_the_l0_is_that_of_held_out_rows_where_training_rows_are_known_by_heart(tmp_path, name):
    store = write_store(tmp_path / "store", 2000, holdout=0.5)
    held_out = saekit.train(
        store, tmp_path / "run", sparsity=name, target_l0=4, expansion=16, rows=400 * 256, batch=256
    ).metrics
    trained_on = saekit.evaluate([tmp_path / "run"], store, split="train")[0].metrics
    assert held_out["l0"] == pytest.approx(4, rel=0.08) and trained_on["l0"] < 3.6


@pytest.mark.parametrize(
    "name,shift", [("l1", 1.5), ("gated", 1.5), ("kl", 4.5), ("kl-sigmoid", 0.6)]
)
def test_steering_lowers_all_biases_alike(name, shift):
    sae = made(name)
    before = sae.b_enc.detach().clone()
    sae.steer(math.e**0.1)
    torch.testing.assert_close(before - sae.b_enc, torch.full_like(before, 0.1 * shift))


def test_steering_multiplies_the_thresholds_of_a_jumprelu():
    sae = made("jumprelu")
    theta, bias = sae.theta().detach().clone(), sae.b_enc.detach().clone()
    assert (theta > 0).all()
    sae.steer(1.1)
    torch.testing.assert_close(sae.theta(), 1.1 * theta)
    torch.testing.assert_close(sae.threshold, 1.1 * theta, check_dtype=False)
    assert torch.equal(sae.b_enc, bias)


def test_the_controller_finds_the_coefficient_of_a_code_that_follows_slowly():
    control, l0 = Control(Asked), 400.0
    for step in range(500):
        control.observe(l0, step, 500)
        wanted = 300.0 / control.coef**0.7  # what the code would settle at
        l0 *= (wanted / l0) ** 0.1
    assert l0 == pytest.approx(64, rel=0.02)


STEERED = [
    "l1",
    "tanh",
    "log",
    "p-anneal",
    "gated",
    "jumprelu",
    "matryoshka-jumprelu",
    "kl-sigmoid",
    "kl",
    "kl-rates",
]


@pytest.mark.parametrize("name", STEERED)
def test_the_target_l0_is_reached(tmp_path, name):
    store = write_store(tmp_path / "store", 4000, holdout=0.25)
    metrics = saekit.train(
        store, tmp_path / "run", sparsity=name, target_l0=4, expansion=4, rows=320 * 256, batch=256
    ).metrics
    assert metrics["l0"] == pytest.approx(4, rel=0.05) and metrics["fvu"] < 0.9


@pytest.mark.parametrize(
    "name,steps",
    [("l1", 125), ("kl", 125), ("kl-rates", 125), ("kl", 1250), ("jumprelu", 1250)],
)
def test_the_target_l0_is_reached_with_rare_polls(tmp_path, monkeypatch, name, steps):
    monkeypatch.setattr(loop, "POLL_EVERY", {})  # as on a device
    store = write_store(tmp_path / "store", 4000, holdout=0.25)
    metrics = saekit.train(
        store,
        tmp_path / "run",
        sparsity=name,
        target_l0=4,
        expansion=4,
        rows=256 * steps,
        batch=256,
    ).metrics
    assert metrics["l0"] == pytest.approx(4, rel=0.05) and metrics["fvu"] < 0.9


def test_options_of_another_variant_are_refused():
    with pytest.raises(UsageError, match='bandwidth does not apply to sparsity="topk"'):
        build("sae", D, {"bandwidth": 0.1})
    with pytest.raises(UsageError, match="shares must rise to 1"):
        build("sae", D, {"sparsity": "matryoshka", "groups": (0.5, 0.2, 1.0)})
    with pytest.raises(UsageError, match="skip=True would pass the input itself on"):
        build("sae", D, {"skip": True})


def test_a_temporal_transcoder_sees_the_row_before_each_row(tmp_path):
    store = write_store(tmp_path / "in", 2000, layout="sequence")
    # the same rows: the best it can do is copy them
    target = write_store(tmp_path / "out", 2000, layout="sequence", hook="layers.9")
    options = {
        "sparsity": "temporal",
        "latents": 96,
        "k": 8,
        "target_store": str(target),
        "rows": 60_000,
        "batch": 256,
    }
    result = saekit.train(store, tmp_path / "run", **options)
    terms = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert result.metrics["fvu"] < 0.6 and all(line["contrast"] > 0 for line in terms)

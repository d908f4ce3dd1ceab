"""gan, dcgan, cgan and aae: the losses by hand, which tensors move in which phase, shapes."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from saekit.errors import DataError, UsageError
from saekit.models.adversarial.layers import BatchNorm, SpectralLinear
from saekit.models.adversarial.players import deceived, opponent_terms
from saekit.models.autoencoder import as_batch
from saekit.models.catalog import build
from saekit.models.normalizer import Normalizer
from saekit.training.adversarial import Players
from saekit.training.config import TrainConfig
from saekit.types import Step

IMAGE = (8, 8, 1)
KINDS = [
    ("gan", {"hidden": (12,)}),
    ("gan", {"hidden": (12,), "spectral_norm": True}),
    ("dcgan", {"channels": (4, 6)}),
    ("dcgan", {"channels": (4, 6), "spectral_norm": True}),
    ("cgan", {"body": "dense", "hidden": (12,)}),
    ("cgan", {"channels": (4,)}),
    ("aae", {"hidden": (12,), "output": "bernoulli"}),
    ("aae", {"hidden": (12,), "output": "bernoulli", "spectral_norm": True}),
]


def made(name, options, latents=5, seed=0, shape=IMAGE):
    width = math.prod(shape)
    model = build(name, width, {"latents": latents, **options}, shape, classes=("a", "b", "c"))
    sample = torch.rand(40, width, generator=torch.Generator().manual_seed(seed))
    model.initialise_from(sample, torch.Generator().manual_seed(seed))
    return model


def rows(n=10, seed=1):
    batch = as_batch(torch.rand(n, 64, generator=torch.Generator().manual_seed(seed)))
    batch.label = torch.arange(n) % 3
    return batch


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -- formulas


def test_the_losses_are_those_of_goodfellow_by_hand():
    real, generated = torch.tensor([2.0, -0.5, 0.1]), torch.tensor([-1.0, 0.4, 3.0])

    def d(logit):
        return 1 / (1 + math.exp(-logit))

    first = opponent_terms(real, generated, smoothing=0.0)
    wanted = -sum(math.log(d(a)) for a in real.tolist()) / 3
    wanted -= sum(math.log(1 - d(b)) for b in generated.tolist()) / 3
    assert float(first.total) == pytest.approx(wanted, rel=1e-6)
    assert float(first.metrics["told_apart"]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    wanted = -sum(math.log(d(b)) for b in generated.tolist()) / 3
    assert float(deceived(generated)) == pytest.approx(wanted, rel=1e-6)
    # a discriminator that cannot tell: 2 log 2, and log 2
    none = torch.zeros(7)
    assert float(opponent_terms(none, none, 0.0).total) == pytest.approx(2 * math.log(2))
    assert float(deceived(none)) == pytest.approx(math.log(2))


def test_smoothed_labels_are_one_sided():
    sure, s = torch.full((4,), 3.0), 0.1
    p = 1 / (1 + math.exp(-3.0))
    real = -(1 - s) * math.log(p) - s * math.log(1 - p)
    total = float(opponent_terms(sure, -sure, s).total)
    assert total == pytest.approx(real - math.log(p), rel=1e-5)


def test_a_discriminator_at_its_optimum_gives_the_encoder_the_ratio_of_densities():
    """logit d* = log p / q, by gradient descent on the loss of phase 1 over a discrete space."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    logit = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logit], 0.05)
    for _ in range(800):
        optimizer.zero_grad()
        loss = (p * torch.nn.functional.softplus(-logit)).sum()
        (loss + (q * torch.nn.functional.softplus(logit)).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(logit.detach(), (p / q).log(), atol=1e-3, rtol=0)


def test_a_spectral_weight_has_norm_one_after_some_passes():
    torch.manual_seed(0)
    layer = SpectralLinear(6, 9)
    for _ in range(200):
        layer(torch.zeros(1, 6))
    norm = torch.linalg.matrix_norm(layer.eval().bounded().detach(), 2)
    assert float(norm) == pytest.approx(1, abs=1e-4)


def test_batch_norm_that_stands_still_gives_the_bits_of_training():
    torch.manual_seed(0)
    x, moving, still = torch.randn(6, 3, 4, 4), BatchNorm(3), BatchNorm(3)
    still.moves = False
    assert torch.equal(moving(x), still(x))
    assert not torch.equal(moving.running_mean, still.running_mean)
    assert not still.running_mean.any() and int(still.num_batches_tracked) == 0


# -- phases


@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
def test_each_phase_moves_one_player_and_every_bit_of_the_other_stays(name, options):
    model = made(name, options)
    batch, step = rows(), Step(3, 10, seed=1)
    for side, loss in (
        ("discriminator", model.discriminator_loss),
        ("generator", model.generator_loss),
    ):
        before = state(model)
        with model.moving(side):
            loss(batch, step).total.backward()
        gradients = {n for n, p in model.named_parameters() if p.grad is not None}
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        moved = {n for n, tensor in state(model).items() if not torch.equal(tensor, before[n])}
        own = {n for n in before if n.startswith("discriminator.") == (side == "discriminator")}
        assert gradients and moved <= own
        # all parameters of the player, and its running moments
        assert {n for n, _ in model.side(side)} == gradients
        # a layer of one output has only one direction
        norms = {n for n in own if n.endswith(("running_mean", ".u")) and before[n].numel() > 1}
        assert norms <= moved
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
def test_a_step_of_both_optimizers_is_the_two_phases_one_after_another(name, options):
    model, by_hand = made(name, options), made(name, options)
    config = TrainConfig(name, {}, beta2=0.9)
    players, step, batch = Players(model, 0.01, config), Step(0, 5), rows()
    players.set_rate(0.01)
    players.step(batch, step, None, nullcontext)
    rates = {"discriminator": 0.0025 if name == "dcgan" or "channels" in options else 0.01}
    optimizers = {
        side: torch.optim.Adam(
            [p for _, p in by_hand.side(side)], rates.get(side, 0.01), (0.5, 0.9), fused=True
        )
        for side in ("discriminator", "generator")
    }
    for side in ("discriminator", "generator"):
        with by_hand.moving(side):
            getattr(by_hand, f"{side}_loss")(batch, step).total.backward()
        optimizers[side].step()
        optimizers[side].zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(state(model).values(), state(by_hand).values()))


def test_two_time_scales_are_rates_of_the_two_optimizers():
    model = made("gan", {"hidden": (12,), "discriminator_rate": 0.25})
    players = Players(model, 0.1, TrainConfig("gan"))
    players.set_rate(0.02)
    rates = {side: o.param_groups[0]["lr"] for side, o in players.optimizers.items()}
    assert rates == {"discriminator": 0.005, "generator": 0.02}


def test_a_clipped_gradient_is_that_of_one_player():
    model = made("gan", {"hidden": (12,)})
    before = state(model)
    players = Players(model, 1.0, TrainConfig("gan"))
    for optimizer in players.optimizers.values():  # plain steps, whose size is the gradient's
        optimizer.step = lambda group=optimizer.param_groups[0]: [
            p.data.sub_(p.grad) for p in group["params"]
        ]
    players.step(rows(), Step(0, 5), 1e-3, nullcontext)
    for side in ("discriminator", "generator"):
        moved = [model.state_dict()[n] - before[n] for n, _ in model.side(side)]
        norm = math.sqrt(sum(float(change.square().sum()) for change in moved))
        assert norm == pytest.approx(1e-3, rel=1e-2)


# -- options


def test_instance_noise_falls_to_zero_and_depends_only_on_seed_and_step():
    model, x = made("gan", {"instance_noise": 0.5}), torch.zeros(400, 64)
    first, half = (model.seen(x, Step(n, 10), 5) for n in (0, 5))
    assert float(first.std()) == pytest.approx(0.5, rel=0.02)
    assert float(half.std()) == pytest.approx(0.25, rel=0.02)
    assert model.seen(x, Step(10, 10), 5) is x
    assert torch.equal(first, model.seen(x, Step(0, 10), 5))
    assert not torch.equal(first, model.seen(x, Step(0, 10, seed=1), 5))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gan", {"label_smoothing": 0.5}, "label_smoothing=0.5 must be in"),
        ("gan", {"discriminator_rate": 0.0}, "must be above 0"),
        ("gan", {"instance_noise": -1.0}, "must not be negative"),
        ("gan", {"latents": 0}, "must be at least 1"),
        ("gan", {"hidden": (0,)}, "widths must be at least 1"),
        ("dcgan", {"channels": (4, 4, 4, 4)}, "halves the sides 4 times, and 8x8"),
        ("dcgan", {"channels": ()}, "at least one number"),
        ("aae", {"adversarial_weight": -1.0}, "must not be negative"),
    ],
)
def test_an_option_out_of_bounds_is_refused(name, options, words):
    with pytest.raises(UsageError, match=words):
        build(name, 64, options, IMAGE)


def test_rows_without_a_shape_are_not_images_and_rows_outside_0_1_not_of_tanh():
    with pytest.raises(DataError, match=r"(?s)these rows have no shape \(H,W,C\).*gan"):
        build("dcgan", 64, {}, (64,))
    with pytest.raises(DataError, match='output="tanh" gives values in'):
        made("gan", {}).loss(3 * torch.randn(4, 64))
    assert made("gan", {"output": "linear"}).loss(3 * torch.randn(4, 64)).total.isfinite()
    # hidden states and grids of them may have any value
    assert build("gan", 64, {}, (64,)).config.draws == "linear"
    assert build("dcgan", 6, {}, (8, 8, 6)).config.draws == "linear"


# -- shapes, samples


@pytest.mark.parametrize(
    ("shape", "d_in", "sides"),
    [
        ((8, 8, 1), 64, [(8, 8), (4, 4)]),
        ((28, 28, 1), 784, [(28, 28), (14, 14), (7, 7)]),
        ((72, 72, 3), 15552, [(72, 72), (36, 36), (18, 18), (9, 9), (4, 4)]),
        ((9, 14, 5), 5, [(9, 14), (4, 7)]),
        ((3, 3, 4), 4, [(3, 3), (1, 1)]),
    ],
)
def test_convolutions_give_back_the_shape_of_images_and_of_grids(shape, d_in, sides):
    model = build("dcgan", d_in, {"latents": 7}, shape).eval()
    assert model.images.sides == sides
    x = model.sample(2, torch.Generator().manual_seed(0))
    assert x.shape == ((2, d_in) if d_in > shape[-1] else (2, *shape))
    assert model.probability(x.clamp(0, 1)).shape == (2,)


def test_batch_norm_is_where_the_paper_has_it_and_no_layer_is_dense():
    model = build("dcgan", 784, {"channels": (8, 16)}, (28, 28, 1))
    assert [type(norm).__name__ for norm in model.generator.norms] == ["BatchNorm", "BatchNorm"]
    assert [type(norm).__name__ for norm in model.discriminator.norms] == ["Identity", "BatchNorm"]
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Linear)]


@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
def test_samples_are_in_raw_units_and_depend_on_the_seed_only(name, options):
    model = made(name, options).eval()
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    normalized = model.decode(z) if name != "cgan" else model.decode(z, "b")
    inputs = Normalizer(torch.linspace(-1, 1, 64), 4.0)
    model.load_state_dict(model.folded(inputs))
    raw = model.decode(z) if name != "cgan" else model.decode(z, "b")
    torch.testing.assert_close(raw, normalized / 4 + inputs.mean_D)
    drawn = model.sample(6, torch.Generator().manual_seed(3), *(["b"] if name == "cgan" else []))
    torch.testing.assert_close(drawn, raw)


def test_a_class_is_asked_for_by_its_label_or_all_come_in_turn():
    model = made("cgan", {"channels": (4,)}).eval()
    g = torch.Generator
    turn = model.sample(6, g().manual_seed(0))
    for k, label in enumerate("abc"):
        of_class = model.sample(6, g().manual_seed(0), label)
        assert torch.equal(of_class[k::3], turn[k::3])
        assert not torch.equal(of_class[(k + 1) % 3 :: 3], turn[(k + 1) % 3 :: 3])
    with pytest.raises(UsageError, match=r'(?s)label="d" is not one of the classes.*a, b, c'):
        model.sample(1, g(), "d")
    with pytest.raises(UsageError, match=r"(?s)label=7: GAN does not read labels.*cgan"):
        made("gan", {}).sample(1, g(), 7)


def test_a_model_without_an_encoder_says_so():
    with pytest.raises(UsageError, match=r"(?s)a DCGAN has no encoder.*saekit.sample draws rows"):
        made("dcgan", {})(torch.rand(2, 64))
    with pytest.raises(
        UsageError, match=r"(?s)Dense cannot draw rows.*train a model that does: model="
    ):
        build("dense", 64, {}).sample(3, torch.Generator())

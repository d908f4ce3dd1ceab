from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from batches import batch_of, expect_gradients
from sklearn.decomposition import PCA
from torch import nn

from saekit.errors import DataError, UsageError
from saekit.models.catalog import build, restore
from saekit.models.normalizer import Normalizer
from saekit.models.recurrent import Recurrent, RecurrentConfig
from saekit.types import Step


def make(**changes) -> Recurrent:
    """Of sequences (B,T,3), unless shape and d_in say otherwise; fp64."""
    model = Recurrent(
        RecurrentConfig(**{"d_in": 3, "shape": (None, 3), "latents": 4, "width": 8} | changes)
    )
    model.initialise_from(torch.empty(0), torch.Generator().manual_seed(0))
    return model.double()


def sequences(lengths, T, padding=0.0):
    """x (B,T,3) and mask (B,T), `padding` after the valid steps, which do not depend on T."""
    x = torch.full((len(lengths), T, 3), padding, dtype=torch.float64)
    for b, length in enumerate(lengths):
        x[b, :length] = torch.randn(
            length, 3, generator=torch.Generator().manual_seed(b), dtype=torch.float64
        )
    return x, torch.arange(T) < torch.tensor(lengths)[:, None]


def cell_of(net):
    """The same cell, to be stepped one by one."""
    cell = (nn.LSTMCell if isinstance(net, nn.LSTM) else nn.GRUCell)(
        net.input_size, net.hidden_size
    ).double()
    cell.load_state_dict(
        {name.removesuffix("_l0"): tensor for name, tensor in net.state_dict().items()}
    )
    return cell


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_code_and_output_by_single_steps(kind):
    model, (x, mask) = make(cell=kind), sequences([5, 2, 1], 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)  # biases take part
        reader, writer = cell_of(model.reader), cell_of(model.writer)
        for b, length in enumerate((5, 2, 1)):
            state = None
            for t in range(length):
                state = reader(x[b : b + 1, t], state)
            h = state[0] if kind == "lstm" else state
            z = h @ model.into.weight.T + model.into.bias
            torch.testing.assert_close(model.encode(x, mask)[b : b + 1], z)
            start = z @ model.start.weight.T + model.start.bias
            state = (start[:, :8].tanh(), start[:, 8:]) if kind == "lstm" else start.tanh()
            for t in range(length):
                state = writer(z, state)
                h = state[0] if kind == "lstm" else state
                torch.testing.assert_close(
                    model(x, mask).x_hat[b, t], (h @ model.outlet.weight.T + model.outlet.bias)[0]
                )


@pytest.mark.parametrize(
    "changes", [{}, {"cell": "lstm"}, {"layers": 2}, {"sparsity": "l1"}, {"sparsity": "kl-sigmoid"}]
)
def test_padding_reaches_neither_code_nor_loss_nor_gradient(changes):
    found = []
    for T, padding in ((6, 0.0), (9, 0.0), (9, 50.0)):
        model, (x, mask) = make(**changes), sequences([6, 3, 1, 4], T, padding)
        terms = model.loss(batch_of(x, mask=mask))
        terms.total.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found.append((model.encode(x, mask), terms.total, terms.metrics["squared_error"], gradient))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_batch_of_lengths_is_the_mean_over_all_steps_of_single_sequences():
    model, lengths = make(), [6, 3, 1]
    x, mask = sequences(lengths, 6)
    alone = [
        (model(x[b : b + 1, :length]).x_hat - x[b : b + 1, :length]).square().sum()
        for b, length in enumerate(lengths)
    ]
    assert model.loss(batch_of(x, mask=mask)).total.item() == pytest.approx(sum(alone).item() / 10)


def test_without_a_mask_all_steps_are_valid():
    model, (x, _) = make(), sequences([5, 5], 5)
    all_valid = torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(model.encode(x), model.encode(x, all_valid))
    assert model.loss(batch_of(x)).total.item() == pytest.approx(
        model.loss(batch_of(x, mask=all_valid)).total.item()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "lstm", "layers": 2},
        {"sparsity": "l1"},
        {"sparsity": "kl-sigmoid"},
        {"noise": "gaussian:0.5"},
    ],
)
def test_the_gradient_reaches_every_parameter(changes):
    model, (x, mask) = make(**changes), sequences([6, 3, 1, 4], 6)
    expect_gradients(model, model.loss(batch_of(x, mask=mask)))


def test_images_are_read_a_row_of_pixels_a_step():
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    of_rows, of_steps = make(d_in=60, shape=(5, 4, 3)), make(d_in=12, shape=(5, 12))
    flat, stepped = of_rows(x.flatten(1)), of_steps(x.flatten(2))
    torch.testing.assert_close(flat.code, stepped.code)
    torch.testing.assert_close(flat.x_hat, stepped.x_hat.flatten(1))
    # a mean over images here, over steps there
    loss = of_rows.loss(batch_of(x.flatten(1))).total.item()
    assert loss == pytest.approx(5 * of_steps.loss(batch_of(x.flatten(2))).total.item())


def test_how_many_steps_are_written():
    code = torch.randn(2, 4, dtype=torch.float64)
    open_ended, fixed, images = make(), make(shape=(7, 3)), make(d_in=60, shape=(5, 4, 3))
    assert open_ended.decode(code, steps=4).shape == (2, 4, 3)
    assert fixed.decode(code).shape == (2, 7, 3) and fixed.decode(code, steps=2).shape == (2, 2, 3)
    assert images.decode(code).shape == (2, 60)
    torch.testing.assert_close(
        open_ended.decode(code, steps=4), open_ended.decode(code, steps=9)[:, :4]
    )
    open_ended(torch.zeros(1, 6, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="say how many steps"):
        open_ended.decode(code)


def test_l1_weighs_a_latent_by_all_weights_that_leave_it():
    model, (x, mask) = make(sparsity="l1", cell="lstm"), sequences([6, 3], 6)
    leaving = [
        torch.cat([model.start.weight[:, i], model.writer.weight_ih_l0[:, i]]).square().sum().sqrt()
        for i in range(4)
    ]
    expected = sum((model.encode(x, mask)[:, i] * leaving[i]).mean() for i in range(4)).item()
    assert (
        model.loss(batch_of(x, mask=mask)).terms["l1"].item() == pytest.approx(expected)
        and expected > 0
    )


def test_noise_is_a_function_of_step_and_not_on_the_target():
    x, mask = sequences([6, 3], 6)
    model = make(noise="masking:0.5")
    first, again, later = (
        model.loss(batch_of(x, mask=mask), Step(step)).total.item() for step in (3, 3, 4)
    )
    assert first == again != later
    blank = batch_of(torch.zeros_like(x), mask=mask, target=x)  # masking leaves zeros as they are
    assert model.loss(blank, Step(3)).total.item() == make().loss(blank, Step(3)).total.item()


def test_targets_of_another_width():
    model, (x, mask) = make(d_out=2), sequences([4, 2], 4)
    target = torch.randn(2, 4, 2, dtype=torch.float64)
    error = (model(x, mask).x_hat - target).square().sum(2)
    assert model.loss(batch_of(x, mask=mask, target=target)).total.item() == pytest.approx(
        error[mask].mean().item()
    )
    assert make(d_in=60, shape=(5, 4, 3), d_out=20)(
        torch.zeros(2, 60, dtype=torch.float64)
    ).x_hat.shape == (2, 20)
    with pytest.raises(DataError, match="width 21 in the target store"):
        make(d_in=60, shape=(5, 4, 3), d_out=21)


def test_forget_gates_start_open():
    model = make(cell="lstm", layers=2)
    for net in (model.reader, model.writer):
        for layer in (0, 1):
            # input, forget, cell, output
            gates = (getattr(net, f"bias_ih_l{layer}") + getattr(net, f"bias_hh_l{layer}")).view(
                4, 8
            )
            assert (gates[1] == 1).all() and (gates[[0, 2, 3]] == 0).all()


@pytest.mark.slow
def test_three_numbers_describe_waves_better_than_principal_components():
    """Waves of any phase and frequency, twelve steps of two values."""
    generator = torch.Generator().manual_seed(0)
    phase, frequency = torch.rand(2, 400, 1, generator=generator)
    angle = 6.28 * phase + (0.3 + frequency) * torch.arange(12)
    x_BTD = torch.stack([angle.sin(), angle.cos()], 2)
    train, held_out = x_BTD[:300], x_BTD[300:]
    model = build("recurrent", 2, {"latents": 3, "width": 32}, shape=(None, 2))
    model.initialise_from(train, generator)
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(300):
        adam.zero_grad()
        model.loss(batch_of(train), Step(step)).total.backward()
        adam.step()
    pca = PCA(3).fit(train.flatten(1))
    floor = (
        (
            (
                pca.inverse_transform(pca.transform(held_out.flatten(1)))
                - held_out.flatten(1).numpy()
            )
            ** 2
        )
        .sum(1)
        .mean()
    )
    with torch.no_grad():
        error = (model(held_out).x_hat - held_out).square().sum((1, 2)).mean().item()
    assert error < 0.2 * floor


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("shape, d_in", [((None, 3), 3), ((5, 4, 3), 60)])
def test_a_saved_model_does_to_raw_rows_what_the_trained_one_does_to_normalized_ones(
    kind, shape, d_in
):
    model = make(cell=kind, shape=shape, d_in=d_in, layers=2)
    raw = 5 + 3 * torch.randn(2, *((6, 3) if d_in == 3 else (60,)), dtype=torch.float64)
    mean, scale = torch.linspace(4, 6, d_in, dtype=torch.float64), 0.25
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    saved = restore(
        "recurrent",
        config,
        {name: tensor.float() for name, tensor in model.folded(Normalizer(mean, scale)).items()},
    )
    assert saved.config == model.config and saved.steps == model.steps
    mask = torch.arange(6) < torch.tensor([[6], [2]]) if d_in == 3 else None
    inside = model((raw - mean) * scale, mask)
    torch.testing.assert_close(
        saved(raw.float(), mask).x_hat, (inside.x_hat / scale + mean).float(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        saved(raw.float(), mask).code, inside.code.float(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("shape, d_in", [((48,), 48), ((4, 4, 3), 3), ((None, 5), 48)])
def test_rows_that_are_no_sequences_are_refused(shape, d_in):
    with pytest.raises(DataError, match="recurrent takes sequences or images") as raised:
        build("recurrent", d_in, {}, shape=shape)
    assert 'layout="sequence"' in raised.value.hint


@pytest.mark.parametrize(
    "options, message",
    [({"cell": "rnn"}, 'cell="rnn"'), ({"width": 0}, "width=0"), ({"layers": 0}, "layers=0")],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build("recurrent", 3, options, shape=(None, 3))

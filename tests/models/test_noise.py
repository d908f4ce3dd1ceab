"""Corruption of the input: its statistics, what it does not change, and that it depends only on
seed and step."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import UsageError
from saekit.models.noise import KINDS, Noise, step_generator

N = 200_000
# the chance that a correct sampler fails one of these is below 1e-5; the seeds are fixed besides
SIGMAS = 4.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def share_error(share, n=N):
    return SIGMAS * (share * (1 - share) / n) ** 0.5


def test_gaussian_noise_has_the_given_standard_deviation_and_no_mean():
    x = torch.rand(N // 10, 10).double() * 7 - 2
    added = Noise.parse("gaussian:0.3")(x, generator()) - x
    assert abs(added.mean().item()) < SIGMAS * 0.3 / N**0.5
    assert abs(added.std().item() / 0.3 - 1) < SIGMAS / (2 * N) ** 0.5
    assert added.pow(4).mean().item() / 0.3**4 == pytest.approx(3, abs=SIGMAS * (96 / N) ** 0.5), (
        "the fourth moment of a normal"
    )
    assert (
        abs((added * x).mean().item()) < SIGMAS * 0.3 * x.square().mean().sqrt().item() / N**0.5
    ), "independent of the input"


@pytest.mark.parametrize("level", [0.05, 0.3, 0.9])
def test_masking_zeroes_its_share_and_leaves_the_rest_bit_for_bit(level):
    x = torch.rand(N // 10, 10) + 1
    noisy = Noise.parse(f"masking:{level}")(x, generator())
    hit = noisy != x
    assert (noisy[hit] == 0).all()
    assert abs(hit.double().mean().item() - level) < share_error(level)
    by_column = hit.double().mean(0)
    assert (by_column - level).abs().max().item() < share_error(level, N // 10), (
        "values are hit one by one, not rows or columns"
    )


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_salt_and_pepper_are_half_the_level_each_and_the_rest_is_clean(level):
    x = torch.rand(N // 10, 10) * 0.8 + 0.1
    noisy = Noise.parse(f"salt-pepper:{level}")(x, generator())
    assert abs((noisy == 0).double().mean().item() - level / 2) < share_error(level / 2)
    assert abs((noisy == 1).double().mean().item() - level / 2) < share_error(level / 2)
    clean = (noisy != 0) & (noisy != 1)
    assert torch.equal(noisy[clean], x[clean])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_keeps_shape_type_and_input(kind, dtype):
    x = torch.rand(4, 3, 5).to(dtype)
    before = x.clone()
    noisy = Noise.parse(f"{kind}:0.4")(x, generator())
    assert noisy.shape == x.shape and noisy.dtype == dtype
    assert torch.equal(x, before) and not torch.equal(noisy, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_noise_and_another_another(kind):
    x, noise = torch.rand(50, 20), Noise.parse(f"{kind}:0.3")
    assert torch.equal(noise(x, generator(3)), noise(x, generator(3)))
    assert not torch.equal(noise(x, generator(3)), noise(x, generator(4)))


def test_no_noise_draws_nothing_and_returns_the_input():
    x = torch.rand(3, 4)
    for text in ("", "none"):
        source = generator()
        state = source.get_state()
        assert Noise.parse(text)(x, source) is x and torch.equal(source.get_state(), state)


def test_random_numbers_of_a_step_depend_only_on_seed_step_and_stream():
    cpu = torch.device("cpu")
    first = {}
    for seed in range(4):
        for step in range(300):
            for stream in range(3):
                first[seed, step, stream] = tuple(
                    torch.rand(
                        2, generator=step_generator(seed, step, cpu, stream), dtype=torch.float64
                    ).tolist()
                )
    assert len(set(first.values())) == len(first), (
        "no two of seed, step and stream share their numbers"
    )
    torch.rand(1000)  # the global state has no part in it
    again = torch.rand(2, generator=step_generator(2, 77, cpu, 1), dtype=torch.float64)
    assert tuple(again.tolist()) == first[2, 77, 1]
    values = torch.tensor(list(first.values())).flatten().double()
    assert abs(values.mean().item() - 0.5) < SIGMAS / (12 * len(values)) ** 0.5, (
        "neighbouring steps are not alike"
    )


@pytest.mark.parametrize(
    "text,cause",
    [
        ("maskin:0.3", 'noise="maskin": did you mean masking'),
        ("speckle:0.3", 'noise="speckle": choose gaussian, masking, salt-pepper'),
        ("masking", "level is missing or not a number"),
        ("masking:", "level is missing or not a number"),
        ("gaussian:much", "level is missing or not a number"),
        ("masking:0.3:0.4", "level is missing or not a number"),
        ("masking:0", "above 0 and below 1"),
        ("masking:1", "above 0 and below 1"),
        ("salt-pepper:1.5", "above 0 and below 1"),
        ("gaussian:-1", "must be above 0"),
        ("gaussian:nan", "must be above 0"),
        ("gaussian:inf", 'noise="gaussian:inf"'),
    ],
)
def test_what_is_no_noise_is_refused(text, cause):
    with pytest.raises(UsageError, match=cause):
        Noise.parse(text)


def test_a_gaussian_may_be_wider_than_one():
    assert Noise.parse("gaussian:2.5") == Noise("gaussian", 2.5)

from __future__ import annotations

import torch

from saekit.measures.generation import active_units, interpolate, samples, traverse


def double(z):
    return 2 * z


def test_a_path_has_even_steps_and_both_ends():
    z0, z1 = torch.tensor([0.0, 1.0]), torch.tensor([4.0, -1.0])
    expected = torch.tensor([[0.0, 2.0], [2.0, 1.0], [4.0, 0.0], [6.0, -1.0], [8.0, -2.0]])
    torch.testing.assert_close(interpolate(double, z0, z1, 5), expected)


def test_a_traversal_turns_one_latent_and_leaves_the_code_alone():
    z = torch.tensor([1.0, 2.0, 3.0])
    made = traverse(double, z, latent=1, values=[-1, 0, 5])
    assert made.tolist() == [[2, -2, 6], [2, 0, 6], [2, 10, 6]] and z.tolist() == [1, 2, 3]


def test_active_units_are_those_whose_mean_varies_most_varied_first():
    # population variances 0.0099, 4, 0 and 0.0121 over the two rows
    spread = torch.tensor([0.0099**0.5, 2.0, 0.0, 0.11])
    means = 5 + torch.stack([spread, -spread])
    assert active_units(means).tolist() == [1, 3]
    assert active_units(means, threshold=0.001).tolist() == [1, 3, 0]
    assert len(active_units(means, threshold=5.0)) == 0


def test_samples_decode_standard_normal_codes_and_repeat():
    made = samples(double, 5000, 3, torch.Generator().manual_seed(1))
    assert made.shape == (5000, 3)
    # std 2 over sqrt(5,000) is 0.03
    torch.testing.assert_close(made.mean(0), torch.zeros(3), atol=0.15, rtol=0)
    torch.testing.assert_close(made.std(0), torch.full((3,), 2.0), atol=0.1, rtol=0)
    assert torch.equal(made, samples(double, 5000, 3, torch.Generator().manual_seed(1)))


def test_pictures_of_a_decoder_carry_no_gradients():
    decoder = torch.nn.Linear(2, 4)
    z = torch.zeros(2)
    made = [
        samples(decoder, 1, 2, torch.Generator()),
        interpolate(decoder, z, z, 2),
        traverse(decoder, z, 0, [1.0]),
    ]
    assert not any(t.requires_grad for t in made)

"""What a loaded model takes: any leading shape, any float dtype, several threads, NaN; and its
gradients."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saekit.errors import DataError
from saekit.models.catalog import build
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.jumprelu import SPEED

D, F = 12, 40


def made(name: str, dtype: torch.dtype = torch.float32, folded: bool = True):
    """A trained-looking SAE of a variant: random weights, a threshold that some latents pass, in
    eval mode; folded as a checkpoint's, or with what only training has."""
    options = {"sparsity": name, "latents": F}
    if "k" in VARIANTS[name].config_class.__dataclass_fields__:
        options["k"] = 5
    sae = VARIANTS[name](d_in=D, folded=folded, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        if name == "matching-pursuit":
            sae.W_enc.copy_(sae.W_dec)
            sae.b_enc.copy_(-(sae.W_dec @ sae.b_dec))
        if hasattr(sae, "slow_theta"):
            sae.slow_theta.fill_(1.5 / SPEED)
        if hasattr(sae, "mixture"):
            sae.W_dec.copy_(sae.decoder())
        if VARIANTS[name].thresholded:
            sae.threshold.fill_(1.5)
    return sae.to(dtype).eval().requires_grad_(False)


def dense(code):
    return code.to_dense()


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(
        *shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_leading_shapes_are_kept(name):
    sae, x = made(name), rows(2, 3, 4)
    flat, output = sae(x.view(-1, D)), sae(x)
    assert dense(output.code).shape == (2, 3, 4, F) and output.x_hat.shape == x.shape
    assert torch.equal(dense(output.code).view(-1, F), dense(flat.code)) and torch.equal(
        output.x_hat.view(-1, D), flat.x_hat
    )
    assert torch.equal(sae.decode(output.code), output.x_hat)
    torch.testing.assert_close(sae.decode(dense(output.code)), output.x_hat)
    assert sae(x[0, 0, 0]).x_hat.shape == (D,) and dense(sae.encode(x[0, 0, 0])).shape == (F,)
    assert sae(x[:0]).x_hat.shape == (0, 3, 4, D) and dense(sae.encode(x[:0])).shape == (0, 3, 4, F)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_any_float_dtype_is_computed_in_that_of_the_weights(name, dtype):
    sae, x = made(name), rows(6, dtype=dtype)
    assert torch.equal(dense(sae.encode(x)), dense(sae.encode(x.float()))) and torch.equal(
        sae(x).x_hat, sae(x.float()).x_hat
    )


@pytest.mark.parametrize("name", ["topk", "jumprelu", "kl-sigmoid"])
def test_what_is_not_rows_of_the_model_is_refused_in_words(name):
    sae = made(name)
    for x, words in (
        (torch.ones(3, D, dtype=torch.int64), "int64"),
        (rows(3)[:, 1:], "last dimension must be 12"),
        ([1.0] * D, "list"),
    ):
        with pytest.raises(DataError, match=words):
            sae.encode(x)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_with_nan_is_nan_and_the_others_are_not(name):
    sae, x = made(name), rows(5)
    expected = sae(x).x_hat
    x[2, 7] = torch.nan
    output = sae(x)
    assert dense(output.code)[2].isnan().any() and output.x_hat[2].isnan().all()
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(output.x_hat[others], expected[others])


@pytest.mark.parametrize("name", VARIANTS)
def test_threads_get_their_own_codes(name):
    sae = made(name)
    inputs = [rows(700, seed=seed) for seed in range(6)]
    expected = [sae(x).x_hat for x in inputs]

    def many(number: int) -> bool:
        return all(torch.equal(sae(inputs[number]).x_hat, expected[number]) for _ in range(6))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, range(6)))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_a_forward_pass_are_those_of_finite_differences(name, folded):
    """In x and in every parameter, the choice of latents constant."""
    sae, x = made(name, torch.float64, folded), rows(4, dtype=torch.float64).requires_grad_(True)
    made_of_parts = (
        ("W_dec",)
        if name == "archetypal" and not folded
        else ("W_enc", "b_enc")
        if name == "matching-pursuit"
        else ()
    )
    for key, parameter in sae.named_parameters():
        # a step has no true gradient by its threshold
        parameter.requires_grad_(key not in (*made_of_parts, "slow_theta"))
    direction = rows(4, seed=9, dtype=torch.float64)
    (sae(x).x_hat * direction).sum().backward()
    step = 1e-6
    for value in (x, *(parameter for parameter in sae.parameters() if parameter.requires_grad)):
        change = torch.randn(
            value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        with torch.no_grad():
            original, sums = value.clone(), []
            for sign in (1, -1):
                value.copy_(original + sign * step * change)
                sums.append((sae(x).x_hat * direction).sum())
            value.copy_(original)
        numeric = (sums[0] - sums[1]) / (2 * step)
        torch.testing.assert_close((value.grad * change).sum(), numeric, rtol=1e-5, atol=1e-6)


def test_a_copy_of_a_model_works_on_its_own():
    sae, x = made("topk"), rows(50)
    expected = sae(x).x_hat
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_enc.mul_(2)
    other(x)
    assert torch.equal(sae(x).x_hat, expected)


@pytest.mark.parametrize("name", ["pca", "kmeans", "dense", "linear", "vae"])
def test_classic_models_of_rows_take_the_same(name):
    model = build(name, D, {"latents": 4}).eval()
    with torch.no_grad():
        for value in (
            *model.parameters(),
            *(b for n, b in model.named_buffers() if n in ("components", "centroids")),
        ):
            value.normal_(generator=torch.Generator().manual_seed(1))
    x = rows(2, 3)
    code = model.encode(x)
    assert dense(code).shape == (2, 3, 4)
    torch.testing.assert_close(
        model.decode(code).view(-1, D), model.decode(model.encode(x.view(-1, D)))
    )
    torch.testing.assert_close(dense(model.encode(x.half())), dense(model.encode(x.half().float())))
    with pytest.raises(DataError, match="last dimension"):
        model.encode(x[..., 1:])
    x[0, 0, 0] = torch.nan
    assert (
        dense(model.encode(x))[0, 0].isnan().any() and not dense(model.encode(x))[1].isnan().any()
    )


def random_weights(model):
    with torch.no_grad():
        for value in (
            *model.parameters(),
            *(b for n, b in model.named_buffers() if n in ("components", "centroids")),
        ):
            value.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["pca", "kmeans", "dense", "linear", "vae"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_classic_models_pass_on_any_leading_shape(name, shape, dtype):
    model, x = random_weights(build(name, D, {"latents": 4})), rows(*shape, dtype=dtype)
    output, flat = model(x), model(x.float().reshape(-1, D))
    assert output.x_hat.shape == (*shape, D) and dense(output.code).shape == (*shape, 4)
    torch.testing.assert_close(output.x_hat.reshape(-1, D), flat.x_hat)
    torch.testing.assert_close(model.decode(dense(output.code)), output.x_hat)
    if name == "vae":
        assert output.extras["elbo"].shape == shape
        torch.testing.assert_close(output.extras["elbo"].reshape(-1), flat.extras["elbo"])


@pytest.mark.parametrize("name", ["pca", "kmeans", "dense", "linear", "vae"])
def test_a_code_of_another_width_or_type_is_refused_in_words(name):
    model = random_weights(build(name, D, {"latents": 4}))
    for code, words in (
        (torch.ones(3, 5), "must be 4"),
        (torch.ones(3, 4, dtype=torch.int32), "int32"),
        (None, "NoneType"),
    ):
        with pytest.raises(DataError, match=words):
            model.decode(code)


EXAMPLES = {
    "conv of a grid": ("conv", 3, {"shape": (5, 4, 3), "channels": (4,)}, (5, 4, 3)),
    "conv of images": ("conv", 60, {"shape": (5, 4, 3), "channels": (4,)}, (60,)),
    "unet": ("unet", 3, {"shape": (4, 4, 3), "channels": (4,), "latents": 2}, (4, 4, 3)),
    "recurrent": ("recurrent", 6, {"shape": (None, 6), "width": 5}, (7, 6)),
    "lstm of images": ("recurrent", 60, {"shape": (5, 4, 3), "width": 5, "cell": "lstm"}, (60,)),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_models_of_whole_examples_take_the_same(case):
    name, d_in, options, example = EXAMPLES[case]
    settings = {key: value for key, value in options.items() if key != "shape"}
    model = random_weights(build(name, d_in, settings, shape=options["shape"]))
    x = torch.randn(2, 3, *example, generator=torch.Generator().manual_seed(4))
    output, flat = model(x), model(x.view(6, *example))
    assert output.x_hat.shape == x.shape and output.code.shape == (2, 3, model.latents)
    torch.testing.assert_close(output.x_hat.view(6, *example), flat.x_hat)
    torch.testing.assert_close(model(x[1, 2]).x_hat, flat.x_hat[5])
    torch.testing.assert_close(model(x.half()).x_hat, model(x.half().float()).x_hat)
    assert model(x[:0]).x_hat.shape == (0, 3, *example) and model.encode(x[0, :0]).shape == (
        0,
        model.latents,
    )
    for wrong in (x[..., 1:], x.long(), x[0, 0, ..., 0], None):
        with pytest.raises(DataError):
            model.encode(wrong)
    with pytest.raises(DataError, match="the code"):
        model.decode(torch.ones(2, model.latents + 1))
    x[0, 1].view(-1)[2] = torch.nan
    output = model(x)
    assert output.code[0, 1].isnan().any() and not output.code[1].isnan().any()
    torch.testing.assert_close(output.x_hat[1], flat.x_hat.view(2, 3, *example)[1])


@pytest.mark.parametrize("name", ["matching-pursuit", "topk", "l1"])
def test_a_row_that_is_not_finite_has_no_plausible_code(name):
    sae, x = made(name), rows(3)
    x[1, 2] = torch.inf
    output = sae(x)
    assert not output.x_hat[1].isfinite().all() and output.x_hat[[0, 2]].isfinite().all()


def test_principal_components_far_from_the_origin():
    x = torch.randn(
        3000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ) * torch.tensor([5.0, 4, 3, 2, 1])
    model = build("pca", 5, {"latents": 5}).double()
    model.fit(iter((x + 1e8).split(700)))
    variances = torch.tensor([25.0, 16, 9, 4, 1], dtype=torch.float64)
    torch.testing.assert_close(
        model.explained_variance,
        torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0),
        rtol=1e-6,
        atol=0,
    )
    torch.testing.assert_close(model.explained_variance, variances, rtol=0.1, atol=0)
    torch.testing.assert_close(model.mean, (x + 1e8).mean(0), rtol=1e-14, atol=0)

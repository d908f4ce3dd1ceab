"""What the map of published dictionaries has besides ours: norms of the input and their inverses,
constant factors, competition by decoder norm. Formulas are written out here, in float64."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import DataError, UsageError
from saekit.models.catalog import restore
from saekit.models.normalizer import Normalizer
from saekit.models.sae import SAE
from saekit.models.sparsity import VARIANTS
from saekit.training.checkpoints import load

D, F, K = 12, 40, 6
FIELDS = {"input_factor": 0.7, "output_factor": 1.9, "subtract_b_dec": True}
NORMS = ("none", "layer_norm", "constant_norm")


def rows(*shape: int) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return 2 * torch.randn(*shape, D, generator=gen).double() + 1


def loaded(sparsity: str, seed: int = 0, **fields) -> SAE:
    """A model as a checkpoint has it, with weights of no special value."""
    k = {"k": K} if hasattr(VARIANTS[sparsity].config_class, "k") else {}
    model = VARIANTS[sparsity](d_in=D, latents=F, folded=True, **k, **fields).double().eval()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=gen).double())
            if name == "threshold":
                tensor.abs_()
    return model


def to_input(x: torch.Tensor, norm: str) -> torch.Tensor:
    if norm == "layer_norm":
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.square().sum(-1, keepdim=True) / (D - 1)
        return centered / (variance.sqrt() + 1e-5)
    length = x.square().sum(-1, keepdim=True).sqrt()
    return x if norm == "none" else x * (D**0.5 / length)


def from_output(x_hat: torch.Tensor, x: torch.Tensor, norm: str) -> torch.Tensor:
    if norm == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        return x_hat * ((x - mean).square().sum(-1, keepdim=True) / (D - 1)).sqrt() + mean
    length = x.square().sum(-1, keepdim=True).sqrt()
    return x_hat if norm == "none" else x_hat / (D**0.5 / length)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sparsity", VARIANTS)
def test_every_variant_codes_the_normalized_row_and_undoes_the_norm(sparsity, norm):
    fields = FIELDS if sparsity != "matching-pursuit" else FIELDS | {"subtract_b_dec": False}
    model, plain, x = loaded(sparsity, input_norm=norm, **fields), loaded(sparsity), rows(30)
    y = 0.7 * to_input(x, norm) - (model.b_dec if fields["subtract_b_dec"] else 0.0)
    output, code = model(x), plain.encode(y).to_dense()
    assert 0 < code.count_nonzero()
    torch.testing.assert_close(output.code.to_dense(), code, rtol=1e-12, atol=1e-12)
    y_hat = plain.decode(plain.encode(y)) / 1.9
    torch.testing.assert_close(model.decode(output.code), y_hat, rtol=1e-12, atol=1e-12)
    expected = from_output(y_hat, x, norm)
    torch.testing.assert_close(output.x_hat, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_transcoder_leaves_its_output_as_it_is_and_skips_from_the_raw_row(norm):
    model, x = loaded("l1", d_out=5, skip=True, input_norm=norm, output_factor=1.9), rows(30)
    code = (to_input(x, norm) @ model.W_enc.T + model.b_enc).relu()
    expected = (code @ model.W_dec + model.b_dec) / 1.9 + x @ model.W_skip.T
    torch.testing.assert_close(model(x).x_hat, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sparsity", ["topk", "abs-topk", "jumprelu", "l1"])
def test_latents_compete_by_what_they_add(sparsity):
    model, x = loaded(sparsity, rescale_by_decoder_norm=True), rows(1100)  # more than one chunk
    norms = model.W_dec.square().sum(1).sqrt()
    pre = (x @ model.W_enc.T + model.b_enc) * norms
    size = {"abs-topk": pre.abs(), "topk": pre.relu()}.get(sparsity, pre)
    if sparsity.endswith("topk"):
        kept = torch.zeros_like(pre).scatter(1, size.topk(K).indices, 1.0) > 0
    else:
        kept = pre > (model.threshold if sparsity == "jumprelu" else 0.0)
    code = torch.where(kept, pre if sparsity == "abs-topk" else pre.relu(), 0.0)
    output = model(x)
    torch.testing.assert_close(output.code.to_dense(), code, rtol=1e-12, atol=1e-12)
    expected = code @ (model.W_dec / norms[:, None]) + model.b_dec
    torch.testing.assert_close(output.x_hat, expected, rtol=1e-12, atol=1e-12)


def test_a_row_with_few_positive_latents_has_only_these():
    model = loaded("topk", rescale_by_decoder_norm=True)
    with torch.no_grad():
        model.b_enc -= 4
    x = rows(50)
    positive = (x @ model.W_enc.T + model.b_enc > 0).sum(1)
    assert positive.min() < K < positive.max()
    assert model.encode(x).nnz.tolist() == positive.clamp_max(K).tolist()


@pytest.mark.parametrize("rescaled", [False, True])
def test_negative_values_among_the_k_largest_stay_where_the_config_says_so(rescaled):
    fields = {"rescale_by_decoder_norm": rescaled, "input_norm": "layer_norm", **FIELDS}
    model, x = loaded("topk", keep_negative=True, **fields), rows(1100)  # more than one chunk
    with torch.no_grad():
        model.b_enc -= 1.5
    norms = model.W_dec.square().sum(1).sqrt() if rescaled else torch.ones(F).double()
    y = 0.7 * to_input(x, "layer_norm") - model.b_dec
    values, indices = ((y @ model.W_enc.T + model.b_enc) * norms).topk(K)
    code = torch.zeros(len(x), F).double().scatter(1, indices, values)
    assert 0.1 < (values < 0).double().mean() < 0.9
    output = model(x)
    assert (output.code.nnz == K).all()
    torch.testing.assert_close(output.code.to_dense(), code, rtol=1e-12, atol=1e-12)
    y_hat = (code @ (model.W_dec / norms[:, None]) + model.b_dec) / 1.9
    expected = from_output(y_hat, x, "layer_norm")
    torch.testing.assert_close(output.x_hat, expected, rtol=1e-12, atol=1e-12)


def test_of_the_k_largest_those_that_are_zero_are_not_active():
    model, x = loaded("topk", keep_negative=True), rows(20)
    with torch.no_grad():
        model.W_enc[4:] = 0.0
        model.b_enc[4:] = -1e-3
        model.b_enc[10:30] = 0.0
    code = model.encode(x)
    pre = x @ model.W_enc[:4].T + model.b_enc[:4]
    assert torch.equal(code.nnz, (pre > 0).sum(1))
    torch.testing.assert_close(code.to_dense()[:, :4], pre.relu(), rtol=1e-12, atol=1e-12)
    assert not code.to_dense()[:, 4:].any()


def test_a_row_with_nan_has_a_code_with_nan_where_negative_values_stay():
    x = rows(3)
    x[1, 0] = float("nan")
    x_hat = loaded("topk", keep_negative=True)(x).x_hat
    assert x_hat.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sparsity", ["topk", "abs-topk", "jumprelu", "l1"])
def test_gradients_in_rows_and_weights_are_those_of_finite_differences(sparsity, norm):
    fields = FIELDS | ({"keep_negative": True} if sparsity == "topk" else {})
    model = loaded(sparsity, input_norm=norm, rescale_by_decoder_norm=True, **fields)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")

    def x_hat(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights)), x).x_hat

    weights = [getattr(model, name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(x_hat, (rows(3).requires_grad_(), *weights), fast_mode=True)


def test_any_leading_shape_and_float_dtype():
    model = loaded("topk", input_norm="layer_norm", rescale_by_decoder_norm=True, **FIELDS)
    x = rows(2, 3)
    whole, flat = model(x), model(x.view(6, D))
    assert whole.code.shape == (2, 3, F) and whole.x_hat.shape == (2, 3, D)
    assert torch.equal(whole.x_hat.view(6, D), flat.x_hat)
    torch.testing.assert_close(model(x[0, 0]).x_hat, whole.x_hat[0, 0], rtol=1e-12, atol=1e-12)
    assert model(x[:0]).x_hat.shape == (0, 3, D)
    # a model in bfloat16: a row has 8 bits, so latents may change places
    low = model.bfloat16()
    for given in (x.bfloat16(), x.float()):
        output = low(given)
        assert output.x_hat.dtype == torch.bfloat16
        error = (output.x_hat.double() - whole.x_hat).norm() / whole.x_hat.norm()
        assert error < 0.05


def test_a_row_of_zeros_has_no_length():
    model, x = loaded("l1", input_norm="constant_norm"), rows(3)
    x[1] = 0.0
    assert model(x).x_hat.isfinite().all(1).tolist() == [True, False, True]
    assert loaded("l1", input_norm="layer_norm")(x).x_hat.isfinite().all()


@pytest.mark.parametrize(
    "field",
    [
        {"subtract_b_dec": True},
        {"input_norm": "layer_norm"},
        {"input_factor": 2.0},
        {"output_factor": 0.5},
        {"rescale_by_decoder_norm": True},
        {"keep_negative": True},
    ],
)
def test_training_and_folding_refuse_what_they_do_not_compute(field):
    (name,) = field
    with pytest.raises(UsageError, match=f"{name} is for weights that are loaded"):
        VARIANTS["topk"](d_in=D, latents=F, k=K, **field)
    model, normalizer = loaded("topk", **field), Normalizer(torch.zeros(D).double(), 2.0)
    for refused in (
        lambda: model.loss(rows(4)),
        lambda: model.folded(normalizer),
        lambda: model.unfolded(normalizer),
    ):
        with pytest.raises(UsageError, match=f"{name} is for weights that are loaded"):
            refused()


@pytest.mark.parametrize(
    "field",
    [
        {"input_factor": 0.0},
        {"output_factor": float("nan")},
        {"input_norm": "rms"},
        {"sparsity": "batchtopk", "rescale_by_decoder_norm": True},
        {"sparsity": "hierarchical", "keep_negative": True},
        {"sparsity": "abs-topk", "keep_negative": True},
        {"subtract_b_dec": True, "d_out": 5},
    ],
)
def test_values_that_cannot_be_are_refused(field):
    with pytest.raises(UsageError):
        loaded(**{"sparsity": "topk"} | field)


def test_a_smaller_k_competes_by_decoder_norm_too():
    model, x = loaded("topk", rescale_by_decoder_norm=True, input_norm="layer_norm"), rows(20)
    code, cut = model.encode(x).to_dense(), load(model, k=2).encode(x).to_dense()
    largest = torch.zeros_like(code).scatter(1, code.topk(2).indices, 1.0) * code
    assert torch.equal(cut, largest)


def test_a_smaller_k_keeps_negative_values_too():
    model, x = loaded("topk", keep_negative=True).float(), rows(20).float()
    with torch.no_grad():
        model.b_enc -= 4
    values = x @ model.W_enc.T + model.b_enc
    kept = torch.zeros_like(values).scatter(1, values.topk(2).indices, 1.0) * values
    assert (kept < 0).any()
    torch.testing.assert_close(load(model, k=2).encode(x).to_dense(), kept)


def test_the_first_latents_of_a_nested_dictionary_see_the_same_input():
    fields = {"input_norm": "constant_norm", "subtract_b_dec": True, "input_factor": 3.0}
    model, x = loaded("matryoshka-jumprelu", groups=(0.5, 1.0), **fields), rows(20)
    model, x = model.float(), x.float()
    part = load(model, latents=F // 2)
    torch.testing.assert_close(part.encode(x), model.encode(x)[:, : F // 2])


def test_a_threshold_of_nan_is_refused_and_one_of_infinity_is_never_passed():
    """NaN <= and > nothing: a latent with such a threshold would be active or not by the kernel."""
    tensors = {
        "W_enc": torch.ones(2, D), "b_enc": torch.ones(2), "W_dec": torch.ones(2, D),
        "b_dec": torch.zeros(D), "threshold": torch.tensor([0.5, torch.inf]),
    }  # fmt: skip
    config = {"d_in": D, "latents": 2, "sparsity": "jumprelu"}
    code = restore("sae", config, tensors).encode(torch.ones(1, D)).to_dense()
    assert code.tolist() == [[D + 1, 0]]
    tensors["threshold"][1] = torch.nan
    with pytest.raises(DataError, match="threshold has the value NaN"):
        restore("sae", config, tensors)

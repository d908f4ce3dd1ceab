"""The cross-layer transcoder as a model: opened, imported, and refused by what reads one store."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from made_gemma import LATENTS, LAYERS, WIDTH, of_layers
from made_stores import write_store

import saekit
from saekit.errors import DataError, UsageError
from saekit.models.catalog import CATALOG, restore
from saekit.models.cross_layer import CrossLayerConfig, CrossLayerTranscoder
from saekit.store.checkpoint import read_checkpoint


def config(**changed) -> CrossLayerConfig:
    settings = {"d_in": LAYERS * WIDTH, "latents": LAYERS * LATENTS, "layers": LAYERS}
    return CrossLayerConfig(**(settings | {"sparsity": "l1"} | changed))


def test_an_import_is_the_same_model(tmp_path):
    path = of_layers(tmp_path, affine=True)
    result = saekit.import_dictionary(path, tmp_path / "out")
    assert (result.format, result.d_in, result.latents) == (
        *("gemma_scope_2", LAYERS * WIDTH),
        LAYERS * LATENTS,
    )
    theirs, ours = saekit.load(path), saekit.load(tmp_path / "out")
    assert isinstance(ours, CrossLayerTranscoder) and ours.config == theirs.config
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert read_checkpoint(tmp_path / "out").config["model"] == "cross_layer"


@pytest.mark.parametrize("imported", [True, False])
def test_verbs_that_read_a_store_refuse_it_by_name(tmp_path, imported):
    path, acts = of_layers(tmp_path), write_store(tmp_path / "acts", width=LAYERS * WIDTH)
    if imported:
        saekit.import_dictionary(path, tmp_path / "out")
        path = tmp_path / "out"
    in_memory = saekit.load(path)
    for verb in (
        lambda: saekit.evaluate(path, acts),
        lambda: saekit.evaluate(in_memory, acts),
        lambda: saekit.compare([path], acts, tmp_path / "report"),
        lambda: saekit.inspect(in_memory, acts, tmp_path / "page"),
        lambda: saekit.features(in_memory, acts, index=[0]),
    ):
        with pytest.raises(UsageError, match="cross_layer model") as error:
            verb()
        assert "saekit.load" in error.value.hint
    if imported:
        with pytest.raises(UsageError, match="cross_layer model"):
            saekit.inspect(path, acts, tmp_path / "page")
        with pytest.raises(UsageError, match="cross_layer model"):
            saekit.finetune(path, tmp_path / "tuned", store=acts)
    with pytest.raises(UsageError, match="k largest"):
        saekit.load(path, k=2)
    with pytest.raises(UsageError, match="nested"):
        saekit.load(path, latents=2)


def test_it_is_not_among_the_models_that_train(tmp_path):
    acts = write_store(tmp_path / "acts", width=LAYERS * WIDTH)
    with pytest.raises(UsageError, match="cross_layer"):
        saekit.train(acts, tmp_path / "run", model="cross_layer")
    assert "cross_layer" not in CATALOG


def test_decode_leaves_out_the_skip_only(tmp_path):
    model = saekit.load(of_layers(tmp_path, affine=True)).double()
    x = torch.randn(5, LAYERS * WIDTH, dtype=torch.float64)
    skip = torch.cat(
        [layer.skip(part)[:, :WIDTH] for layer, part in zip(model.layers, x.split(WIDTH, 1))], 1
    )
    output = model(x)
    assert torch.allclose(model.decode(output.code) + skip, output.x_hat, rtol=1e-12)
    assert torch.equal(model.encode(x), output.code)


def test_it_is_differentiable_in_its_input(tmp_path):
    model = saekit.load(of_layers(tmp_path)).double()
    x = torch.randn(4, LAYERS * WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: model(rows).x_hat, x)


def test_a_layer_writes_to_no_earlier_one():
    model = CrossLayerTranscoder(config())
    x = torch.randn(20, LAYERS * WIDTH)
    changed = x.clone()
    changed[:, WIDTH : 2 * WIDTH] += 1.0
    with torch.no_grad():
        differs = (model(x).x_hat != model(changed).x_hat).view(20, LAYERS, WIDTH).any(2).any(0)
    assert differs.tolist() == [False, True, True]


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="multiples of layers = 3"):
        config(latents=13)
    model = CrossLayerTranscoder(config())
    with pytest.raises(DataError, match="its last dimension must be 24"):
        model(torch.zeros(2, WIDTH))
    with pytest.raises(DataError, match="the code has the shape"):
        model.decode(torch.zeros(2, LATENTS))


@pytest.mark.parametrize(
    "changed", [{"layers": 2**40}, {"layers": 0}, {"d_in": 2**50 * LAYERS}, {"sparsity": "topk"}]
)
def test_a_config_that_cannot_be_is_refused_without_building_it(changed):
    tensors = CrossLayerTranscoder(config()).state_dict()
    settings = dataclasses.asdict(config())
    assert restore("cross_layer", settings, tensors).latents == LAYERS * LATENTS
    with pytest.raises(DataError, match="does not fit a cross_layer model"):
        restore("cross_layer", settings | changed, tensors)

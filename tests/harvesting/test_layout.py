"""Where an image model's tokens lie, on models whose parameters mislead."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from PIL import Image

import saekit
from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError
from saekit.harvesting.layout import check_layout
from saekit.harvesting.models import load_model


def loaded(folder, class_name, config_class, **config):
    import transformers

    torch.manual_seed(0)
    with quiet_transformers():
        model = getattr(transformers, class_name)(
            getattr(transformers, config_class)(**(tiny.IMAGE | config))
        ).eval()
        model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny.processor_config("vit")))
    return model, load_model(str(folder))


def test_a_class_token_of_a_pooling_head_is_no_token_of_the_sequence(tmp_path):
    _, live = loaded(tmp_path, "Aimv2VisionModel", "Aimv2VisionConfig", num_hidden_layers=2)
    assert any(name.endswith("cls_token") for name, _ in live.module.named_parameters())
    assert not live.image_tokens.has_cls and live.image_tokens.count == 16
    assert live.probe(["blocks.1"]) == {"blocks.1": tiny.WIDTH}


def test_a_masked_autoencoder_that_masks_nothing_keeps_patches_at_their_places(tmp_path):
    model, _ = loaded(tmp_path / "mae", "ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0)
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "images").mkdir()
    pictures = torch.randint(0, 256, (3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.numpy()).save(tmp_path / "images" / f"{i}.png")
    options = dict(hook="blocks.0", dtype="float32", device="cpu", batch=2)
    saekit.harvest(
        str(tmp_path / "mae"), str(tmp_path / "images"), str(tmp_path / "store"), **options
    )
    store = saekit.open_store(str(tmp_path / "store"))
    rows = {int(b.doc_id[i]): [] for b in store.batches(64) for i in range(len(b.x))}
    for batch in store.batches(64):
        for x_D, document in zip(batch.x.float(), batch.doc_id.tolist()):
            rows[document].append(x_D)
    assert sorted(rows) == [0, 1, 2]
    for document, vectors in rows.items():
        pixels = (pictures[document].permute(2, 0, 1).float() / 127.5 - 1)[None]
        with torch.no_grad():
            embedded_BTD = (
                model.embeddings.patch_embeddings(pixels)
                + model.embeddings.position_embeddings[:, 1:]
            )
            cls_BTD = model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]
            expected_BTD = (
                model.layers[0](torch.cat([cls_BTD, embedded_BTD], 1))
                if hasattr(model, "layers")
                else None
            )
            if expected_BTD is None:
                expected_BTD = model.encoder.layer[0](torch.cat([cls_BTD, embedded_BTD], 1))
        expected_BTD = expected_BTD[0] if isinstance(expected_BTD, tuple) else expected_BTD
        torch.testing.assert_close(torch.stack(vectors), expected_BTD[0, 1:], rtol=1e-4, atol=1e-5)


def test_a_masked_autoencoder_that_masks_is_refused(tmp_path):
    with pytest.raises(DataError, match="drops 50% of the patches") as raised:
        loaded(tmp_path, "ViTMAEModel", "ViTMAEConfig", mask_ratio=0.5)
    assert '"mask_ratio": 0.0' in raised.value.hint


@pytest.mark.parametrize("family", tiny.VISION)
def test_the_layout_of_every_family_is_seen(live, family):
    check_layout(live(family))


@pytest.mark.parametrize(
    ("family", "wrong"),
    [("siglip", dict(has_cls=True, grid=(5, 3))), ("vit", dict(has_cls=False, grid=(17, 1)))],
)
def test_a_layout_of_the_right_count_in_another_order_is_refused(live, family, wrong):
    """17 tokens may be a class token and 16 patches or 17 patches."""
    believed = dataclasses.replace(
        live(family), image_tokens=dataclasses.replace(live(family).image_tokens, **wrong)
    )
    assert believed.image_tokens.count == live(family).image_tokens.count
    with pytest.raises(DataError, match="in this order"):
        check_layout(believed)


def test_models_of_a_varying_number_of_patches_are_refused(tmp_path):
    import transformers

    parts = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=4,
        num_patches=16,
    )
    with quiet_transformers():
        transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**parts)).save_pretrained(
            tmp_path
        )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tiny.processor_config("siglip")))
    with pytest.raises(DataError):
        load_model(str(tmp_path))

"""Pictures in [0,1] and what the model takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from saekit.attacks.pixels import in_8_bits, pixel_scale, pixels_of
from saekit.embedded import digits, openmoji
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.images import prepared
from saekit.harvesting.models import load_model


def test_the_scale_is_that_of_the_processor_and_undoes_itself(aim):
    pixel_values = prepared([digits.image(8)], aim.live.processor)
    x = pixels_of("embedded:digits:8", aim.live, aim.scale)
    assert torch.allclose(x[0, 0], torch.from_numpy(digits.arrays()[0][8]) / 255, atol=1e-6)
    assert torch.allclose(aim.scale.to_model(x), pixel_values, atol=1e-6)


def test_of_a_processor_with_other_constants(aim):
    """Mean and deviation of its own, and one that does not normalize."""
    for mean, std in (([0.1307], [0.3081]), ([0.0], [1.0])):
        processor = type(aim.live.processor)(
            **{**aim.live.processor.to_dict(), "image_mean": mean, "image_std": std}
        )
        live = replace(aim.live, processor=processor)
        scale = pixel_scale(live)
        assert float(scale.black_C11) == pytest.approx(-mean[0] / std[0], abs=1e-5)
        assert float(scale.white_C11) == pytest.approx((1 - mean[0]) / std[0], abs=1e-5)
        x = pixels_of("embedded:digits:3", live, scale)
        assert torch.allclose(x, pixels_of("embedded:digits:3", aim.live, aim.scale), atol=1e-6)


def test_files_embedded_names_and_tensors(aim, tmp_path):
    digits.image(5).convert("RGB").save(tmp_path / "five.png")
    x = pixels_of(tmp_path / "five.png", aim.live, aim.scale)
    assert torch.equal(x, pixels_of("embedded:digits:5", aim.live, aim.scale))
    assert torch.equal(x, pixels_of(x[0], aim.live, aim.scale))
    emoji = load_model("embedded:openmoji-vit")
    scale = pixel_scale(emoji)
    name = openmoji.names()[7]
    by_name = pixels_of(f"embedded:openmoji:{name}", emoji, scale)
    assert torch.equal(by_name, pixels_of("embedded:openmoji:7", emoji, scale))
    assert by_name.shape == (1, 3, 72, 72)


def test_what_is_not_a_picture_is_refused(aim, tmp_path):
    for picture, error, text in (
        ("embedded:digits:9999", DataError, "has no image"),
        ("embedded:digits", DataError, "has no image"),
        ("embedded:pydocs:1", DataError, "holds texts"),
        ("embedded:digitz:1", UsageError, "not an embedded data set"),
        (tmp_path / "none.png", MissingError, "no image at"),
        (torch.zeros(3, 8, 8), UsageError, "has the shape"),
        (torch.full((1, 8, 8), 1.5), DataError, "outside of"),
    ):
        with pytest.raises(error, match=text):
            pixels_of(picture, aim.live, aim.scale)


def test_a_processor_that_is_not_linear_is_refused(aim):
    class Squares:
        def __call__(self, images, **options):
            pixels = aim.live.processor(images=images, **options)["pixel_values"]
            return {"pixel_values": pixels**2}

    class Pads:
        def __call__(self, images, **options):
            pixels = aim.live.processor(images=images, **options)["pixel_values"]
            return {"pixel_values": torch.nn.functional.pad(pixels[..., 1:-1, 1:-1], [1] * 4)}

    with pytest.raises(DataError, match="not map pixels linearly"):
        pixel_scale(replace(aim.live, processor=Squares()))
    with pytest.raises(DataError, match="pads pictures"):
        pixel_scale(replace(aim.live, processor=Pads()))


def test_eight_bits_are_those_of_a_png(tmp_path):
    x = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    rounded = in_8_bits(x)
    assert float((rounded - x).abs().max()) <= 0.5 / 255 + 1e-6
    Image.fromarray((rounded[0] * 255).round().byte().numpy()).save(tmp_path / "x.png")
    read = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))) / 255
    assert torch.allclose(read, rounded[0], atol=1e-7)

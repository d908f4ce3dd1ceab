"""A picture with one bright patch: the place that the heat map lights is the place where the
thumbnail is bright, for every patch."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import saekit
from saekit.inspection.show import ModelView

PATCH, GRID = 8, 4
SIDE = PATCH * GRID
COMMON = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4] * 3,
    "image_std": [0.3] * 3,
    "resample": 0,
}
CROP = {"image_processor_type": "CLIPImageProcessor", "do_resize": True,
"size": {"shortest_edge": SIDE}, "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE}, "do_convert_rgb": True, **COMMON}  # fmt: skip
SQUARE = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    **COMMON,
}
SMALL_CROP = {**CROP, "size": {"shortest_edge": 40}}  # also cuts a border off the short side


DOUBLED = {**SQUARE, "rescale_factor": 2 / 255}


def saved_model(folder, settings):
    """A ViT of one block that hands its patch embedding on: attention and MLP add nothing, so a row
    is a function only of its patch."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = ViTModel(
        ViTConfig(**shape, image_size=SIDE, patch_size=PATCH), add_pooling_layer=False
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last_linear = name.startswith("layers.0") and "layernorm" not in name
            if "position_embedding" in name or "cls_token" in name or last_linear:
                parameter.zero_()
            if "patch_embeddings.projection.weight" in name:
                parameter.copy_(
                    torch.linspace(0.5, 1.5, 8).view(8, 1, 1, 1).expand_as(parameter)
                    / parameter[0].numel()
                )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def bright(width, height, box):
    pixels = np.full((height, width, 3), 20, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 250
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("settings", "width", "height", "offset"),
    [
        (CROP, 3 * SIDE, SIDE, (SIDE, 0)),
        (CROP, SIDE, 2 * SIDE, (0, SIDE // 2)),
        (SMALL_CROP, 80, 40, (24, 4)),
        (SQUARE, SIDE, SIDE, (0, 0)),
        (DOUBLED, SIDE, SIDE, (0, 0)),
    ],
)
def test_the_thumbnail_is_bright_where_the_model_saw_the_patch(
    tmp_path, settings, width, height, offset
):
    (tmp_path / "model").mkdir()
    saved_model(tmp_path / "model", settings)
    view = ModelView(str(tmp_path / "model"), (GRID, GRID))
    for place in range(GRID * GRID):
        row, column = divmod(place, GRID)
        x, y = offset[0] + column * PATCH, offset[1] + row * PATCH
        seen = np.asarray(
            view(bright(width, height, (x, y, x + PATCH, y + PATCH))).convert("L"), float
        )
        assert seen.shape == (SIDE, SIDE)
        means = seen.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        assert int(means.argmax()) == place and means.max() == pytest.approx(250, abs=1)
        assert np.sort(means.ravel())[-2] == pytest.approx(20, abs=1), (
            "colors are those of the file, without the normalization"
        )


def test_a_whole_page_lights_the_bright_patch(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "model").mkdir()
    saved_model(tmp_path / "model", CROP)
    places = [(row, column) for row in range(GRID) for column in range(GRID)]
    for i, (row, column) in enumerate(places * 2):
        x, y = SIDE + column * PATCH, row * PATCH
        bright(3 * SIDE, SIDE, (x, y, x + PATCH, y + PATCH)).save(
            tmp_path / f"pictures/{i:02d}.png"
        )
    saekit.harvest(
        str(tmp_path / "model"),
        str(tmp_path / "pictures"),
        tmp_path / "acts",
        hook="blocks.0",
        dtype="float32",
        holdout=0.2,
    )
    saekit.train(tmp_path / "acts", tmp_path / "run", model="pca", latents=1, rows=500)
    saekit.inspect(tmp_path / "run", tmp_path / "acts", tmp_path / "page", top=40, jsonl=True)
    (record,) = [
        json.loads(line) for line in (tmp_path / "page/features.jsonl").read_text().splitlines()
    ]
    strongest = [e for e in record["examples"] if abs(e["act"]) > 0.9 * record["max"]]
    assert {e["position"] for e in strongest} == set(range(GRID * GRID)), (
        "every patch is the lit one in some picture"
    )
    for example in strongest:
        name = next((tmp_path / "page/images").glob(example["image"].split(".")[0] + "*"))
        shown = np.asarray(Image.open(io.BytesIO(name.read_bytes())).convert("L"), float)
        brightness = (
            shown.reshape(GRID, shown.shape[0] // GRID, GRID, shown.shape[1] // GRID)
            .mean((1, 3))
            .ravel()
        )
        values = np.abs(np.array(example["values"]))
        assert int(values.argmax()) == int(brightness.argmax()) == example["position"]


def test_pictures_without_a_processor_are_said_to_be_whole(tmp_path):
    import shutil

    (tmp_path / "pictures").mkdir()
    (tmp_path / "model").mkdir()
    saved_model(tmp_path / "model", CROP)
    for i in range(8):
        bright(2 * SIDE, SIDE, (i * 4, 0, i * 4 + 8, 8)).save(tmp_path / f"pictures/{i}.png")
    saekit.harvest(
        str(tmp_path / "model"),
        str(tmp_path / "pictures"),
        tmp_path / "acts",
        hook="blocks.0",
        dtype="float32",
        holdout=0.2,
    )
    saekit.train(tmp_path / "acts", tmp_path / "run", model="pca", latents=1, rows=100)
    shutil.rmtree(tmp_path / "model")
    said = []
    saekit.inspect(
        tmp_path / "run",
        tmp_path / "acts",
        tmp_path / "page",
        features="all",
        top=3,
        progress=said.append,
    )
    assert any("shown whole" in (p.message or "") for p in said)
    shown = Image.open(next((tmp_path / "page/images").iterdir()))
    assert shown.size == (2 * SIDE, SIDE)

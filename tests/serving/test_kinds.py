"""Other models than a language model with one hook: crosscoders, vision models without a head,
encoders."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import tiny
from crosscoder_fixture import tiny_crosscoder
from PIL import Image
from served import CPU, Running

import saekit
from saekit.serving.workbench import open_workbench

TEXT = "the cat sat on a mat and ran home"


def test_a_crosscoder_reads_with_all_its_models(tmp_path):
    run, *stores = tiny_crosscoder(tmp_path)
    bench = open_workbench(run, stores, device=CPU)
    with Running(bench) as running:
        about = running.client.send("about").json
        answer = running.client.send("text", {"text": TEXT}).json
        refused = running.client.send("steer", {"prompt": "the", "latents": {"1": 1}})
        record = running.client.send(f"latents/{answer['ranked'][0][0]}").json["record"]
    expected = saekit.features(run, stores, text=TEXT, sort="act", top=50)
    assert answer["ranked"] == [[row.index, row.act] for row in expected]
    assert len(answer["contexts"][0]["rows"]) == 9
    # its hooks are in two models, and only one of them could be steered
    assert not about["steering"] and refused.status == 400
    assert refused.json["error"] == about["steering_fault"]
    assert record["examples"] and record["neighbours"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """(model, store, run) of a tiny vision transformer without a head, and its first image."""
    folder = tmp_path_factory.mktemp("vision")
    model = tiny.save("vit", folder / "vit")
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)
    (folder / "photos").mkdir()
    for number, pixels in enumerate(pixels_NHWC):
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    saekit.harvest(model, folder / "photos", folder / "store", hook="blocks.1", dtype="float32")
    saekit.train(folder / "store", folder / "run", latents=16, k=2, rows=128, batch=32)
    return folder


def encoded(content: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(content).decode()}


def test_an_image_model_without_a_head_reads_and_does_not_steer(vision):
    bench = open_workbench(vision / "run", [vision / "store"], device=CPU)
    first = vision / "photos" / "0.png"
    with Running(bench) as running:
        client = running.client
        about = client.send("about").json
        answer = client.send("image", encoded(first.read_bytes())).json
        steered = client.send("steer", encoded(b"") | {"latents": {"1": 1}})
        wrong = client.send("text", {"text": "the cat"})
        damaged = client.send("image", encoded(first.read_bytes()[:60]))
        not_base64 = client.send("image", {"image": "%%"})
        (latent, _), *_ = answer["ranked"]
        record = client.send(f"latents/{latent}").json["record"]
        key = record["examples"][0]["image"]
        thumbnail = client.send(f"images/{key}")
    ranked = saekit.features(vision / "run", vision / "store", image=first, sort="act", top=50)
    assert answer["ranked"] == [[row.index, row.act] for row in ranked]
    (context,) = answer["contexts"]
    assert [row["at"] for row in context["rows"]] == list(range(16))
    # the picture is what the model sees: resized to its square
    seen = Image.open(io.BytesIO(base64.b64decode(context["picture"])))
    assert seen.size == (tiny.SIDE, tiny.SIDE)
    assert not about["steering"] and "no classification head" in about["steering_fault"]
    assert steered.status == 400 and "no classification head" in steered.json["error"]
    assert wrong.status == 400 and "of images, not of texts" in wrong.json["error"]
    assert damaged.status == 400 and "the image" in damaged.json["error"]
    assert not_base64.status == 400 and "base64" in not_base64.json["error"]
    assert thumbnail.status == 200 and thumbnail.headers["content-type"] == "image/png"


def test_an_encoder_reads_and_does_not_steer(tmp_path):
    model = tiny.save("bert", tmp_path / "bert")
    (tmp_path / "words.txt").write_text("\n\n".join([TEXT, "a dog ran far away from it"] * 8))
    options = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
    saekit.harvest(model, tmp_path / "words.txt", tmp_path / "store", **options)
    saekit.train(tmp_path / "store", tmp_path / "run", latents=16, k=2, rows=256, batch=32)
    bench = open_workbench(tmp_path / "run", [tmp_path / "store"], device=CPU)
    answer = bench.reader.read(document(TEXT), lambda _: None)
    expected = saekit.features(tmp_path / "run", tmp_path / "store", text=TEXT, sort="act", top=50)
    assert answer["ranked"] == [[row.index, row.act] for row in expected]
    assert bench.steering is None and "writes no text" in bench.about["steering_fault"]


def document(text: str):
    from saekit.harvesting.sources import Document

    return Document(0, "input", text)

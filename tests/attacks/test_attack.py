"""The verb, from Python and from the command line, with the files that it writes."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from command import saekit as command
from PIL import Image
from saekit_cli.attack import EXAMPLES
from safetensors.torch import load_file, save_file

import saekit
from saekit.attacks.page import difference
from saekit.attacks.pixels import pixels_of
from saekit.attacks.run import parsed_eps
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.run import harvest
from saekit.indexing.maxima import indexed_maxima
from saekit.training.run import train

EIGHT, FIVE = "embedded:digits:8", "embedded:digits:5"
SMALL = {"steps": 4, "eps": "16/255"}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A small dictionary of the digits, with its store."""
    folder = tmp_path_factory.mktemp("attack")
    harvest("embedded:digits-vit", "embedded:digits", folder / "store", hook="blocks.1", rows=6400)
    train(folder / "store", folder / "run", latents=32, k=4, rows=6000, batch=256)
    return folder / "run"


def test_a_class_is_attacked(aim, classifier):
    result = saekit.attack(classifier, image=[EIGHT, FIVE], **SMALL)
    assert result.eps == 16 / 255 and (result.method, result.norm, result.steps) == (
        "pgd",
        "linf",
        4,
    )
    for image, (before, after) in zip(result.images, result.pixels):
        clean, changed = (
            aim.logits(pixels[None]).softmax(1)[0].detach() for pixels in (before, after)
        )
        own = int(clean.argmax())
        assert image.label == image.before.label == f"LABEL_{own}"
        assert image.before.probability == pytest.approx(float(clean.max()), abs=1e-5)
        assert image.after.label == f"LABEL_{int(changed.argmax())}"
        assert float(changed[own]) < float(clean[own])
        assert image.success == (image.after.label != image.label)
        change = (after.double() - before.double()).abs()
        assert image.linf == float(change.max()) <= 16 / 255
        assert image.l2 == pytest.approx(float(change.square().sum().sqrt()))
        assert image.latents == [] and image.target is None and image.after.activation is None
    assert torch.equal(result.pixels[0][0], pixels_of(EIGHT, aim.live, aim.scale)[0])
    # one by one as together, and other options
    alone = saekit.attack(classifier, image=EIGHT, **SMALL)
    assert alone.images[0].after.probability == pytest.approx(
        result.images[0].after.probability, abs=1e-5
    )
    to = saekit.attack(classifier, image=EIGHT, target=3, norm="l2", eps=4, steps=12)
    assert to.images[0].success and to.images[0].after.label == "LABEL_3"
    assert to.images[0].l2 <= 4 and to.images[0].target == "LABEL_3"
    away = saekit.attack(classifier, image=EIGHT, label="LABEL_1", method="fgsm")
    assert away.images[0].label == "LABEL_1" and away.steps == 1


def test_a_latent_is_attacked_with_the_maximum_of_the_index(run):
    saekit.attack(run, latent=0, start="noise", steps=1)  # indexes the store
    maxima = indexed_maxima(run, json.loads((run / "config.json").read_text()), 32)
    assert maxima is not None
    latent = int(maxima.argmax())
    result = saekit.attack(run, image=EIGHT, latent=latent, **SMALL)
    assert repr(result).startswith(f"AttackResult({result.objective!r}, method=")
    assert f"result={result.summary!r}" in repr(result)
    (image,) = result.images
    assert result.maximum == float(maxima.max())
    assert image.after.activation > image.before.activation
    assert image.success == (image.after.activation > result.maximum)
    assert image.label is image.target is None and image.before.label == "LABEL_8"
    assert 0 < len(image.latents) <= 10
    sizes = [abs(change.after - change.before) for change in image.latents]
    assert sizes == sorted(sizes, reverse=True)
    silenced = saekit.attack(run, image=EIGHT, latent=latent, direction="silence", eps=0.5, steps=8)
    assert silenced.images[0].after.activation < silenced.images[0].before.activation
    assert silenced.images[0].success == (silenced.images[0].after.activation == 0)


def test_files_are_the_pictures_and_the_page_has_the_numbers(classifier, tmp_path):
    out = tmp_path / "out"
    result = saekit.attack(classifier, image=[EIGHT, FIVE], out=out, **SMALL)
    assert result.report == str(out / "report.html")
    for index, (before, after) in enumerate(result.pixels):
        shown = {"before": before, "after": after, "difference": difference(before, after)}
        for name, pixels in shown.items():
            read = np.array(Image.open(out / f"{name}-{index}.png"))
            assert np.array_equal(read, (pixels[0] * 255).round().numpy().astype(np.uint8))
    html = (out / "report.html").read_text()
    block = re.search(r'id="numbers">(.*?)</script>', html)
    assert block is not None
    numbers = json.loads(block[1])["attack"]
    assert numbers["images"][1]["after"]["probability"] == result.images[1].after.probability
    assert html.count("<img ") == 2 and "pixels" not in numbers
    # the rounded picture is the one in the file
    again = saekit.attack(classifier, image=str(out / "after-0.png"), method="fgsm")
    assert again.images[0].before.probability == pytest.approx(
        result.images[0].rounded.probability, abs=1e-5
    )
    with pytest.raises(DataError, match="out"):
        saekit.attack(classifier, image=EIGHT, out=out, **SMALL)
    saekit.attack(classifier, image=EIGHT, out=out, overwrite=True, **SMALL)
    assert not (out / "before-1.png").exists()
    # equal commands give equal pages
    first = (out / "report.html").read_bytes()
    saekit.attack(classifier, image=EIGHT, out=out, overwrite=True, **SMALL)
    assert (out / "report.html").read_bytes() == first


def test_the_tenfold_difference_by_hand():
    before, after = torch.tensor([0.5, 0.5, 0.5, 0.0]), torch.tensor([0.51, 0.47, 0.9, 0.0])
    assert difference(before, after).tolist() == pytest.approx([0.6, 0.2, 1.0, 0.5])


def test_a_picture_from_noise_beside_the_real_ones(run, tmp_path):
    result = saekit.attack(
        run, latent=3, start="noise", steps=12, restarts=2, out=tmp_path / "made"
    )
    assert len(result.images) == 2 and len(result.curve) == 12
    if result.images[0].activation > 0:  # the score is then the pre-activation
        assert result.curve[-1] == pytest.approx(result.images[0].preactivation, abs=1e-4)
    assert result.curve[-1] > result.curve[0]
    values = [value for _, value in result.top]
    assert values == sorted(values, reverse=True)
    if values:  # the scan's strongest row
        assert result.maximum == pytest.approx(values[0], abs=1e-4)
        assert result.share == pytest.approx(result.images[0].activation / values[0], abs=1e-4)
    assert sorted(path.name for path in (tmp_path / "made").glob("*.png")) == [
        "made-0.png", "made-1.png",
    ]  # fmt: skip
    assert result.report and "real pictures" in (tmp_path / "made" / "report.html").read_text()


def test_without_the_store_of_the_training_the_page_has_no_real_pictures(run, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    text = (moved / "config.toml").read_text()
    (moved / "config.toml").write_text(
        text.replace(str(run.parent / "store"), str(tmp_path / "no"))
    )
    told = []
    result = saekit.attack(moved, latent=3, start="noise", steps=1, progress=told.append)
    assert result.top == [] and "no real pictures" in " ".join(p.message or "" for p in told)
    with pytest.raises(MissingError, match="not a store"):  # one that was asked for
        saekit.attack(moved, latent=3, start="noise", steps=1, store=tmp_path / "none")


def test_the_command_line_prints_a_table_and_json(run, capsys, tmp_path):
    status, out, err = command(capsys, "attack", "embedded:digits-vit", "--image", EIGHT, "-q")
    assert status == 0 and "of 1 succeeded" in out and "LABEL_8" in out, err
    status, out, err = command(
        capsys, "attack", run, "--image", EIGHT, "--latent", 3, "--method", "fgsm", "--json", "-q"
    )
    assert status == 0, err
    value = json.loads(out)
    assert value["latent"] == 3 and value["direction"] == "raise" and value["method"] == "fgsm"
    assert value["images"][0]["image"] == EIGHT and value["images"][0]["latents"]
    status, out, err = command(
        capsys, "attack", run, "--latent", 3, "--from", "noise", "--steps", 2, "-q"
    )
    assert status == 0 and "steps from noise" in out, err
    status, _, err = command(capsys, "attack", "embedded:digits-vit")
    assert status == 2 and "--image, or --from noise" in err


def test_options_that_do_not_go_together_are_refused(classifier, sae):
    for options, text in (
        ({}, "no picture"),
        ({"image": EIGHT, "target": 1, "label": 2}, "give one of them"),
        ({"image": EIGHT, "target": 1, "latent": 2}, "two attacks"),
        ({"start": "noise"}, "needs latent"),
        ({"start": "noise", "latent": 1, "image": EIGHT}, "takes no image"),
        ({"image": EIGHT, "tv": 1.0}, "tv is for pictures from noise"),
        ({"image": EIGHT, "method": "cw"}, "method"),
        ({"image": EIGHT, "norm": "l1"}, "norm"),
        ({"image": EIGHT, "latent": 1}, "without a dictionary"),
    ):
        with pytest.raises(UsageError, match=text):
            saekit.attack(classifier, **options)
    for text in ("x", "1/0", "1/2/3", "nan"):
        with pytest.raises(UsageError, match="not a number"):
            parsed_eps(text)
    assert parsed_eps("8/255") == 8 / 255 and parsed_eps("0.03") == 0.03 == parsed_eps(0.03)
    with pytest.raises(DataError, match="not a class"):
        saekit.attack(classifier, image=EIGHT, target="cat")


def test_a_model_is_left_as_it_was(classifier):
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    saekit.attack(classifier, image=EIGHT, **SMALL)
    assert not any(p.requires_grad or p.grad is not None for p in classifier.module.parameters())
    for name, value in classifier.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_was_so_before_is_no_success(classifier, aim):
    name = "LABEL_5"  # of the picture
    result = saekit.attack(classifier, image=[FIVE, EIGHT], target=name, eps="1/255", steps=2)
    assert [image.success for image in result.images] == [None, False]
    assert result.successes == 0 and result.summary == "0 of 1 succeeded, 1 already so"
    other = saekit.attack(classifier, image=FIVE, label="LABEL_1", method="fgsm")
    assert other.images[0].success is None and other.summary == "1 already so"
    # a latent that is silent already, and one that is not
    quiet = copy.deepcopy(aim.dictionary.model)
    quiet.threshold[7] = 1e3
    options = {"hook": aim.dictionary.hook, "model": classifier, "steps": 2}
    silent = saekit.attack(quiet, image=FIVE, latent=7, direction="silence", **options)
    assert silent.images[0].before.activation == 0 and silent.images[0].success is None
    raised = saekit.attack(quiet, image=FIVE, latent=7, **options)
    assert raised.images[0].success is False and raised.already == 0


def test_budgets_that_no_change_reaches_are_refused(classifier):
    for options, text in (
        ({"eps": 8}, "write 8/255"),
        ({"eps": 1.01}, "above 1"),
        ({"eps": 8.01, "norm": "l2"}, "above 8"),  # 8 by 8 pixels
    ):
        with pytest.raises(UsageError) as caught:
            saekit.attack(classifier, image=FIVE, **options)
        assert text in f"{caught.value} {caught.value.hint}"
    widest = saekit.attack(classifier, image=FIVE, eps=8, norm="l2", method="fgsm")
    assert widest.eps == 8


def test_the_classes_are_listed_for_one_that_is_unknown(classifier):
    with pytest.raises(DataError) as caught:
        saekit.attack(classifier, image=FIVE, target="three")
    assert "below 10" in str(caught.value.hint) and "LABEL_3, LABEL_4" in str(caught.value.hint)


def test_a_latent_that_never_fires_is_noted(run, tmp_path):
    dead = tmp_path / "run"
    shutil.copytree(run, dead, ignore=shutil.ignore_patterns("index"))
    tensors = load_file(dead / "model.safetensors")
    tensors["b_enc"][5] = -1e3
    save_file(tensors, dead / "model.safetensors")
    told: list[str] = []

    def tell(progress):
        told.append(progress.message or "")

    saekit.attack(dead, latent=5, start="noise", steps=1, progress=tell)  # indexes the store
    result = saekit.attack(dead, image=EIGHT, latent=5, steps=1, progress=tell)
    assert result.maximum == 0
    assert len([text for text in told if "latent 5 never fires" in text]) == 2
    told.clear()
    assert saekit.attack(dead, image=EIGHT, latent=6, steps=1, progress=tell).maximum > 0
    assert not any("never fires" in text for text in told)


def test_the_first_example_of_the_help_deceives(capsys):
    status, out, err = command(capsys, *shlex.split(EXAMPLES[0])[1:], "-q")
    assert status == 0 and "1 of 1 succeeded" in out, err

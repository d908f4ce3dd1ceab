"""Damaged folders end in a user's error with the file, the cause and a next step; what saekit
itself does wrong stays a bug."""

from __future__ import annotations

import json
import shutil
import subprocess
from random import Random

import pytest
import tiny
import torch

from saekit.errors import DataError, MissingError, SaekitError
from saekit.harvesting.models import load_model
from saekit.harvesting.reading import first_line, forward_pass
from saekit.harvesting.tokens import check_context

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """copy('bert') -> a fresh copy of that family's folder."""
    root, count = tmp_path_factory.mktemp("models"), iter(range(1000))
    for family in ("llama", "bert", "vit", "dinov2"):
        tiny.save(family, root / family)
    return lambda family: shutil.copytree(root / family, root / f"{family}-{next(count)}")


def refusal(folder) -> SaekitError:
    with pytest.raises(SaekitError) as raised:
        loaded = load_model(str(folder))
        _ = loaded.tokenizer if loaded.modality == "text" else None
    assert (
        raised.value.exit_status in (3, 4) and raised.value.hint and "bug" not in str(raised.value)
    )
    return raised.value


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("bert", "model.safetensors"),
        ("bert", "config.json"),
        ("llama", "tokenizer.json"),
        ("vit", "preprocessor_config.json"),
    ],
)
@pytest.mark.parametrize(
    ("content", "said"), [(POINTER, "git-lfs pointer"), (b"", "empty"), (b"\x00\xff{", "")]
)
def test_what_stands_in_the_place_of_a_file_is_named(folders, family, file, content, said):
    folder = folders(family)
    (folder / file).write_bytes(content)
    error = refusal(folder)
    assert str(folder / file) in str(error) and said in str(error)
    assert not content.startswith(b"version") or error.hint == f"git -C {folder} lfs pull"


def test_half_a_download_says_how_much_there_is(folders):
    folder = folders("vit")
    weights = folder / "model.safetensors"
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: whole - 1000])
    assert f"holds {whole - 1000:,} of {whole:,} bytes" in str(refusal(folder))


def test_half_a_bin_file(folders):
    folder = folders("bert")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.random_model("bert").state_dict(), folder / "pytorch_model.bin")
    load_model(str(folder))
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:9000])
    assert "pytorch_model.bin is not whole" in str(refusal(folder))


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[7]",
        "{}",
        '{"model_type": "bert", "num_attention_heads": 0}',
        '{"model_type": "gpt2", "n_embd": "wide"}',
    ],
)
def test_a_config_that_is_no_config(folders, text):
    folder = folders("bert")
    (folder / "config.json").write_text(text)
    assert isinstance(refusal(folder), DataError)


def test_a_broken_file_that_is_not_read_is_not_the_cause(folders):
    folder = folders("bert")
    (folder / "trainer_state.json").write_text("{")
    (folder / "tokenizer.json").write_text("{")
    assert load_model(str(folder)).blocks == tiny.LAYERS
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(refusal(folder)) and "JSON" not in str(refusal(folder))


def test_the_cause_is_kept(folders):
    folder = folders("llama")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    error = refusal(folder)
    assert error.__cause__ is not None and first_line(error.__cause__) in str(error)
    assert "no tokenizer" not in str(error)


def test_list_hooks_needs_no_tokenizer(folders):
    folder = folders("llama")
    (folder / "tokenizer.json").write_text("{")
    assert load_model(str(folder)).blocks == tiny.LAYERS


def test_weights_and_processors_that_are_missing(folders):
    folder = folders("bert")
    (folder / "model.safetensors").unlink()
    assert isinstance(refusal(folder), MissingError)
    folder = folders("vit")
    (folder / "preprocessor_config.json").unlink()
    assert isinstance(refusal(folder), MissingError) and "no image processor" in str(
        refusal(folder)
    )


@pytest.mark.parametrize("settings", [{"image_mean": [0.5]}, {"size": {"height": 0, "width": 4}},
    {"image_processor_type": "OwnProcessor"},
                                      {"image_processor_type": 8}])  # fmt: skip
def test_processors_with_odd_settings(folders, settings):
    folder = folders("vit")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert "image processor" in str(refusal(folder))


def test_a_processor_of_another_size_names_both(folders):
    size = {"size": {"height": 20, "width": 24}}
    for family in ("vit", "dinov2"):
        folder = folders(family)
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | size))
        if family == "vit":  # it takes one size
            error = refusal(folder)
            assert (
                "gives 20x24 pixels, the model takes 16x16" in str(error)
                and '{"height": 16, "width": 16}' in error.hint
            )
        else:  # it interpolates its positions
            assert load_model(str(folder)).image_tokens.grid == (5, 6)


def test_a_forward_pass_that_fails_in_the_model_is_a_data_error(live):
    loaded = live("bert")
    with pytest.raises(DataError, match=r"fails in its forward pass on input_ids 1x70") as raised:
        loaded.forward({"input_ids": torch.full((1, 70), 7)})  # 64 positions
    assert raised.value.__cause__ is not None


def test_what_fails_in_a_line_of_saekit_stays_a_bug():
    import saekit

    line = compile("1 / 0", saekit.__file__, "exec")
    with pytest.raises(ZeroDivisionError), forward_pass("a model", {}):
        exec(line)
    with (
        pytest.raises(
            DataError, match="a model fails in its forward pass on x 2x3: ZeroDivisionError"
        ),
        forward_pass("a model", {"x": torch.ones(2, 3)}),
    ):
        exec(compile("1 / 0", "modeling_of_someone.py", "exec"))


def test_models_of_text_and_images_are_refused_before_they_load(tmp_path):
    import transformers

    parts = dict(
        vision_config=dict(tiny.IMAGE, model_type="siglip_vision_model"),
        text_config=dict(tiny.SHAPE, model_type="qwen2", vocab_size=20),
    )
    transformers.LlavaConfig(**parts, image_token_index=3).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="reads text and images in one sequence") as raised:
        load_model(str(tmp_path))
    assert "language_model.save_pretrained" in raised.value.hint


def test_the_hint_for_such_a_model_works_when_typed(tmp_path):
    import sys

    import transformers

    parts = dict(
        vision_config=dict(tiny.IMAGE, model_type="clip_vision_model"),
        text_config=dict(tiny.SHAPE, model_type="llama", vocab_size=20),
    )
    transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(**parts, image_token_index=3)
    ).save_pretrained(tmp_path / "both")
    tiny.tokenizer().save_pretrained(tmp_path / "both")
    with pytest.raises(DataError) as raised:
        load_model(str(tmp_path / "both"))
    command = raised.value.hint.removeprefix("save only its language model: python").partition(
        ", then"
    )[0]
    subprocess.run(
        f"{sys.executable} {command}", shell=True, cwd=tmp_path, check=True, capture_output=True
    )
    alone = load_model(str(tmp_path / "text-model"))
    assert (
        alone.kind == "causal_lm"
        and not alone.has_head
        and alone.blocks == tiny.LAYERS
        and alone.tokenizer.bos_token == "<s>"
    )


def test_mutated_folders_load_or_end_in_a_users_error(folders):
    """Seeded: values of the JSON files replaced or removed, bytes of any file changed, ends cut
    off."""
    random, odd = Random(0), [None, -1, 0, 2**40, 1e30, "x", [], {}, [1, 2], True]
    refused = 0
    for _ in range(60):
        folder = folders(random.choice(("llama", "bert", "vit")))
        file = random.choice(
            sorted(each for each in folder.iterdir() if each.suffix in (".json", ".safetensors"))
        )
        content = bytearray(file.read_bytes())
        if file.suffix == ".json" and random.random() < 0.7:
            settings = json.loads(content)
            settings[random.choice(sorted(settings))] = random.choice(odd)
            content = json.dumps(settings).encode()
        else:
            content[random.randrange(min(len(content), 2000))] = random.randrange(256)
            content = (
                content[: random.randrange(len(content))] if random.random() < 0.3 else content
            )
        file.write_bytes(content)
        try:
            loaded = load_model(str(folder))
            loaded.probe(["blocks.0"])
            if loaded.modality == "text":
                check_context(loaded, 16, pack=False)
        except SaekitError as error:
            refused += 1
            assert (
                error.exit_status in (3, 4) and str(folder) in str(error)
            ) or "image processor" in str(error)
        shutil.rmtree(folder)
    assert refused > 20


@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", "vocab_size"), ("bert", "intermediate_size"), ("bert", "hidden_size")],
)
def test_a_config_of_a_few_bytes_takes_no_memory(folders, family, key):
    folder = folders(family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: 2**36}))
    assert f"{key} {2**36}" in str(refusal(folder)) and "bytes in all" in str(refusal(folder))


def test_a_processor_of_a_few_bytes_takes_no_memory(folders):
    folder = folders("vit")
    path = folder / "preprocessor_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"size": {"height": 90_000, "width": 90_000}})
    )
    assert "asks for 90000 pixels per side" in str(refusal(folder))

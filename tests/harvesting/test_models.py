from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny as tiny
import torch

from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.hooks import capture
from saekit.harvesting.images import pil_processor
from saekit.harvesting.models import load_model, not_found


@pytest.mark.parametrize("family", [*tiny.TEXT, *tiny.VISION])
def test_every_family_loads_with_the_saved_values(live, family):
    loaded = live(family)
    assert loaded.kind == (
        "vision" if family in tiny.VISION else "text_encoder" if family == "bert" else "causal_lm"
    )
    assert loaded.blocks == tiny.LAYERS
    assert not loaded.module.training and not any(
        parameter.requires_grad for parameter in loaded.module.parameters()
    )
    assert loaded.revision.startswith("files:")
    assert loaded.probe(["blocks.0", "blocks.1.mlp:in"]) == {
        "blocks.0": tiny.WIDTH,
        "blocks.1.mlp:in": loaded_mlp_width(family),
    }
    inputs = {"input_ids": tiny.ids()} if family in tiny.TEXT else {"pixel_values": tiny.pixels()}
    with torch.no_grad(), capture(loaded, ["blocks.1"], stop=True) as states:
        loaded.forward(inputs)
    original = tiny.random_model(family)
    part = original.vision_model if family in ("clip", "siglip") else original
    with torch.no_grad():
        expected = part(**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(states["blocks.1"], expected)


def loaded_mlp_width(family):
    # BERT's `mlp` is the second dense layer, Bloom's the last linear of the MLP: both enter with
    # the inner width.
    return {"bert": 48, "bloom": 4 * tiny.WIDTH}.get(family, tiny.WIDTH)


@pytest.mark.parametrize("family", tiny.VISION)
def test_image_tokens_are_told_apart_by_the_models_own_parameters(live, family):
    tokens = live(family).image_tokens
    assert tokens.has_cls == tiny.HAS_CLS[family]
    assert tokens.registers == (tiny.REGISTERS if tiny.HAS_REGISTERS[family] else 0)
    assert tokens.grid == (4, 4) and tokens.size == (tiny.SIDE, tiny.SIDE) and tokens.channels == 3


def test_a_note_says_when_images_are_prepared_by_another_processor(live):
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed, so DINOv3 has its own processor")
    assert "torchvision is not installed" in live("dinov3").notes[0]
    assert live("vit").notes == ()


def test_only_the_image_tower_of_a_dual_model_runs(live):
    loaded = live("clip")
    calls = []
    handle = loaded.module.text_model.register_forward_pre_hook(lambda *_: calls.append("text"))
    loaded.forward({"pixel_values": tiny.pixels()})
    handle.remove()
    assert loaded.tower == "vision_model" and calls == []


def test_dtype_is_what_was_asked_for(tmp_path):
    folder = tiny.save("vit", tmp_path)
    loaded = load_model(folder, dtype=torch.bfloat16)
    with torch.no_grad(), capture(loaded, "blocks.0", stop=True) as states:
        loaded.forward({"pixel_values": tiny.pixels()})
    assert loaded.dtype == states["blocks.0"].dtype == torch.bfloat16


def test_other_weights_in_the_same_folder_are_another_revision(tmp_path):
    before = load_model(tiny.save("vit", tmp_path)).revision
    again = load_model(str(tmp_path)).revision
    model = tiny.random_model("vit")
    with torch.no_grad():
        model.layernorm.weight.mul_(2)
    model.save_pretrained(tmp_path)
    assert before == again != load_model(str(tmp_path)).revision


def test_a_folder_without_a_config_points_to_one_below(tmp_path):
    (tmp_path / "run").mkdir()
    tiny.save("vit", tmp_path / "run")
    with pytest.raises(DataError, match=r"holds no config.json") as raised:
        load_model(str(tmp_path))
    assert (
        raised.value.hint == f"did you mean {tmp_path / 'run'}?" and raised.value.exit_status == 3
    )


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "absent.gguf", "~/absent"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(MissingError, match=r"there is no model at") as raised:
        load_model(name)
    assert raised.value.exit_status == 4


def test_a_hub_id_that_is_not_cached_says_that_offline_mode_is_on(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingError,
        match=r"model nobody/nothing is not a folder here and not in the local cache",
    ) as raised:
        load_model("nobody/nothing")
    assert "unset HF_HUB_OFFLINE" in raised.value.hint and raised.value.exit_status == 4


def test_a_gated_model_says_whether_a_token_is_set(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    error = not_found(
        "model",
        "big/model",
        OSError("You are trying to access a gated repo.\nMake sure to have access"),
    )
    assert (
        "gated" in str(error) and "no token is set" in str(error) and "hf auth login" in error.hint
    )


def test_an_unreachable_hub_is_told_from_a_wrong_id(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    unreachable = not_found(
        "model",
        "big/model",
        OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
    )
    wrong = not_found(
        "model",
        "big/modle",
        OSError("big/modle is not a local folder and is not a valid model identifier"),
    )
    assert (
        "the hub cannot be reached (offline mode is off)" in str(unreachable)
        and "network" in unreachable.hint
    )
    assert str(wrong).startswith("model big/modle was not found")


def test_importing_the_parts_loads_neither_transformers_nor_datasets():
    code = (
        "import sys; from saekit.harvesting import hooks, inputs, models, sources\nprint([name for"
        " name in ('transformers', 'datasets', 'sklearn', 'PIL') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("family", ["vit", "clip", "siglip"])
def test_the_processors_own_pil_edition_is_taken_where_there_is_one(tmp_path, family):
    """transformers 5.17 gives no AutoImageProcessor without torchvision; the class that the
    settings name is found."""
    processor, notes = pil_processor(tiny.save(family, tmp_path))
    assert (
        type(processor).__name__ == tiny.PROCESSORS.get(family, "ViTImageProcessor") + "Pil"
        and notes == ()
    )


def test_an_unknown_embedded_name_is_a_usage_error():
    with pytest.raises(UsageError, match=r"embedded:digit-vit is not an embedded model") as raised:
        load_model("embedded:digit-vit")
    assert raised.value.hint.startswith("did you mean digits-vit?")


def test_a_model_of_unknown_type_is_a_data_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(DataError, match=r"cannot be loaded by transformers"):
        load_model(str(tmp_path))


def test_a_model_of_sound_is_refused(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    Wav2Vec2Model(
        Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,),
                       conv_stride=(2,), conv_kernel=(3,), num_conv_pos_embeddings=4,
                       num_conv_pos_embedding_groups=2)
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(DataError, match=r"takes neither text nor images"):
        load_model(str(tmp_path))


def test_a_model_without_tokenizer_loads_and_says_so_when_text_is_read(tmp_path):
    tiny.random_model("llama").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    with pytest.raises(MissingError, match=r"has no tokenizer"):
        _ = loaded.tokenizer


def test_an_encoder_decoder_runs_its_encoder_only(tmp_path):
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    model = T5Model(
        T5Config(
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=2,
            vocab_size=tiny.VOCAB,
        )
    )
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.tower == "encoder" and loaded.blocks == 2 and loaded.kind == "text_encoder"
    with (
        torch.no_grad(),
        capture(
            loaded, ["blocks.0", "blocks.1:in", "blocks.0.attn", "blocks.0.mlp", "blocks.0:in"]
        ) as states,
    ):
        loaded.forward({"input_ids": tiny.ids()})
    torch.testing.assert_close(
        states["blocks.0"], states["blocks.0:in"] + states["blocks.0.attn"] + states["blocks.0.mlp"]
    )
    torch.testing.assert_close(states["blocks.0"], states["blocks.1:in"])

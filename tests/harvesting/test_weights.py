"""Which weights are those of the file. Every expected value is the tensor that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError
from saekit.harvesting.hooks import capture
from saekit.harvesting.models import load_model

V = tiny.VOCAB
DEEP = dict(tiny.SHAPE, vocab_size=V, max_position_embeddings=64)
VIT = tiny.IMAGE
# Classes that save a head, whose base model is what is read; and bare models whose class is read
# with a head.
LEGITIMATE = {
    "BertForMaskedLM": ("BertConfig", DEEP),
    "BertForPreTraining": ("BertConfig", DEEP),
    "BertForSequenceClassification": ("BertConfig", DEEP),
    "ElectraForPreTraining": ("ElectraConfig", dict(DEEP, embedding_size=16)),
    "GPT2Model": ("GPT2Config", tiny.GPT2),
    "GPT2DoubleHeadsModel": ("GPT2Config", tiny.GPT2),
    "GPTNeoXForSequenceClassification": ("GPTNeoXConfig", dict(tiny.SHAPE, vocab_size=V)),
    "GemmaModel": ("GemmaConfig", dict(DEEP, num_key_value_heads=2, head_dim=8)),
    "OPTForCausalLM": ("OPTConfig", dict(hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, ffn_dim=48, vocab_size=V,
                                        max_position_embeddings=64, word_embed_proj_dim=32)),
    "RobertaForMaskedLM": ("RobertaConfig", DEEP),
    "T5EncoderModel": ("T5Config", dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
    vocab_size=V)),
    "T5ForConditionalGeneration": ("T5Config", dict(d_model=32, d_kv=8, d_ff=48, num_layers=2,
    num_heads=4, vocab_size=V)),
    "BeitForMaskedImageModeling": ("BeitConfig", VIT),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", VIT),
    "DeiTForImageClassification": ("DeiTConfig", VIT),
    "Dinov2ForImageClassification": ("Dinov2Config", VIT),
    "SiglipVisionModel": ("SiglipVisionConfig", VIT),
    "ViTForImageClassification": ("ViTConfig", VIT),
    "ViTForMaskedImageModeling": ("ViTConfig", VIT),
    "ViTMAEForPreTraining": ("ViTMAEConfig", dict(VIT, mask_ratio=0.0, decoder_hidden_size=16,
    decoder_num_attention_heads=2)),
}  # fmt: skip


def saved(class_name: str, folder: Path) -> torch.nn.Module:
    import transformers

    config_class, config = LEGITIMATE[class_name]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, config_class)(**config))
    with torch.no_grad():
        # none is a constant that an initialization would give too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    with quiet_transformers():
        model.save_pretrained(folder)
    if config is VIT or "mask_ratio" in config:
        (folder / "preprocessor_config.json").write_text(json.dumps(tiny.processor_config("vit")))
    return model


@pytest.mark.parametrize("class_name", LEGITIMATE)
def test_every_weight_in_front_of_the_last_block_is_the_files(tmp_path, class_name):
    original = saved(class_name, tmp_path)
    loaded = load_model(str(tmp_path))
    known = [value for value in original.state_dict().values() if value.is_floating_point()]
    tower = loaded.module.get_submodule(loaded.tower)
    running = [
        (name, value)
        for name, value in tower.named_parameters()
        if not name.startswith(("pooler", "lm_head", "embed_out"))
    ]
    assert len(running) > 10
    strays = [
        name
        for name, value in running
        if not any(value.shape == each.shape and torch.equal(value, each) for each in known)
    ]
    assert strays == []


def edited(family: str, folder: Path, change) -> str:
    """The folder of `family`, its weights as `change` gives them."""
    tiny.save(family, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return str(folder)


def without(part: str):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


WRONG = {
    "a wrapper around one block": ("gpt2",
    lambda w: {("model." + k if ".h.1." in k else k): v for k, v in w.items()}, "h.1"),
    "a wrapper around a vision model": ("vit", lambda w: {"_fsdp_wrapped_module." + k: v for k,
    v in w.items()}, "_fsdp_wrapped_module"),
    "a block that is missing": ("gpt_neox", without("layers.1."), "layers.1.attention"),
    "one bias that is missing": ("bert", without("encoder.layer.2.output.dense.bias"),
    "encoder.layer.2.output.dense.bias"),
    "no embedding, tied head": ("gpt2", without("wte"), "wte.weight"),
    "no positions": ("clip_vision", without("position_embedding"), "position_embedding.weight"),
    "no image tower": ("siglip", without("vision_model."), "vision_model"),
    "a bias that the model has not": ("llama",
    lambda w: w | {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}, "up_proj.bias"),
    "a norm that the model has not": ("llama",
    lambda w: w | {"model.layers.0.self_attn.k_norm.weight": torch.ones(8)}, "k_norm"),
    "half a head": ("llama", lambda w: w | {"lm_head.weight": w["lm_head.weight"][:7]},
    "lm_head.weight is 7x32 in the file"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_are_not_the_files_are_named(tmp_path, wrong):
    family, change, named = WRONG[wrong]
    with pytest.raises(DataError, match=r"the weights of .* do not fit its config") as raised:
        load_model(edited(family, tmp_path, change))
    assert named in str(raised.value) and raised.value.hint and raised.value.exit_status == 3


def test_the_wrappers_prefix_is_told_in_the_hint(tmp_path):
    with pytest.raises(DataError) as raised:
        load_model(
            edited(
                "llama",
                tmp_path,
                lambda w: {"student.model." + name: value for name, value in w.items()},
            )
        )
    assert "'student.model.'" in raised.value.hint


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "num_hidden_layers", 2),
        ("bert", "num_hidden_layers", 4),
        ("vit", "intermediate_size", 40),
        ("gpt2", "vocab_size", 31),
    ],
)
def test_a_config_of_another_size_than_the_file(tmp_path, family, key, value):
    tiny.save(family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(DataError, match="do not fit its config"):
        load_model(str(tmp_path))


def test_a_wrapped_bin_file_and_a_shard_without_a_tensor(tmp_path):
    tiny.save("bert", tmp_path / "bin")
    weights = load_file(tmp_path / "bin" / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(
        {"module.bert." + name: value for name, value in weights.items()},
        tmp_path / "bin" / "pytorch_model.bin",
    )
    with pytest.raises(DataError, match="the file lacks"):
        load_model(str(tmp_path / "bin"))
    folder = tmp_path / "shards"
    tiny.save("llama", folder)
    (folder / "model.safetensors").unlink()
    with quiet_transformers():
        tiny.random_model("llama").save_pretrained(folder, max_shard_size="20KB")
    load_model(str(folder))
    shard = sorted(folder.glob("model-*.safetensors"))[2]
    weights = load_file(shard)
    gone = sorted(weights)[0]
    save_file(
        {name: value for name, value in weights.items() if name != gone},
        shard,
        metadata={"format": "pt"},
    )
    with pytest.raises(DataError, match="the file lacks 1 weight: ") as raised:
        load_model(str(folder))
    assert gone in str(raised.value)


def test_old_causal_masks_in_a_file_are_no_weights(tmp_path):
    masks = {
        f"transformer.h.{i}.attn.{name}": torch.ones(1, 1, 64, 64)
        for i in range(3)
        for name in ("bias", "masked_bias")
    }
    assert load_model(edited("gpt2", tmp_path, lambda weights: weights | masks)).has_head


def test_parts_that_do_not_run_may_be_missing(tmp_path):
    assert (
        load_model(edited("clip", tmp_path / "clip", without("text_model."))).tower
        == "vision_model"
    )
    assert (
        load_model(
            edited("siglip", tmp_path / "siglip", without("vision_model.head."))
        ).image_tokens.count
        == 16
    )


def test_without_a_head_hidden_states_are_right_and_there_are_no_logits(tmp_path):
    loaded = load_model(edited("llama", tmp_path, without("lm_head")))
    assert (
        not loaded.has_head and loaded.output_head is None and "no output head" in loaded.notes[0]
    )
    with torch.no_grad(), capture(loaded, "blocks.1", stop=True) as states:
        loaded.forward({"input_ids": tiny.ids()})
    with torch.no_grad():
        expected = tiny.random_model("llama")(tiny.ids(), output_hidden_states=True).hidden_states[
            2
        ]
    torch.testing.assert_close(states["blocks.1"], expected)
    # over no token
    assert loaded.forward({"input_ids": tiny.ids()}).logits.shape == (*tiny.ids().shape, 0)
    with pytest.raises(DataError, match="does not hold"):
        loaded.probe(["lm_head"])


def test_a_decoder_whose_head_has_several_parts_loses_them_all(tmp_path):
    """An encoder's file read as a decoder: BERT's head is a transform, a norm, an output layer and
    its bias."""
    tiny.save("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    loaded = load_model(str(tmp_path))
    assert (
        loaded.kind == "causal_lm"
        and not loaded.has_head
        and loaded.probe(["blocks.2"]) == {"blocks.2": tiny.WIDTH}
    )
    assert loaded.output_head is None


def test_a_tied_head_is_a_head(live):
    head = live("gpt2").output_head
    assert live("gpt2").has_head and torch.equal(
        head.weight, tiny.random_model("gpt2").transformer.wte.weight
    )
    assert live("bert").output_head is None and live("vit").output_head is None


def test_an_adapter_is_refused_and_not_left_out(tmp_path):
    tiny.save("llama", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="holds an adapter") as raised:
        load_model(str(tmp_path))
    assert "merge_and_unload" in raised.value.hint

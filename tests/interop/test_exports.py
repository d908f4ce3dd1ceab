"""What an export computes is what the checkpoint computes; what a format cannot say is refused."""

from __future__ import annotations

import json
from pathlib import Path

import made_dictionaries
import pytest
import torch
from command import saekit
from made_exports import FORMULAS, MODEL, D, F, checkpoint, differ, rows, weights

from saekit import export_dictionary
from saekit.errors import DataError, UsageError
from saekit.interop.exporting import WRITERS
from saekit.interop.lens_names import lens_name
from saekit.interop.opening import open_published
from saekit.interop.push import model_card
from saekit.models.sparsity import VARIANTS
from saekit.store.checkpoint import read_checkpoint, write_checkpoint
from saekit.training.checkpoints import load
from saekit.training.run import train
from saekit.types import ActivationSpec

AUTOENCODERS = [
    (sparsity, options)
    for sparsity in ("l1", "topk", "batchtopk", "jumprelu", "abs-topk")
    for options in ({}, {"subtract_b_dec": True})
]
TRANSCODERS = [
    (sparsity, {"d_out": D, "skip": skip})
    for sparsity in ("l1", "topk", "jumprelu")
    for skip in (False, True)
]
# format -> what it holds of autoencoders, of transcoders
CAN = {
    "saelens": ({"l1", "topk", "batchtopk", "jumprelu", "abs-topk"}, {"l1", "jumprelu"}),
    "sparsify": ({"topk"}, {"topk"}),
    "dictionary_learning": ({"l1", "topk", "batchtopk", "jumprelu"}, set()),
    "gemma_scope_2": ({"l1", "batchtopk", "jumprelu"}, {"l1", "jumprelu"}),
    "circuit_tracer": (set(), {"l1", "jumprelu"}),
}
# format -> whether b_dec moves, by sparsity and whether the checkpoint subtracts it
MOVES = {
    "saelens": lambda sparsity, subtracted: False,
    "sparsify": lambda sparsity, subtracted: not subtracted,
    "dictionary_learning": lambda sparsity, subtracted: (
        sparsity != "l1" and subtracted != (sparsity == "topk")
    ),
    "gemma_scope_2": lambda sparsity, subtracted: subtracted,
}


EVERY = [(format, *kind) for format in FORMULAS for kind in AUTOENCODERS + TRANSCODERS]
HELD = [row for row in EVERY if row[1] in CAN[row[0]]["d_out" in row[2]]]
REFUSED = [row for row in EVERY if row not in HELD]


def exported(tmp_path: Path, format: str, sparsity: str, **options):
    """(the checkpoint, the folder, the result)."""
    layer = 0 if format == "circuit_tracer" else 3
    source = checkpoint(tmp_path / "run", sparsity, layer=layer, **options)
    return source, tmp_path / "out", export_dictionary(source, tmp_path / "out", format=format)


@pytest.mark.parametrize(("format", "sparsity", "options"), HELD, ids=str)
def test_the_files_compute_what_the_checkpoint_computes(tmp_path, format, sparsity, options):
    source, out, result = exported(tmp_path, format, sparsity, **options)
    ours, back = load(source), load(out)
    moved = "d_out" not in options and MOVES[format](sparsity, "subtract_b_dec" in options)
    assert [("b_dec" in note) for note in result.notes] == [True] * moved
    # by the format's formula
    for dtype, tolerance in ((torch.float64, 1e-6 if moved else 1e-12), (torch.float32, 1e-6)):
        x, ours = rows(dtype), ours.to(dtype)
        output = ours(x)
        code, x_hat = FORMULAS[format](out, x)
        assert 0 < int(code.count_nonzero()) < code.numel()
        assert differ(output.code.to_dense(), code) <= tolerance
        assert differ(output.x_hat, x_hat) <= tolerance
    # and opened again
    for name, tensor in ours.state_dict().items():
        assert (moved and name == "b_enc") or torch.equal(back.state_dict()[name], tensor)
    again = back(rows())
    same = torch.equal if not moved else lambda a, b: differ(a, b) <= 1e-6
    assert same(output.code.to_dense(), again.code.to_dense()) and same(output.x_hat, again.x_hat)


@pytest.mark.parametrize(("format", "sparsity", "options"), REFUSED, ids=str)
def test_what_a_format_cannot_say_is_refused(tmp_path, format, sparsity, options):
    with pytest.raises(DataError, match=f"{format} files do not hold"):
        exported(tmp_path, format, sparsity, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sparsity", VARIANTS)
def test_every_variant_goes_out_as_what_it_computes(tmp_path, sparsity):
    options = {"skip": False}
    if sparsity in ("kl-sigmoid", "matching-pursuit"):
        with pytest.raises(DataError, match=f"do not hold {sparsity} autoencoders"):
            exported(tmp_path, "saelens", sparsity, **options)
        return
    source, out, _ = exported(tmp_path, "saelens", sparsity, **options)
    code, x_hat = FORMULAS["saelens"](out, rows())
    output = load(source)(rows())
    assert differ(output.code.to_dense(), code) <= 1e-6 and differ(output.x_hat, x_hat) <= 1e-6


NORMALIZED = [
    ("topk", {"input_norm": "layer_norm"}),
    ("jumprelu", {"input_norm": "constant_norm", "subtract_b_dec": True}),
    ("l1", {"input_norm": "layer_norm", "d_out": D}),
    ("topk", {"rescale_by_decoder_norm": True}),
    ("abs-topk", {"rescale_by_decoder_norm": True, "subtract_b_dec": True}),
]


@pytest.mark.parametrize(("sparsity", "options"), NORMALIZED, ids=str)
def test_saelens_holds_norms_of_input_and_decoder(tmp_path, sparsity, options):
    source, out, _ = exported(tmp_path, "saelens", sparsity, **options)
    output, again = load(source)(rows()), load(out)(rows())
    assert torch.equal(output.code.to_dense(), again.code.to_dense())
    assert torch.equal(output.x_hat, again.x_hat)
    for format in set(WRITERS) - {"saelens"}:
        with pytest.raises(DataError, match="files do not hold"):
            export_dictionary(source, tmp_path / format, format=format)


def test_moved_biases_are_rounded_once(tmp_path):
    source, out, _ = exported(tmp_path, "sparsify", "topk")
    model = load(source)
    exact = model.b_enc.double() + model.W_enc.double() @ model.b_dec.double()
    assert torch.equal(weights(out, rows())["encoder.bias"], exact.float())


@pytest.mark.parametrize("format", WRITERS)
def test_files_say_where_the_dictionary_comes_from(tmp_path, format):
    options = {"d_out": D} if format == "circuit_tracer" else {}
    _, out, _ = exported(tmp_path, format, "topk" if format == "sparsify" else "l1", **options)
    layer, text = (0 if options else 3), ""
    for file in out.iterdir():
        text += file.read_text() if file.suffix in (".json", ".yaml") else ""
    rule = '{"exclude_special_tokens": true}' if options else '"scope": "content"'
    for known in (MODEL, "monology/pile-uncopyrighted", "128", "0.1.0", rule):
        assert known in text
    module = f"model.layers.{layer}"
    names = {
        "saelens": [f'"hook_name": "blocks.{layer}.hook_resid_post"'],
        "sparsify": [f'"hook": "{module}"'],
        "dictionary_learning": [f'"submodule_name": "{module}"', '"remove_bos": true'],
        "gemma_scope_2": [f'"hf_hook_point_in": "{module}.output"', '"l0": 7.5'],
        "circuit_tracer": [
            'feature_input_hook: "mlp.hook_in"', 'feature_output_hook: "hook_mlp_out"',
        ],
    }  # fmt: skip
    for line in names[format]:
        assert line in text
    # what the format's reader makes of it
    published = open_published(out).origin
    assert published.base_model == MODEL
    spelled = {
        "saelens": f"blocks.{layer}.hook_resid_post",
        "gemma_scope_2": f"{module}.output",
        "circuit_tracer": f"blocks.{layer}.mlp.hook_in",
    }
    assert published.hook == spelled.get(format, module)
    elsewhere = {"circuit_tracer": None, "gemma_scope_2": 1024}  # not read; of the release
    assert published.context == elsewhere.get(format, 128)


def test_saelens_metadata_of_a_transcoder_names_both_hooks(tmp_path):
    _, out, _ = exported(tmp_path, "saelens", "jumprelu", d_out=24, skip=True)
    settings = json.loads((out / "cfg.json").read_text())
    assert settings["architecture"] == "jumprelu_skip_transcoder" and settings["d_out"] == 24
    assert settings["metadata"]["hook_name"] == "blocks.3.mlp.hook_in"
    assert settings["metadata"]["hook_name_out"] == "blocks.3.hook_mlp_out"
    assert settings["metadata"]["exclude_special_tokens"] is True


@pytest.mark.parametrize(
    ("format", "sparsity", "options", "what", "hint"),
    [
        ("sparsify", "jumprelu", {}, "jumprelu autoencoders", '"saelens" or "dictionary_learning"'),
        ("sparsify", "topk", {"d_out": 24}, "outputs of another width", "no format"),
        ("circuit_tracer", "topk", {"d_out": D}, "topk transcoders", 'format="sparsify"'),
        ("circuit_tracer", "topk", {"d_out": D, "skip": True}, "topk trans", "--to jumprelu"),
        ("gemma_scope_2", "topk", {"d_out": 24}, "topk transcoders", "--to jumprelu"),
        ("saelens", "l1", {"parts": (8, 8)}, "relu crosscoders", "no format"),
        ("dictionary_learning", "abs-topk", {}, "abs-topk autoencoders", 'format="saelens"'),
        ("saelens", "l1", {"rescale_by_decoder_norm": True}, "relu codes chosen by", "no format"),
        ("saelens", "topk", {"input_factor": 2.0}, "factors on input and output", "no format"),
        ("saelens", "topk", {"keep_negative": True}, "negative values among the k", "no format"),
    ],
)
def test_a_refusal_names_what_is_missing_and_the_formats_that_have_it(
    tmp_path, format, sparsity, options, what, hint
):
    with pytest.raises(DataError, match=f"{format} files do not hold {what}") as refused:
        exported(tmp_path, format, sparsity, **options)
    assert hint in refused.value.hint and not (tmp_path / "out").exists()


def test_negative_thresholds_are_refused(tmp_path):
    source = checkpoint(tmp_path / "run", "jumprelu", seed=1)
    described, tensors = read_checkpoint(source).config, read_checkpoint(source).tensors
    tensors["threshold"][5] = -1.0
    write_checkpoint(source, described, tensors)
    with pytest.raises(DataError, match="thresholds below 0"):
        export_dictionary(source, tmp_path / "out", format="saelens")


def layers(tmp_path: Path, *numbers: int, **options) -> list[Path]:
    return [
        checkpoint(
            tmp_path / f"mlp{number}", "jumprelu", layer=number, seed=number, d_out=D, **options
        )
        for number in numbers
    ]


def test_a_circuit_tracer_folder_holds_a_file_for_each_layer(tmp_path):
    sources = layers(tmp_path, 1, 0, 2)
    export_dictionary(sources, tmp_path / "out", format="circuit_tracer")
    for source, layer in zip(sources, (1, 0, 2)):
        code, x_hat = FORMULAS["circuit_tracer"](tmp_path / "out", rows(), layer)
        output = load(source)(rows())
        assert torch.equal(output.code.to_dense().bool(), code.bool())
        assert differ(output.x_hat, x_hat) <= 1e-6


def test_layers_that_do_not_make_a_set_are_refused(tmp_path):
    def refusal(*sources: Path) -> str:
        with pytest.raises(DataError) as refused:
            export_dictionary(list(sources), tmp_path / "out", format="circuit_tracer")
        return str(refused.value)

    first, second, third = layers(tmp_path, 0, 1, 3)
    assert "every layer from 0: these are of 0, 3" in refusal(first, third)
    assert "both belong to layer 0" in refusal(first, first)
    (wider,) = layers(tmp_path / "wide", 1, latents=F + 1)
    assert "differ in their number of latents: 48, 49" in refusal(first, wider)
    with pytest.raises(UsageError, match="holds one dictionary, and 2 were given"):
        export_dictionary([first, second], tmp_path / "out", format="saelens")


def test_other_models_and_other_options_are_refused(tmp_path, digits):
    train(digits, tmp_path / "pca", model="pca", latents=4)
    with pytest.raises(DataError, match="holds a pca model"):
        export_dictionary(tmp_path / "pca", tmp_path / "out", format="saelens")
    source = checkpoint(tmp_path / "run", "topk")
    with pytest.raises(UsageError, match="store does not apply"):
        export_dictionary(source, tmp_path / "out", format="saelens", store=digits)
    with pytest.raises(UsageError, match="what features respond to"):
        export_dictionary(source, tmp_path / "out", format="neuronpedia")
    with pytest.raises(UsageError, match="format"):
        export_dictionary(source, tmp_path / "out", format="onnx")


def test_only_an_export_is_replaced(tmp_path, capsys):
    source, out = checkpoint(tmp_path / "run", "topk"), tmp_path / "out"
    arguments = ("export", source, out, "--format", "saelens")
    assert saekit(capsys, *arguments)[0] == 0
    status, _, error = saekit(capsys, *arguments)
    assert status == 3 and "--overwrite" in error
    status, text, error = saekit(capsys, *arguments[:-1], "sparsify", "--overwrite", "--json")
    assert status == 0, error
    assert json.loads(text)["format"] == "sparsify" and "b_dec" in json.loads(text)["notes"][0]
    assert {path.name for path in out.iterdir()} == {"cfg.json", "sae.safetensors", "export.json"}
    (out / "mine.txt").write_text("kept")
    status, _, error = saekit(capsys, *arguments, "--overwrite")
    assert status == 3 and "mine.txt" in error and (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("models/tiny", "tiny"),
        ("hub/models--openai-community--gpt2/snapshots/0a1b", "openai-community/gpt2"),
    ],
)
def test_nothing_says_where_folders_are_on_this_machine(tmp_path, model, shown):
    run = checkpoint(tmp_path / "run", "topk")
    config = json.loads((run / "config.json").read_text())
    config["spec"] |= {"model": f"{tmp_path}/{model}", "dataset": f"{tmp_path}/texts.jsonl"}
    config["fingerprint"] = ActivationSpec.from_json(config["spec"]).fingerprint
    (run / "config.json").write_text(json.dumps(config))
    export_dictionary(run, tmp_path / "out", format="saelens")
    assert json.loads((tmp_path / "out/export.json").read_text())["exported"] == ["run"]
    for file in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    metadata = json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["dataset_path"]) == (shown, "texts.jsonl")
    card = model_card("owner/repo", config, format="saelens")
    assert str(tmp_path) not in card and f"| base model | {shown} |" in card
    assert ("base_model: openai-community/gpt2" in card) == ("/" in shown)
    assert ("base_model:" in card) == ("/" in shown)


def test_a_published_dictionary_goes_on_in_another_format(tmp_path):
    source = made_dictionaries.saelens(tmp_path / "src", "topk")
    export_dictionary(source, tmp_path / "out", format="sparsify")
    code, x_hat = FORMULAS["sparsify"](tmp_path / "out", rows())
    output = load(source)(rows())
    assert torch.equal(output.code.to_dense(), code) and differ(output.x_hat, x_hat) <= 1e-6


@pytest.mark.parametrize(
    ("hook", "written"),
    [
        ("blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre"),
        ("model.layers.8:mid", "model.layers.8:mid"),
        ("model.layers.8.mlp:in", "model.layers.8.mlp.input"),
        ("model.layers.8", "model.layers.8.output"),
    ],
)
def test_only_modules_have_inputs_and_outputs(tmp_path, hook, written):
    run = checkpoint(tmp_path / "run", "jumprelu", hook=hook)
    export_dictionary(run, tmp_path / "out", format="gemma_scope_2")
    assert open_published(tmp_path / "out").origin.hook == written


@pytest.mark.parametrize(
    ("hook", "model", "name"),
    [
        ("model.layers.9", "meta-llama/Llama-3.2-1B", "blocks.9.hook_resid_post"),
        ("transformer.h.9:in", None, "blocks.9.hook_resid_pre"),
        ("gpt_neox.layers.3.mlp", "EleutherAI/pythia-70m", "blocks.3.hook_mlp_out"),
        ("model.layers.9.mlp", "google/gemma-2-2b", None),
        ("model.layers.9.post_attention_layernorm", "google/gemma-2-2b", "blocks.9.hook_attn_out"),
        ("model.layers.9.post_attention_layernorm", "google/gemma-2b", None),
        (
            "model.layers.9.post_feedforward_layernorm",
            "google/gemma-2-2b",
            "blocks.9.hook_mlp_out",
        ),
        ("model.layers.9.mlp", "/models/unknown", None),
        ("model.layers.9.self_attn.o_proj:in", MODEL, "blocks.9.attn.hook_z"),
        ("model.layers.9:mid", MODEL, "blocks.9.hook_resid_mid"),
        (
            "transformer.h.2.ln_2:normalized",
            "openai-community/gpt2",
            "blocks.2.ln2.hook_normalized",
        ),
        ("model.layers.5.output", "google/gemma-3-1b-pt", "blocks.5.hook_resid_post"),
        (
            "model.layers.5.pre_feedforward_layernorm.output",
            "google/gemma-3-1b-pt",
            "blocks.5.mlp.hook_in",
        ),
        ("model.decoder.layers.3", "facebook/opt-350m", None),
        ("blocks.8.hook_resid_pre", "gpt2-small", "blocks.8.hook_resid_pre"),
        ("vision_model.encoder.layers.9", None, None),
        ("bert.encoder.layer.9", "bert-base", None),
        (None, None, None),
    ],
)
def test_names_of_hooks_in_transformer_lens(hook, model, name):
    assert lens_name(hook, model) == name

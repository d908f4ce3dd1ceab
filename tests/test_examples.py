"""The examples run and compute what they say; the minimal SAE has the loss of the fast path."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.models.sparsity.topk import TopK
from saekit.training.optim import make_adam, schedule
from saekit.training.step import take_step
from saekit.types import ActivationBatch, Step

FOLDER = Path(__file__).parents[1] / "examples"
HOOK = "blocks.1"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    """Of a llama with three blocks of width 32, and its tokenizer."""
    return tiny.save("llama", tmp_path_factory.mktemp("llama"))


def run_tiny(
    folder: str, text: str, bos: bool = False, replacement_TD: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states after block 1 (T,D), logits of the next token (V,)) of the tiny model, by
    plain torch. bos: run with a BOS token in front, whose state is dropped."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer, states = AutoTokenizer.from_pretrained(folder), []

    def replace(_module, _args, output):
        states.append(output[0, bos:].clone())
        return output if replacement_TD is None else replacement_TD[None]

    model.model.layers[1].register_forward_hook(replace)
    ids = tokenizer(tokenizer.bos_token * bos + " " + text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    return states[0], logits


def test_harvest_in_memory_gives_the_hidden_state_of_every_token(model_folder, capsys):
    module = example("harvest_in_memory")
    x_ND = module.main(model_folder, HOOK)
    expected = [run_tiny(model_folder, text, bos=True)[0] for text in module.TEXTS]
    # Rows come in the order of the forward pass, which sorts texts by length.
    order = lambda x: x[x[:, 0].argsort()]
    assert torch.allclose(order(x_ND), order(torch.cat(expected)), atol=1e-5)
    said = capsys.readouterr().out
    for text, x_TD in zip(module.TEXTS, expected):
        assert f"{len(x_TD)} tokens, mean norm {x_TD.norm(dim=1).mean():.3g}: {text}" in said


def test_hook_into_a_forward_pass_removes_a_direction(model_folder):
    module = example("hook_into_a_forward_pass")
    kl = module.main(model_folder, HOOK)
    x_TD, logits = run_tiny(model_folder, module.TEXT)
    direction_D = torch.nn.functional.normalize(x_TD[-1], dim=0)
    changed_TD = x_TD - torch.outer(x_TD @ direction_D, direction_D)
    _, changed = run_tiny(model_folder, module.TEXT, replacement_TD=changed_TD)
    expected = torch.nn.functional.kl_div(
        changed.log_softmax(0), logits.log_softmax(0), reduction="sum", log_target=True
    ).item()
    assert expected > 0 and kl == pytest.approx(expected, rel=1e-3)


def test_load_a_checkpoint_switches_the_strongest_latent_off(model_folder, tmp_path):
    module = example("load_a_checkpoint")
    x_TD = run_tiny(model_folder, module.TEXT)[0][1:]  # the example drops the first token
    rows = x_TD.repeat(40, 1) + 0.01 * torch.randn(40 * len(x_TD), 32)
    saekit.train(rows, tmp_path / "run", latents=64, k=6, rows=640, batch=64)
    latents, edited_TD = module.main(str(tmp_path / "run"), HOOK, model_folder)

    sae = saekit.load(tmp_path / "run")
    pre_TF = x_TD @ sae.W_enc.T + sae.b_enc
    z_TF = torch.where(pre_TF >= pre_TF.topk(6, dim=1).values[:, -1:], pre_TF, 0).relu()
    assert latents == z_TF.max(0).values.argsort(descending=True)[:5].tolist()
    z_TF[:, latents[0]] = 0
    assert torch.allclose(edited_TD, z_TF @ sae.W_dec + sae.b_dec, atol=1e-5)


def test_steer_a_model_writes_what_a_model_with_the_added_row_writes(model_folder, tmp_path):
    module = example("steer_a_model")
    x_TD = run_tiny(model_folder, module.TEXT)[0][1:]  # the example drops the first token
    rows = x_TD.repeat(40, 1) + 0.01 * torch.randn(40 * len(x_TD), 32)
    saekit.train(rows, tmp_path / "run", latents=64, k=6, rows=640, batch=64)
    latent, clean, steered = module.main(str(tmp_path / "run"), HOOK, model_folder)

    sae = saekit.load(tmp_path / "run")
    z_TF = sae.encode(x_TD).to_dense()
    assert latent == int(z_TF.amax(0).argmax())
    shift_D = module.STRENGTH * z_TF[:, latent].max() * sae.W_dec[latent]
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer(module.TEXT, return_tensors="pt")["input_ids"]
    prompt = ids.shape[1]

    def add(_module, _args, output):
        return torch.cat([output[:, :prompt], output[:, prompt:] + shift_D], 1)

    for text, hook in ((clean, None), (steered, add)):
        handle = hook and model.model.layers[1].register_forward_hook(hook)
        written = ids
        while written.shape[1] < prompt + module.TOKENS:  # the whole text for each token
            with torch.inference_mode():
                token = model(written).logits[:, -1:].argmax(-1)
            written = torch.cat([written, token], 1)
            if token == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(written[0, prompt:], skip_special_tokens=True)
        if handle:
            handle.remove()


def test_train_on_a_tensor_beats_pca_and_writes_a_checkpoint(tmp_path):
    fvu = example("train_on_a_tensor").main(str(tmp_path / "run"))
    assert 0 < fvu["sae"] < 0.2 < 0.6 < fvu["pca"] < 1
    assert saekit.load(tmp_path / "run").W_dec.shape == (128, 32)


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
def test_a_training_loop_of_ones_own_explains_its_rows(sparsity, capsys):
    assert example("own_loop").main(sparsity) < 0.5
    assert "32 -> 128" in capsys.readouterr().out


def test_the_minimal_sae_has_the_losses_of_the_fast_path():
    """Over 40 steps on the same batches; after that they drift apart by rounding."""
    minimal = example("minimal_sae")
    torch.manual_seed(1)
    x = minimal.normalize(minimal.synthetic_rows(2048))
    plain, fast = minimal.MinimalSAE(32, 128, 4), TopK(d_in=32, latents=128, k=4)
    fast.load_state_dict(plain.state_dict())

    steps, batch, optimizer, losses = 40, 128, make_adam(fast, 3e-3), []
    torch.manual_seed(2)
    for step in range(steps):
        rows = x[torch.randint(len(x), (batch,))]
        optimizer.param_groups[0]["lr"] = 3e-3 * schedule(step, steps, 0.2, "linear", 0.05)
        index = torch.arange(batch)
        loss = take_step(
            fast, optimizer, ActivationBatch(rows, index, index, index), Step(step, steps)
        )
        losses.append(loss.total.item())
    torch.manual_seed(2)
    assert minimal.train(plain, x, steps, batch) == pytest.approx(losses, rel=1e-6)

"""An SAE is a torch module like any other: made, copied, saved, compiled, cast and trained by its
owner."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from batches import batch_with_previous as batch_of
from made_stores import make_rows, write_store

import saekit
from saekit.errors import UsageError
from saekit.models.catalog import build
from saekit.models.sae import SAE
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.jumprelu import JumpReLU, JumpReLUConfig
from saekit.models.sparsity.topk import TopK, TopKConfig
from saekit.store.reader import Store
from saekit.training.dead import DeadTracker, dead_rows, revive_rows
from saekit.training.inputs import estimate
from saekit.training.optim import make_adam, schedule
from saekit.types import Step

D, F = 12, 40


@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_sae_has_weights_and_an_owners_optimizer_trains_it(name):
    torch.manual_seed(0)
    sae = VARIANTS[name](d_in=D, latents=F, revive="none")
    x = make_rows(300, D)
    x = (x - x.mean(0)) / x.std()
    assert (sae.W_dec.norm(dim=1) > 0.01).all() and (sae.W_enc.norm(dim=1) > 0.01).all()
    optimizer, errors = torch.optim.Adam(sae.parameters(), lr=1e-2), []
    for step in range(60):
        terms = sae.loss(batch_of(x), Step(step, 60))
        terms.total.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        optimizer.zero_grad()
        errors.append(terms.metrics.get("squared_error", terms.terms["reconstruction"]).item())
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_state_dict_copies_and_modes(name):
    sae, x = VARIANTS[name](d_in=D, latents=F).eval(), make_rows(20, D)
    twin = VARIANTS[name](config=sae.config).eval()
    twin.load_state_dict(sae.state_dict())
    for other in (twin, copy.deepcopy(sae)):
        assert type(other) is VARIANTS[name] and torch.equal(other(x).x_hat, sae(x).x_hat)
    with torch.inference_mode():
        inside = sae(x).x_hat
    assert torch.equal(inside, sae(x).x_hat)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sae(x.bfloat16()).x_hat
    torch.testing.assert_close(
        cast.float(), sae(x.bfloat16()).x_hat, rtol=0.1, atol=0.3 * float(x.abs().max())
    )


def test_the_config_names_the_class_and_the_class_names_the_config():
    assert type(SAE(TopKConfig(d_in=D))) is TopK and type(SAE(JumpReLUConfig(d_in=D))) is JumpReLU
    assert type(SAE(TopKConfig(d_in=D, sparsity="hierarchical"))) is VARIANTS["hierarchical"]
    assert JumpReLU(d_in=D, latents=F, bandwidth=0.1).config.bandwidth == 0.1
    assert VARIANTS["tanh"](d_in=D, latents=F).config.sparsity == "tanh"
    with pytest.raises(UsageError, match="JumpReLU takes JumpReLUConfig, not TopKConfig"):
        JumpReLU(TopKConfig(d_in=D))
    for name, variant in VARIANTS.items():
        assert (
            variant.sparsity == name
            and type(build("sae", D, {"sparsity": name, "latents": F})) is variant
        )


def test_repr_tells_what_it_is():
    assert repr(TopK(d_in=D, latents=F, k=5)) == "TopK(12 -> 40, k=5)"
    assert repr(JumpReLU(d_in=D, latents=F, d_out=7)) == "JumpReLU(12 -> 40 -> 7)"


@pytest.mark.parametrize("name", ["topk", "jumprelu", "kl-sigmoid"])
def test_a_compiled_model_gives_the_same(name):
    sae, x = VARIANTS[name](d_in=D, latents=F).eval(), make_rows(20, D)
    compiled = torch.compile(sae, backend="eager")
    torch.testing.assert_close(compiled(x).x_hat, sae(x).x_hat)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "name",
    [
        "jumprelu",  # one graph
        # Selecting k latents has shapes that depend on the data: a dozen graphs, 45 s to compile.
        pytest.param("topk", marks=pytest.mark.slow),
    ],
)
def test_inductor_gives_the_same_reconstruction_and_gradients(name):
    sae, x = VARIANTS[name](d_in=D, latents=F).eval(), make_rows(20, D)
    compiled = torch.compile(sae, backend="inductor")
    results = []
    for model in (sae, compiled):
        sae.zero_grad()
        rows = x.clone().requires_grad_(True)
        x_hat = model(rows).x_hat
        x_hat.square().sum().backward()
        results.append((x_hat.detach(), rows.grad, sae.W_enc.grad, sae.W_dec.grad))
    for by_inductor, eager in zip(*reversed(results)):
        torch.testing.assert_close(by_inductor, eager)


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu", "l1"])
def test_an_owners_loop_takes_the_steps_of_a_run_bit_for_bit(tmp_path, sparsity):
    path, batch, steps, lr = write_store(tmp_path / "store", 2000), 128, 40, 3e-3
    options = {"sparsity": sparsity, "latents": 64, "revive": "aux"}
    saekit.train(path, tmp_path / "run", rows=steps * batch, batch=batch, lr=lr, **options)

    store = Store(path)
    normalize, sample = estimate(store, "center+scale", seed=0, device=torch.device("cpu"))
    sae = build("sae", store.spec.d_in, options)
    sae.initialise_from(sample, torch.Generator().manual_seed(0))
    optimizer, rows = make_adam(sae, lr), len(store.split("train"))
    tracker = DeadTracker(
        sae.latents, dead_rows(rows), revive_rows(rows, steps * batch), torch.device("cpu")
    )
    for step, raw in zip(range(steps), store.batches(batch, 0, 0, "train")):
        optimizer.param_groups[0]["lr"] = lr * schedule(step, steps, 0.2, "linear", 0.05)
        terms = sae.loss(normalize(raw), Step(step, steps, dead=tracker.dead()))
        terms.total.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        optimizer.zero_grad()
        tracker.update(terms.fired, batch)

    trained = saekit.load(tmp_path / "run").state_dict()
    for name, tensor in sae.folded(normalize.inputs).items():
        assert torch.equal(tensor, trained[name]), name


def test_a_plain_number_is_a_step_of_the_run_that_the_model_was_told():
    sae, x = VARIANTS["l1"](d_in=D, latents=F, coef_warmup=0.5), make_rows(20, D)
    sae.total_steps = 100
    assert sae.loss(x, 10).weights == sae.loss(x, Step(10, 100)).weights and sae.coef(
        10
    ) == pytest.approx(sae.config.coef * 11 / 50)

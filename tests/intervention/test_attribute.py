"""Attributions against finite differences, sum rules and edits by `attach`, in fp64."""

from __future__ import annotations

import json
from pathlib import Path

import by_hand
import pytest
import tiny
import torch
from command import saekit as command
from torch import nn

import saekit
from saekit.embedded import digits
from saekit.errors import DataError, UsageError
from saekit.harvesting.classifiers import load_classifier
from saekit.harvesting.images import prepared
from saekit.harvesting.models import assemble, load_model
from saekit.intervention.ablations import pearson
from saekit.intervention.attribute import attribute
from saekit.intervention.attribution import Keep, Node, Passes, Place

PROMPT, TOKEN, OTHER = "the cat sat on a", 5, 7
HOOKS = ["blocks.0", "blocks.1"]


def tiny_model(dtype: torch.dtype = torch.float64):
    """GPT-2, which computes in fp64 throughout, with states of a size that latents fire at."""
    module = tiny.random_model("gpt2").to(dtype).requires_grad_(False)
    for name, weight in module.named_parameters():
        if weight.ndim == 2 and "wpe" not in name:
            weight.mul_(8.0)
    return assemble(module, "causal_lm", "tiny", None, tiny.tokenizer())


@pytest.fixture(scope="module")
def live():
    return tiny_model()


@pytest.fixture(scope="module")
def saes():
    return {hook: by_hand.dictionary(tiny.WIDTH, "jumprelu").double() for hook in HOOKS}


@pytest.fixture(scope="module")
def ids(live) -> torch.Tensor:
    return live.tokenizer(PROMPT, return_tensors="pt")["input_ids"]


@pytest.fixture(scope="module")
def passes(live, saes, ids):
    places = [at_hook(hook, sae) for hook, sae in saes.items()]
    return Passes(live, {"input_ids": ids}, places, logit_of_token)


def at_hook(hook: str, sae) -> Place:
    return Place(sae, (hook,), (hook,), (tiny.WIDTH,))


def logit_of_token(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, TOKEN]


def with_block(live, ids, block: int, change) -> float:
    """The logit with the states after a block changed, without the code under test."""
    layer = live.module.transformer.h[block]
    handle = layer.register_forward_hook(lambda _m, _a, x: change(x))
    with torch.inference_mode():
        logits = live.module(ids, use_cache=False).logits
    handle.remove()
    return float(logits[0, -1, TOKEN])


def test_gradient_times_activation_is_a_finite_difference_of_the_logit(live, saes, ids, passes):
    effects, step = passes.effects(None), 1e-5
    checked = 0
    for block, hook in enumerate(HOOKS):
        codes_TF, errors_T = effects[hook]
        z_TF, sae = passes.z[hook], saes[hook]
        assert (codes_TF[z_TF == 0] == 0).all()
        for position, latent in z_TF.nonzero().tolist()[::7]:
            shift = torch.zeros(ids.shape[1], tiny.WIDTH, dtype=torch.float64)
            shift[position] = step * z_TF[position, latent] * sae.W_dec[latent]
            up, down = (with_block(live, ids, block, lambda x, d=s * shift: x + d) for s in (1, -1))
            measured = (up - down) / (2 * step)
            assert float(codes_TF[position, latent]) == pytest.approx(measured, rel=1e-4, abs=1e-8)
            checked += 1
        error_TD = passes.x[hook] - sae(passes.x[hook]).x_hat
        shift = torch.zeros_like(error_TD)
        shift[1] = step * error_TD[1]
        up, down = (with_block(live, ids, block, lambda x, d=s * shift: x + d) for s in (1, -1))
        assert float(errors_T[1]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)
    assert checked > 4


@pytest.mark.parametrize("block, groups", [(0, 1), (1, 3)])
def test_integrated_gradients_of_a_group_sum_to_the_fall_without_it(
    live, saes, ids, passes, block, groups
):
    codes_TF, errors_T = passes.effects(200, groups)[HOOKS[block]]
    sae, z_TF = saes[HOOKS[block]], passes.z[HOOKS[block]]
    for position in range(ids.shape[1]):
        active = z_TF[position].nonzero()[:, 0]
        error_D = passes.e[HOOKS[block]][position]
        parts = [(float(errors_T[position]), error_D)]
        for latents in (active[group::groups] for group in range(groups)):
            removed_D = z_TF[position, latents] @ sae.W_dec[latents]
            parts.append((float(codes_TF[position, latents].sum()), removed_D))
        for total, removed_D in parts:

            def without(x, removed_D=removed_D, position=position):
                x = x.clone()
                x[:, position] -= removed_D
                return x

            fall = passes.clean - with_block(live, ids, block, without)
            assert total == pytest.approx(fall, rel=1e-3, abs=1e-3)


def test_an_ablation_is_that_of_attach_and_of_an_error_that_of_the_reconstruction(
    live, saes, ids, passes
):
    position, latent = passes.z["blocks.0"].nonzero()[-1].tolist()
    (value,) = passes.ablated([Keep([Node("blocks.0", position, latent)])])
    with torch.inference_mode(), saekit.attach(live, saes["blocks.0"], "blocks.0") as edited:
        edited.ablate(latent, positions=position)
        logits = live.module(ids, use_cache=False).logits
    assert value == pytest.approx(float(logits[0, -1, TOKEN]), abs=1e-10)

    def reconstructed(x):
        x = x.clone()
        x[:, position] = saes["blocks.0"](x[:, position]).x_hat
        return x

    (value,) = passes.ablated([Keep([Node("blocks.0", position, None)])])
    assert value == pytest.approx(with_block(live, ids, 0, reconstructed), abs=1e-10)


def test_keeping_all_nodes_gives_the_clean_bits_and_none_the_bias(live, saes, ids, passes):
    assert passes.ablated([Keep()]) == [passes.clean]
    (empty,) = passes.ablated([Keep(only=True)])
    bias = saes["blocks.1"].b_dec
    assert empty == pytest.approx(with_block(live, ids, 1, lambda x: bias.expand_as(x)), abs=1e-10)


class _Linear(nn.Module):
    """No final norm."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("top", [8, 60])
@pytest.mark.parametrize("method, steps", [("gradient", 1), ("integrated", 3)])
def test_before_a_linear_readout_every_prediction_is_exact(saes, method, steps, top):
    live = tiny_model()
    live.module.transformer.ln_f = _Linear()
    result = attribute(
        saes["blocks.1"], prompt=PROMPT, versus=(TOKEN, OTHER), live=live,
        hook=f"blocks.{live.blocks - 1}", method=method, steps=steps, top=top,
    )  # fmt: skip
    assert len(result.nodes) >= 8
    assert any(node.index is None for node in result.nodes) == (top == 60)
    for node in result.nodes:
        assert node.effect == pytest.approx(node.ablated, abs=1e-9)
    assert result.together == pytest.approx((result.together[0],) * 2, abs=1e-9)
    assert result.total == pytest.approx((result.total[0],) * 2, abs=1e-9)
    assert result.correlation == pytest.approx(1)
    kept = result.together[0] / result.total[0]
    assert result.faithfulness == pytest.approx(kept, abs=1e-8)
    assert result.completeness == pytest.approx(1 - kept, abs=1e-8)
    # with the errors in every pass, only latents are measured
    effects = [node.effect for node in result.nodes if node.index is not None]
    every = attribute(
        saes["blocks.1"], prompt=PROMPT, versus=(TOKEN, OTHER), live=live,
        hook=f"blocks.{live.blocks - 1}", top=1000,
    )  # fmt: skip
    latents = sum(node.effect for node in every.nodes if node.index is not None)
    assert result.faithfulness_errors == pytest.approx(sum(effects) / latents, abs=1e-8)


def test_several_hooks_are_ranked_together_and_a_list_of_nodes_names_its_tokens(live, saes, ids):
    result = attribute(
        list(saes.values()), prompt=PROMPT, target=TOKEN, live=live, hook=HOOKS, top=30
    )
    sizes = [abs(node.effect) for node in result.nodes]
    assert sizes == sorted(sizes, reverse=True) and {n.hook for n in result.nodes} == set(HOOKS)
    for node in result.nodes:
        assert node.token == live.tokenizer.decode([ids[0, node.position]])
    assert result.value == pytest.approx(with_block(live, ids, 0, lambda x: x))


def test_a_result_shows_its_figures_and_its_nodes_as_a_frame(live, saes):
    result = attribute(
        saes["blocks.0"], prompt=PROMPT, target=TOKEN, live=live, hook="blocks.0", top=2
    )
    assert repr(result).startswith(f"AttributionResult({result.metric!r}, value=")
    assert "nodes=[" not in repr(result)
    frame = result.to_pandas()
    assert frame["effect"].tolist() == [node.effect for node in result.nodes]


def test_the_model_is_as_before(live, saes):
    hooks = [len(module._forward_hooks) for module in live.module.modules()]
    attribute(saes["blocks.0"], prompt=PROMPT, target=TOKEN, live=live, hook="blocks.0", top=2)
    assert hooks == [len(module._forward_hooks) for module in live.module.modules()]
    assert all(parameter.grad is None for parameter in live.module.parameters())


def test_a_bf16_model_has_gradients_in_the_precision_of_the_code():
    live = tiny_model(torch.bfloat16)
    sae = by_hand.dictionary(tiny.WIDTH, "jumprelu").float()
    inputs = {"input_ids": live.tokenizer(PROMPT, return_tensors="pt")["input_ids"]}
    passes = Passes(live, inputs, [at_hook("blocks.1", sae)], logit_of_token)
    codes_TF, errors_T = passes.effects(2)["blocks.1"]
    assert codes_TF.dtype == errors_T.dtype == torch.float32
    assert codes_TF.isfinite().all() and (codes_TF != 0).any()


def test_reconstruction_of_the_own_code_is_forward(passes):
    for hook, place in passes.places.items():
        x = passes.x[hook]
        assert torch.equal(place.reconstruction(passes.z[hook], x), place.model(x).x_hat)


def test_mistakes(live, saes):
    sae = saes["blocks.0"]
    asked = dict(prompt=PROMPT, target=TOKEN, live=live, hook="blocks.0")
    for wrong in (
        {"prompt": None}, {"target": None}, {"versus": (1, 2)}, {"top": 0}, {"steps": 0},
        {"groups": 0}, {"method": "other"}, {"target": None, "versus": "a"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            attribute(sae, **asked | wrong)
    with pytest.raises(DataError, match="tokens"):
        attribute(sae, **asked | {"target": "the cat sat"})
    with pytest.raises(UsageError, match="two dictionaries"):
        attribute([sae, sae], **asked | {"hook": ["blocks.0", "blocks.0"]})


def test_correlation_by_hand():
    assert pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / (2 * 14 / 3) ** 0.5)
    assert pearson([1, 2], [1, 1]) is None and pearson([1], [1]) is None


def test_the_command_prints_the_nodes_as_the_contract_has_them(made, capsys):
    from saekit_cli.app import main

    arguments = ["attribute", str(made.run), "--prompt", "the cat sat", "--target", "dog"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--top", "3", "--method", "gradient", "--json", "--quiet"])
    assert ended.value.code == 0
    nodes = json.loads(capsys.readouterr().out)
    live = load_model(made.model)
    expected = attribute(
        made.run, prompt="the cat sat", target="dog", live=live, top=3, method="gradient"
    )
    assert [list(node) for node in nodes] == [
        ["index", "position", "token", "effect", "ablated"]
    ] * len(expected.nodes)
    for node, other in zip(nodes, expected.nodes, strict=True):
        assert (node["index"], node["position"]) == (other.index, other.position)
        assert node["effect"] == pytest.approx(other.effect, rel=1e-3, abs=1e-6)


def test_the_command_shows_positions_and_the_faithfulness_of_the_largest_nodes(made, capsys):
    asked = ["attribute", made.run, "--prompt", "the cat sat", "--target", "dog", "--quiet"]
    status, text, _ = command(capsys, *asked, "--positions", "1:", "--top", "3")
    assert status == 0
    expected = attribute(made.run, prompt="the cat sat", target="dog", positions="1:", top=3)
    words = [line.split() for line in text.splitlines()]
    assert words[0] == ["latent", "position", "token", "effect", "ablated"]
    assert [(int(row[1]), row[2]) for row in words[1:4]] == [
        (node.position, repr(node.token)) for node in expected.nodes
    ]
    assert all(int(row[1]) >= 1 for row in words[1:4])
    at = next(number for number, line in enumerate(text.splitlines()) if "largest nodes" in line)
    end = words.index([], at)
    assert [row[0] for row in words[at + 1 : end]] == [f"{kept.nodes:,}" for kept in expected.curve]
    assert words[at + 3][0] == "3" and words[at + 3][1] == f"{expected.faithfulness:.4f}"
    legend = [line.partition(":")[0] for line in text.splitlines()[end + 1 :]]
    assert legend == ["effect", "error"], "what the columns mean"
    assert command(capsys, *asked, "--positions", "cls")[0] == 2


def test_a_class_of_an_image_is_attributed_to_latents_at_patches(tmp_path):
    classifier = load_classifier("embedded:digits-vit")
    sae = by_hand.dictionary(classifier.module.config.hidden_size, "jumprelu").float()
    image = tmp_path / "three.png"
    digits.image(3).save(image)
    result = attribute(
        sae,
        image=image,
        target=3,
        hook="blocks.1",
        live=classifier,
        processor=classifier.processor,
        method="gradient",
        top=5,
    )
    # the clean logit, and that without the first latent, by plain torch
    pixels = prepared([digits.image(3)], classifier.processor)
    layer = classifier.module.get_submodule("vit.layers.1")

    def logit(change) -> float:
        handle = layer.register_forward_hook(lambda _m, _a, x: change(x))
        with torch.inference_mode():
            value = float(classifier.module(pixel_values=pixels).logits[0, 3])
        handle.remove()
        return value

    node = next(node for node in result.nodes if node.index is not None)

    def without(x):
        z = sae.encode(x[0, node.position]).to_dense()[node.index]
        x = x.clone()
        x[0, node.position] -= z * sae.W_dec[node.index]
        return x

    W = classifier.image_tokens.grid[1]
    places = ["class token", *(f"row {at // W}, column {at % W}" for at in range(W * W))]
    assert result.nodes and node.token == places[node.position]
    assert node.ablated == pytest.approx(logit(lambda x: x) - logit(without), abs=1e-4)


# -- dictionaries that write elsewhere than they read, or to several hooks

MLP = ("blocks.1.mlp:in", "blocks.1.mlp")


@pytest.fixture(scope="module")
def transcoder():
    return by_hand.dictionary(tiny.WIDTH, "jumprelu", d_out=tiny.WIDTH, skip=True).double()


@pytest.fixture(scope="module")
def crosscoder():
    return by_hand.dictionary(2 * tiny.WIDTH, "jumprelu", parts=[tiny.WIDTH] * 2).double()


def of(live, ids, model, inputs, outputs) -> Passes:
    place = Place(model, inputs, outputs, (tiny.WIDTH,) * len(outputs))
    return Passes(live, {"input_ids": ids}, [place], logit_of_token)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_nodes_of_a_transcoder_and_a_crosscoder_act_at_all_their_outputs(live, ids, kind, request):
    """Effects of small changes and ablations are those of `attach`, whose own tests compare it with
    plain torch."""
    model = request.getfixturevalue(kind)
    inputs, outputs = (MLP[:1], MLP[1:]) if kind == "transcoder" else (tuple(HOOKS),) * 2
    hooks = MLP if kind == "transcoder" else tuple(HOOKS)
    passes = of(live, ids, model, inputs, outputs)
    name = "+".join(outputs)
    effects_TF, errors_T = passes.effects(None)[name]
    z_TF, step = passes.z[name], 1e-5
    some = z_TF.nonzero().tolist()[::5]
    assert len(some) > 2

    def edited(verb: str, latent: int, *amount: float, positions: int) -> float:
        with torch.inference_mode(), saekit.attach(live, model, hooks) as edits:
            getattr(edits, verb)(latent, *amount, positions=positions)
            return float(live.module(ids, use_cache=False).logits[0, -1, TOKEN])

    for position, latent in some:
        up, down = (edited("scale", latent, 1 + s, positions=position) for s in (step, -step))
        slope = (up - down) / (2 * step)
        assert float(effects_TF[position, latent]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
        (value,) = passes.ablated([Keep([Node(name, position, latent)])])
        assert value == pytest.approx(edited("ablate", latent, positions=position), abs=1e-10)
    assert passes.ablated([Keep()]) == [pytest.approx(passes.clean, abs=1e-12)]
    # the nodes of a position, integrated
    codes_TF, errors_T = passes.effects(200, 1)[name]
    nodes = [Node(name, 2, latent) for latent in z_TF[2].nonzero()[:, 0].tolist()]
    for part, effect in ((nodes, codes_TF[2].sum()), ([Node(name, 2, None)], errors_T[2])):
        (emptied,) = passes.ablated([Keep(part)])
        assert float(effect) == pytest.approx(passes.clean - emptied, rel=1e-3, abs=1e-3)


def test_no_node_of_a_transcoder_leaves_its_bias_and_skip(live, ids, transcoder):
    passes = of(live, ids, transcoder, MLP[:1], MLP[1:])
    (empty,) = passes.ablated([Keep(only=True)])
    mlp = live.module.transformer.h[1].mlp
    handle = mlp.register_forward_hook(
        lambda _m, args, _y: transcoder.b_dec + args[0] @ transcoder.W_skip.T
    )
    with torch.inference_mode():
        expected = float(live.module(ids, use_cache=False).logits[0, -1, TOKEN])
    handle.remove()
    assert empty == pytest.approx(expected, abs=1e-10)


def test_a_transcoder_after_an_autoencoder_reads_what_an_ablation_left(live, saes, ids, transcoder):
    """Of both, everything but the errors of the transcoder is 0, by plain torch."""
    early = at_hook("blocks.0", saes["blocks.0"])
    late = Place(transcoder, MLP[:1], MLP[1:], (tiny.WIDTH,))
    passes = Passes(live, {"input_ids": ids}, [early, late], logit_of_token)
    nodes = [Node(late.name, position, None) for position in range(ids.shape[1])]
    (value,) = passes.ablated([Keep(nodes, only=True)])
    h = live.module.transformer.h

    def only_error(_module, args, y):
        return y - by_hand.encode(transcoder, args[0]) @ transcoder.W_dec

    handles = [
        h[0].register_forward_hook(lambda _m, _a, x: early.model.b_dec.expand_as(x)),
        h[1].mlp.register_forward_hook(only_error),
    ]
    with torch.inference_mode():
        expected = float(live.module(ids, use_cache=False).logits[0, -1, TOKEN])
    for handle in handles:
        handle.remove()
    assert value == pytest.approx(expected, abs=1e-10)


def test_a_mixed_list_of_dictionaries_is_ranked_together(live, saes, transcoder, crosscoder):
    result = attribute(
        [saes["blocks.0"], transcoder], prompt=PROMPT, target=TOKEN, live=live, top=1000,
        hook=["blocks.0", MLP], method="gradient",
    )  # fmt: skip
    assert {node.hook for node in result.nodes} == {"blocks.0", "blocks.1.mlp"}
    with pytest.raises(UsageError, match=r"blocks\.1.* has two dictionaries"):
        attribute(
            [saes["blocks.1"], crosscoder],
            prompt=PROMPT, target=TOKEN, live=live, hook=["blocks.1", tuple(HOOKS)],
        )  # fmt: skip


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_only_chosen_positions_have_nodes_and_all_others_stay(live, saes, ids, method):
    asked = dict(prompt=PROMPT, target=TOKEN, live=live, hook="blocks.1", method=method, steps=3)
    sae = saes["blocks.1"]
    every = attribute(sae, **asked, top=10_000)
    chosen = attribute(sae, **asked, top=10_000, positions="1:3")
    assert chosen == attribute(sae, **asked, top=10_000, positions=slice(1, 3))
    expected = [node for node in every.nodes if 1 <= node.position < 3]
    for node, other in zip(chosen.nodes, expected, strict=True):
        assert (node.position, node.index) == (other.position, other.index)
        assert (node.effect, node.ablated) == pytest.approx((other.effect, other.ablated))

    def emptied(x):
        x = x.clone()
        x[:, 1:3] = sae.b_dec
        return x

    fall = with_block(live, ids, 1, lambda x: x) - with_block(live, ids, 1, emptied)
    assert chosen.total[1] == pytest.approx(fall, abs=1e-10)
    assert chosen.faithfulness == pytest.approx(1)
    one = attribute(sae, **asked, positions=4)
    assert {n.position for n in one.nodes} == {4}
    assert one == attribute(sae, **asked, positions="4")
    for wrong in ("cls", "a:b", "7:9", 1.5, 99):
        with pytest.raises(UsageError, match="positions"):
            attribute(sae, **asked, positions=wrong)


def test_patches_of_an_image_have_nodes_without_its_class_token(tmp_path):
    classifier = load_classifier("embedded:digits-vit")
    sae = by_hand.dictionary(classifier.module.config.hidden_size, "jumprelu").float()
    digits.image(3).save(tmp_path / "three.png")
    asked = dict(image=tmp_path / "three.png", target=3, hook="blocks.1", live=classifier, top=1000)
    asked |= dict(processor=classifier.processor, method="gradient")
    patches, cls = (attribute(sae, **asked, positions=where) for where in ("patches", "cls"))
    assert {n.token for n in cls.nodes} == {"class token"}
    assert {n.position for n in patches.nodes} <= set(range(1, classifier.image_tokens.count))
    assert len(patches.nodes) > len(cls.nodes) > 0
    with pytest.raises(UsageError, match="all, cls, patches"):
        attribute(sae, **asked, positions="1:")


def test_the_curve_goes_from_the_largest_node_to_all_nodes(live, saes, ids, passes):
    """All nodes are the whole model. Without them latents fire that are silent in it, so that
    nothing is said of that."""
    asked = dict(prompt=PROMPT, target=TOKEN, live=live, hook=HOOKS, method="gradient")
    result, every = (attribute(list(saes.values()), **asked, top=top) for top in (7, 10_000))
    sizes = [kept.nodes for kept in result.curve]
    assert sizes[:5] == [1, 2, 5, 7, 10] and sizes[-1] == len(every.nodes) > 20
    last, first = result.curve[-1], result.curve[0]
    assert (last.faithfulness, last.faithfulness_errors) == (pytest.approx(1), pytest.approx(1))
    node = Node(result.nodes[0].hook, result.nodes[0].position, result.nodes[0].index)
    empty, only, without = passes.ablated([Keep(only=True), Keep([node], only=True), Keep([node])])
    full = passes.clean - empty
    assert first.faithfulness == pytest.approx((only - empty) / full)
    assert first.completeness == pytest.approx((without - empty) / full)
    assert result.faithfulness == result.curve[3].faithfulness
    assert result.completeness_errors == result.curve[3].completeness_errors


def test_one_place_computes_gradients_of_codes_and_one_those_of_pixels():
    root = Path(saekit.__file__).parent
    places = {path for path in root.rglob("*.py") if "autograd.grad(" in path.read_text()}
    assert places == {root / "intervention" / "attribution.py", root / "attacks" / "gradients.py"}

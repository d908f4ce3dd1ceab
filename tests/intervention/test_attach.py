"""One forward pass of an attached model: the states are those of plain torch in fp64, everything
else stays."""

from __future__ import annotations

from contextlib import ExitStack

import by_hand
import families
import made_dictionaries
import pytest
import torch

import saekit
from saekit.errors import DataError, UsageError
from saekit.harvesting.hooks import resolve_hook
from saekit.harvesting.models import load_model
from saekit.models.catalog import build
from saekit.models.cross_layer import CrossLayerConfig, CrossLayerTranscoder
from saekit.models.linear import PCA, PCAConfig

LAST = "last_hidden_state"


def layer_of(model, hook: str) -> torch.nn.Module:
    return model.get_submodule(resolve_hook(model, hook).split(":")[0])


def steer(z: torch.Tensor) -> torch.Tensor:
    z[..., 3] += 2.5
    z[..., [5, 7]] = 0
    z[..., 9] *= 3
    return z


def edits(live, **where):
    return live.add(3, 2.5, raw=True, **where).ablate([5, 7], **where).scale(9, 3.0, **where)


def text(family: str = "bert"):
    """(a model in fp64, its inputs with padding)."""
    entry = families.ENCODERS.get(family) or families.CAUSAL[family]
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, families.VOCAB, (2, 6), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return families.model_of(entry).double(), {"input_ids": ids, "attention_mask": mask}


def image(family: str):
    g = torch.Generator().manual_seed(1)
    model = families.model_of(families.VISION[family]).double()
    pixels = torch.randn(2, 3, 12, 12, generator=g, dtype=torch.float64)
    return model, {"pixel_values": pixels}


def output(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if "logits" in out else out[LAST]


# -- families --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_an_encoder_is_edited_at_its_real_tokens(family, sparsity):
    model, inputs = text(family)
    sae = by_hand.dictionary(families.WIDTH, sparsity)
    clean = output(model, inputs)
    with saekit.attach(model, sae, "blocks.0") as live:
        assert torch.equal(output(model, inputs), clean)
        edits(live)
        edited = output(model, inputs)
    with by_hand.edited(layer_of(model, "blocks.0"), sae, steer, inputs["attention_mask"].bool()):
        expected = output(model, inputs)
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-10)
    assert (edited - clean).abs().max() > 0.01


GRID = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1]]).bool()


@pytest.mark.parametrize(
    "positions, chosen",
    [
        ("all", [True] * 10),
        ("cls", [True] + [False] * 9),
        ("patches", [False] + [True] * 9),
        (GRID, [False, *GRID.flatten().tolist()]),
        (torch.eye(10).bool()[[4, 4]], [column == 4 for column in range(10)]),
    ],
)
def test_a_vit_is_edited_at_its_class_token_or_patches(positions, chosen):
    model, inputs = image("vit")
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live, positions=positions)
        edited = output(model, inputs)
    mask = torch.tensor(chosen).expand(2, -1)
    with by_hand.edited(layer_of(model, "blocks.0"), sae, steer, mask):
        expected = output(model, inputs)
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-10)


def test_each_image_of_a_batch_has_its_own_mask_and_registers_are_not_patches():
    model, inputs = image("dinov2, registers")
    sae = by_hand.dictionary(families.WIDTH)
    masks = torch.stack([GRID, ~GRID])
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live, positions=masks)
        edited = output(model, inputs)
        live.clear()
        edits(live, positions="patches", examples=1)
        second = output(model, inputs)
    before = torch.zeros(2, 3, dtype=torch.bool)  # class token, two registers
    others = torch.zeros(2, 9, dtype=torch.bool)
    others[1] = True
    for result, patches in ((edited, masks.flatten(1)), (second, others)):
        mask = torch.cat([before, patches], 1)
        with by_hand.edited(layer_of(model, "blocks.0"), sae, steer, mask):
            expected = output(model, inputs)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_both_towers_of_clip_are_edited_by_their_own_inputs():
    """The text's padding is that of the text tower only."""
    model = families.model_of(families.VISION["clip"]).double()
    inputs = image("clip")[1] | text()[1]
    sae = by_hand.dictionary(families.WIDTH)
    layer = "text_model.encoder.layers.0"
    with saekit.attach(model, [sae, sae], ["blocks.0", layer]) as live:
        edits(live["blocks.0"], positions="patches")
        edits(live[layer])
        with torch.no_grad():
            edited = model(**inputs)
    patches = torch.tensor([False] + [True] * 9).expand(2, -1)
    real = inputs["attention_mask"].bool()
    with (
        by_hand.edited(layer_of(model, "blocks.0"), sae, steer, patches),
        by_hand.edited(model.get_submodule(layer), sae, steer, real),
        torch.no_grad(),
    ):
        expected = model(**inputs)
    torch.testing.assert_close(edited.image_embeds, expected.image_embeds, rtol=0, atol=1e-10)
    torch.testing.assert_close(edited.text_embeds, expected.text_embeds, rtol=0, atol=1e-10)


def test_names_of_positions_belong_to_a_kind_of_model():
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(image("vit")[0], sae, "blocks.0") as live:
        for positions in ("prompt", 3, slice(1, None)):
            with pytest.raises(UsageError, match="positions"):
                live.ablate(3, positions=positions)
    with saekit.attach(text()[0], sae, "blocks.0") as live:
        for positions in ("cls", "first", True, torch.ones(2, 6)):
            with pytest.raises(UsageError, match="positions"):
                live.ablate(3, positions=positions)
    assert not live.edits
    siglip, inputs = image("siglip")
    with saekit.attach(siglip, sae, "blocks.0") as live:
        live.ablate(3, positions="cls")
        with pytest.raises(DataError, match="no class token"):
            output(siglip, inputs)


# -- what the code is, and what x' is --------------------------------------------------------------


def test_edits_act_in_the_order_of_the_calls_also_on_conditions():
    model, inputs = text("llama")
    inputs.pop("attention_mask")
    sae = by_hand.dictionary(families.WIDTH, "jumprelu")

    def ordered(z: torch.Tensor) -> torch.Tensor:
        z[..., 3] = 1.0
        z[..., 3] = torch.where(z[..., 3] > 0.5, 4 * z[..., 3], z[..., 3])
        z[..., 5] = torch.where((z[..., 3] > 3.0) & (z[..., 6] > 0), 2.0, z[..., 5])
        return z

    with saekit.attach(model, sae, "blocks.0") as live:
        live.clamp(3, 1.0, raw=True)
        live.when(3, above=0.5, raw=True).scale(3, 4.0)
        live.when(3, above=3.0, raw=True).when(6).clamp(5, 2.0, raw=True)
        edited = output(model, inputs)
        shown = live.edits
    with by_hand.edited(layer_of(model, "blocks.0"), sae, ordered):
        expected = output(model, inputs)
    torch.testing.assert_close(edited, expected, rtol=0, atol=3e-5)
    assert shown == [
        "clamp(3, 1.0, raw=True)",
        "when(3, above=0.5, raw=True).scale(3, 4.0)",
        "when(3, above=3, raw=True).when(6, above=0, raw=True).clamp(5, 2.0, raw=True)",
    ]


def test_a_position_whose_code_stays_keeps_its_bits():
    """In bf16, where x + 0 would round a state that was computed in fp32."""
    model, inputs = text("llama")
    model, ids = model.bfloat16(), inputs["input_ids"]
    sae = by_hand.dictionary(families.WIDTH, "jumprelu").float()
    with torch.no_grad(), saekit.capture(model, "blocks.1") as states:
        clean = model(ids).logits
    x_BTD = states["blocks.1"].float()
    counts = (by_hand.encode(sae, x_BTD) > 0).flatten(0, 1).sum(0)
    latent = int((counts - x_BTD[..., 0].numel() // 2).abs().argmin())
    active = by_hand.encode(sae, x_BTD)[..., latent] > 0
    assert 0 < active.sum() < active.numel()
    with torch.no_grad(), saekit.attach(model, sae, "blocks.1") as live:
        live.ablate(latent)
        with saekit.capture(model, "blocks.1") as states:
            model(ids)
        live.clear()
        assert torch.equal(model(ids).logits, clean)
    edited = states["blocks.1"]
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[~active], x_BTD.bfloat16()[~active])
    z = by_hand.encode(sae, x_BTD)
    delta = -z[..., latent, None] * sae.W_dec[latent]
    assert torch.equal(edited[active], (x_BTD + delta).bfloat16()[active])


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
def test_without_the_error_the_state_is_the_reconstruction_of_the_edited_code(sparsity):
    model, inputs = text("gpt2")
    real = inputs["attention_mask"].bool()
    sae = by_hand.dictionary(families.WIDTH, sparsity)

    def replaced(edit):
        def hook(_module, _args, out):
            x = out[0] if isinstance(out, tuple) else out
            x_hat = edit(by_hand.encode(sae, x)) @ sae.W_dec + sae.b_dec
            new = torch.where(real[..., None], x_hat, x)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return hook

    layer = layer_of(model, "blocks.0")
    with saekit.attach(model, sae, "blocks.0", error=False) as live:
        plain = output(model, inputs)
        edits(live)
        edited = output(model, inputs)
    for result, edit in ((plain, lambda z: z), (edited, steer)):
        handle = layer.register_forward_hook(replaced(edit))
        torch.testing.assert_close(result, output(model, inputs), rtol=0, atol=1e-10)
        handle.remove()


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_the_norm_of_the_input_scales_the_change(norm):
    """x' - x is the difference of two whole reconstructions."""
    model, inputs = text("gpt2")
    factors = dict(input_norm=norm, input_factor=1.7, output_factor=0.6)
    sae = by_hand.dictionary(families.WIDTH, "jumprelu", **factors)
    with torch.no_grad(), saekit.capture(model, "blocks.0") as states:
        model(**inputs)
    x = states["blocks.0"].clone()
    with saekit.attach(model, sae, "blocks.0") as live:
        for edit in (edits, lambda live: live.add(3, 2.5, raw=True)):
            live.clear()
            edit(live)
            with saekit.capture(model, "blocks.0") as states:
                output(model, inputs)
            z = sae.encode(x)
            new = steer(z.clone())
            if edit is not edits:
                new = z.clone()
                new[..., 3] += 2.5
            whole = [sae.restored(sae.decode(code), x) for code in (new, z)]
            real = inputs["attention_mask"].bool()
            expected = torch.where(real[..., None], x + whole[0] - whole[1], x)
            torch.testing.assert_close(states["blocks.0"], expected, rtol=0, atol=1e-10)


def test_latents_that_compete_by_decoder_norm_are_decoded_by_unit_rows():
    sae = by_hand.dictionary(families.WIDTH, rescale_by_decoder_norm=True)
    x = torch.randn(5, families.WIDTH, dtype=torch.float64)
    z = sae.encode(x).to_dense()
    latents = torch.tensor([3, 9, 20])
    delta = torch.randn(5, 3, dtype=torch.float64)
    expected = sae.decode(z.index_add(1, latents, delta)) - sae.decode(z)
    torch.testing.assert_close(sae.decoded_change(delta, latents, x), expected)
    assert torch.equal(sae.values_of(x, latents), z[:, latents])


def test_values_of_some_latents_are_those_of_the_whole_code():
    x = torch.randn(50, families.WIDTH, dtype=torch.float64)
    latents = torch.tensor([40, 2, 7])
    for sae in (
        by_hand.dictionary(
            families.WIDTH, "jumprelu", subtract_b_dec=True, input_norm="layer_norm"
        ),
        by_hand.dictionary(families.WIDTH, "jumprelu", rescale_by_decoder_norm=True),
        by_hand.dictionary(families.WIDTH, "topk"),
    ):
        code = sae.encode(x).to_dense()
        torch.testing.assert_close(sae.values_of(x, latents), code[:, latents])
        assert (code[:, latents] > 0).any()


def test_a_linear_code_of_another_model_is_edited_too():
    model, inputs = text("gpt2")
    pca = PCA(PCAConfig(d_in=families.WIDTH, latents=8))
    pca.fit([torch.randn(100, families.WIDTH)])
    pca = pca.double()
    with saekit.capture(model, "blocks.0") as states:
        output(model, inputs)
    x = states["blocks.0"].clone()
    with saekit.attach(model, pca, "blocks.0") as live:
        live.ablate(2)
        with saekit.capture(model, "blocks.0") as states:
            output(model, inputs)
    z = pca.encode(x)
    new = z.clone()
    new[..., 2] = 0
    real = inputs["attention_mask"].bool()[..., None]
    expected = torch.where(real, x + pca.decode(new) - pca.decode(z), x)
    torch.testing.assert_close(states["blocks.0"], expected, rtol=0, atol=1e-10)


# -- transcoders and crosscoders -------------------------------------------------------------------


@pytest.mark.parametrize("error", [True, False])
def test_a_transcoder_corrects_or_replaces_the_output_of_a_module(error):
    model, inputs = text("gpt2")
    hooks = ("blocks.0.mlp:in", "blocks.0.mlp")
    sae = by_hand.dictionary(families.WIDTH, d_out=families.WIDTH, skip=True)
    real = inputs["attention_mask"].bool()[..., None]
    mlp = layer_of(model, "blocks.0.mlp")
    with saekit.attach(model, sae, hooks, error=error) as live:
        edits(live)
        edited = output(model, inputs)
        cached = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)

    def hook(_module, args, y):
        z = by_hand.encode(sae, args[0])
        new = steer(z.clone())
        x_hat = new @ sae.W_dec + sae.b_dec + args[0] @ sae.W_skip.T
        chosen = y + (new - z) @ sae.W_dec if error else x_hat
        return torch.where(real, chosen, y) if y.shape[1] == real.shape[1] else chosen

    handle = mlp.register_forward_hook(hook)
    expected = output(model, inputs)
    by_cache = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    handle.remove()
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-10)
    assert torch.equal(cached, by_cache)
    with pytest.raises(UsageError, match=r"of 1 input and 1 output hooks"):
        with saekit.attach(model, sae, "blocks.0.mlp"):
            pass


def test_an_output_before_the_input_is_refused():
    model, inputs = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH, d_out=families.WIDTH)
    with saekit.attach(model, sae, ("blocks.1", "blocks.0")) as live:
        edits(live)
        with pytest.raises(DataError, match=r"blocks.0 runs before blocks.1"):
            output(model, inputs)


CROSS = ("blocks.0", "blocks.1")


def crosscoder():
    return by_hand.dictionary(2 * families.WIDTH, "jumprelu", parts=[families.WIDTH] * 2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_crosscoder_edits_all_its_hooks_by_the_code_of_the_clean_model(family):
    """Generation with a cache equals a loop of two passes without one for each token."""
    model, inputs = text(family)
    inputs = {name: value.flip(1) for name, value in inputs.items()}  # padding on the left
    ids, mask = inputs.values()
    sae, steps = crosscoder(), 4
    with saekit.attach(model, sae, CROSS) as live:
        edits(live)
        sequences = model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, eos_token_id=None
        )
    layers = [layer_of(model, hook) for hook in CROSS]

    def both(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        run = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1) * mask, use_cache=False)
        with torch.no_grad(), saekit.capture(model, CROSS) as states:
            model(ids, **run)
        z = by_hand.encode(sae, torch.cat([states[hook] for hook in CROSS], -1))
        delta = ((steer(z.clone()) - z) @ sae.W_dec) * mask[..., None]

        def plus(part):
            def hook(_module, _args, out):
                x = out[0] if isinstance(out, tuple) else out
                new = x + delta.split(families.WIDTH, -1)[part]
                return (new, *out[1:]) if isinstance(out, tuple) else new

            return hook

        handles = [layer.register_forward_hook(plus(part)) for part, layer in enumerate(layers)]
        with torch.no_grad():
            logits = model(ids, **run).logits
        for handle in handles:
            handle.remove()
        return logits

    for _ in range(steps):
        token = both(ids, mask)[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    assert torch.equal(sequences, ids)


def test_a_crosscoder_that_only_adds_needs_no_second_pass_and_follows_beams():
    model, inputs = text("llama")
    sae, calls = crosscoder(), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with saekit.attach(model, sae, CROSS) as live:
        live.add(3, 2.5, raw=True)
        edited = output(model, inputs)
        assert len(calls) == 1
        beams = dict(num_beams=2, max_new_tokens=3, eos_token_id=None)
        model.generate(**inputs, **beams)
        live.ablate(5)
        with pytest.raises(DataError, match="does not follow beams"):
            model.generate(**inputs, **beams)
    real = inputs["attention_mask"][..., None]

    def plus(part):
        delta = 2.5 * sae.W_dec[3].split(families.WIDTH)[part] * real
        return lambda _m, _a, out: (
            (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta
        )

    for part, hook in enumerate(CROSS):
        layer_of(model, hook).register_forward_hook(plus(part))
    torch.testing.assert_close(edited, output(model, inputs), rtol=0, atol=3e-5)


def test_a_cross_layer_transcoder_writes_to_all_later_layers():
    torch.manual_seed(0)
    config = CrossLayerConfig(2 * families.WIDTH, 2 * by_hand.LATENTS, 2, "l1")
    clt = CrossLayerTranscoder(config).double().eval().requires_grad_(False)
    for parameter in clt.parameters():
        parameter.normal_(0, 0.3)
    model, inputs = text("gpt2")
    reads, writes = ("blocks.0.mlp:in", "blocks.1.mlp:in"), ("blocks.0.mlp", "blocks.1.mlp")
    with saekit.capture(model, reads) as states:
        output(model, inputs)
    z = clt.encode(torch.cat([states[hook] for hook in reads], -1))
    new = z.clone()
    new[..., 3] += 2.5
    new[..., by_hand.LATENTS + 5] = 0
    change = (clt.decode(new) - clt.decode(z)) * inputs["attention_mask"][..., None]
    with saekit.attach(model, clt, (*reads, *writes)) as live:
        live.add(3, 2.5, raw=True).ablate(by_hand.LATENTS + 5)
        edited = output(model, inputs)
    for hook, delta in zip(writes, change.split(families.WIDTH, -1)):
        assert delta.abs().max() > 0.1
        layer_of(model, hook).register_forward_hook(lambda _m, _a, y, delta=delta: y + delta)
    torch.testing.assert_close(edited, output(model, inputs), rtol=0, atol=1e-10)


def test_a_crosscoder_refuses_a_cache_that_the_clean_model_has_not_seen():
    model, inputs = text("llama")
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    with saekit.attach(model, crosscoder(), CROSS) as live:
        live.ablate(5)
        with pytest.raises(DataError, match="has not seen the 6 tokens"), torch.no_grad():
            model(inputs["input_ids"][:, :1], past_key_values=cache)


# -- several dictionaries, training, and the caller's model ----------------------------------------


def test_several_dictionaries_act_as_one_attach_inside_the_other():
    model, inputs = text("gpt2")
    a, b = by_hand.dictionary(families.WIDTH), by_hand.dictionary(families.WIDTH, seed=1)
    with saekit.attach(model, {"blocks.0": a, "blocks.1": b}) as live:
        edits(live["blocks.0"])
        edits(live[1])
        together = output(model, inputs)
        assert [one.hooks for one in live] == [("blocks.0",), ("blocks.1",)]
        with pytest.raises(UsageError, match="2 dictionaries are attached"):
            live.ablate(3)
        with pytest.raises(DataError, match="not one of the attached"):
            live["blocks.7"]
    with (
        saekit.attach(model, a, "blocks.0") as first,
        saekit.attach(model, b, "blocks.1") as second,
    ):
        edits(first)
        edits(second)
        assert torch.equal(output(model, inputs), together)
    # at one hook, the second sees what the first left
    with saekit.attach(model, [a, b], ["blocks.0", "blocks.0"]) as live:
        edits(live[0])
        edits(live[1])
        twice = output(model, inputs)
    real, layer = inputs["attention_mask"].bool(), layer_of(model, "blocks.0")
    with by_hand.edited(layer, a, steer, real), by_hand.edited(layer, b, steer, real):
        torch.testing.assert_close(twice, output(model, inputs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("hook", ["blocks.1", "blocks.0.mlp"])
def test_gradient_checkpointing_recomputes_the_same_edit(hook, reentrant):
    """Of two passes whose gradients are computed afterwards, each with the edits of its time."""
    model, inputs = text("llama")
    sae = by_hand.dictionary(families.WIDTH)
    others = {"input_ids": inputs["input_ids"].flip(1), "attention_mask": torch.ones(2, 6).long()}

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        losses = []
        with saekit.attach(model, sae, hook) as live:
            for batch, positions in ((inputs, "last"), (others, slice(2, None))):
                live.clear()
                edits(live, positions=positions)
                losses.append(model(**batch, use_cache=False).logits.square().mean())
            live.clear()
            sum(losses).backward()
        model.eval()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    function = model.model.layers[0].__dict__["_gradient_checkpointing_func"]
    torch.testing.assert_close(gradient(), expected, rtol=1e-5, atol=1e-8)
    assert model.model.layers[0].__dict__["_gradient_checkpointing_func"] is function


def test_gradients_reach_the_state_and_the_code():
    model, inputs = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH, "jumprelu")
    embeds = model.transformer.wte(inputs["input_ids"]).detach().requires_grad_()
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live)

        def value(e):
            run = dict(attention_mask=inputs["attention_mask"], use_cache=False)
            return model(inputs_embeds=e, **run).logits.square().mean()

        value(embeds).backward()
        step = torch.zeros_like(embeds)
        step[0, 2, 5] = 1e-6
        with torch.no_grad():
            slope = (value(embeds + step) - value(embeds - step)) / 2e-6
    assert embeds.grad[0, 2, 5].item() == pytest.approx(slope.item(), rel=1e-4)


def test_nothing_stays_on_the_model_also_after_an_exception():
    model, inputs = text("llama")
    sae = by_hand.dictionary(families.WIDTH)
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    clean = output(model, inputs)
    with pytest.raises(ZeroDivisionError), saekit.attach(model, sae, "blocks.0") as live:
        edits(live)
        output(model, inputs)
        raise ZeroDivisionError
    with pytest.raises(DataError), saekit.attach(model, {"blocks.0": sae, "blocks.9": sae}):
        pass
    assert torch.equal(output(model, inputs), clean)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == before
    for part in model.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks
    assert not sae.training and all(not p.requires_grad for p in sae.parameters())


@pytest.mark.parametrize("way", ["wrapper", "in place", "layers"])
def test_a_model_that_was_compiled_before_is_edited_and_read_and_is_compiled_afterwards(way):
    """Compiled code does not look for hooks that are added later."""
    model, inputs = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live)
        expected = output(model, inputs)
    graphs = []

    def backend(graph, _inputs):
        def counted(*args):
            graphs.append(1)
            return graph.forward(*args)

        return counted

    compiled = torch.compile(model, backend=backend) if way == "wrapper" else model
    for part in {"in place": [model], "layers": model.transformer.h}.get(way, ()):
        part.compile(backend=backend)
    clean = output(compiled, inputs)
    assert graphs
    with saekit.attach(compiled, sae, "blocks.0") as live:
        edits(live)
        edited = output(compiled, inputs)
    with saekit.splice(compiled, "blocks.0", lambda x: 0 * x):
        without = output(compiled, inputs)
    with saekit.capture(compiled, "blocks.0") as states:
        output(compiled, inputs)
    assert states["blocks.0"].shape == (*inputs["input_ids"].shape, families.WIDTH)
    assert torch.equal(edited, expected) and not torch.equal(without, clean)
    graphs.clear()
    assert torch.equal(output(compiled, inputs), clean) and graphs


def test_compiled_code_is_used_again_whatever_ends_first():
    model, _ = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH)
    first, second = saekit.attach(model, sae, "blocks.0"), saekit.capture(model, "blocks.1")
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: 2 * x, backend=backend)
    with ExitStack() as stack:
        stack.enter_context(first)
        second.__enter__()
    doubled(torch.ones(2))
    assert not graphs, "the second still reads the model"
    second.__exit__(None, None, None)
    doubled(torch.ones(2))
    assert len(graphs) == 1


def test_inference_mode_and_a_dictionary_in_training_mode():
    model, inputs = text("llama")
    sae = by_hand.dictionary(families.WIDTH).train()
    with torch.inference_mode(), saekit.attach(model, sae, "blocks.0") as live:
        edits(live)
        edited = model(**inputs).logits
        assert not live[0].model.training
    assert sae.training
    with by_hand.edited(layer_of(model, "blocks.0"), sae, steer, inputs["attention_mask"].bool()):
        torch.testing.assert_close(edited, output(model, inputs), rtol=0, atol=3e-5)
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live)
        assert torch.equal(output(model, inputs), edited)


def test_a_part_that_runs_by_itself_has_no_positions():
    model, _ = text("llama")
    sae = by_hand.dictionary(families.WIDTH)
    x = torch.randn(2, 4, families.WIDTH, dtype=torch.float64)
    with saekit.attach(model, sae, "blocks.0.mlp") as live:
        live.add(3, 1.0, raw=True)
        mlp = model.model.layers[0].mlp
        shift = mlp(x)
        live.clear()
        torch.testing.assert_close(shift, mlp(x) + sae.W_dec[3])
        live.add(3, 1.0, raw=True, positions="last")
        with pytest.raises(DataError, match="does not say which positions") as raised:
            mlp(x)
        assert raised.value.hint == "run the model itself"


class Own(torch.nn.Module):
    """A model whose inputs nothing describes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(families.WIDTH, families.WIDTH), torch.nn.GELU())
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_module_of_ones_own_is_edited_at_all_positions_or_by_a_mask():
    model = Own().double()
    sae = by_hand.dictionary(families.WIDTH)
    x = torch.randn(2, 5, families.WIDTH, dtype=torch.float64)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = True
    for chosen, where in ((None, "all"), (mask, mask)):
        with saekit.attach(model, sae, "blocks.0.1") as live:
            edits(live, positions=where)
            edited = model(x)
        with by_hand.edited(model.blocks[0][1], sae, steer, chosen):
            torch.testing.assert_close(edited, model(x), rtol=0, atol=1e-12)


# -- hooks and units -------------------------------------------------------------------------------


def test_a_checkpoint_brings_its_hook_and_the_units_of_its_index(made):
    live_model = load_model(made.model)
    with pytest.raises(UsageError, match="largest activation of each latent is not known"):
        with saekit.attach(live_model, made.run) as live:
            live.add(3, 1.0)
    saekit.inspect(made.run, made.store, made.run.parent / "page")
    sae = saekit.load(made.run)
    store = saekit.open_store(made.store)
    z = torch.cat([sae.encode(batch.x.float()).to_dense() for batch in store.batches(512)])
    latent = int(z.max(0).values.argmax())
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        with saekit.attach(live_model, made.run) as live:
            assert live[0].hooks == ("model.layers.1",)
            live.add(latent, 2.0).when(latent, above=0.5).clamp(latent, 1.5)
            by_index = live_model.module(ids).logits
        with saekit.attach(live_model, sae, "blocks.1") as live:
            largest = float(z[:, latent].max())
            live.add(latent, 2 * largest, raw=True)
            live.when(latent, above=largest / 2, raw=True).clamp(latent, 1.5 * largest, raw=True)
            torch.testing.assert_close(live_model.module(ids).logits, by_index)
    silent = int((z.max(0).values == 0).nonzero()[0]) if (z.max(0).values == 0).any() else None
    if silent is not None:
        with saekit.attach(live_model, made.run) as live:
            with pytest.raises(UsageError, match="never active"):
                live.add(silent, 1.0)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_a_published_dictionary_is_attached_at_the_hook_that_it_names(hook, tmp_path):
    metadata = {"hook_name": hook, "model_name": "gpt2"}
    path = made_dictionaries.saelens(
        tmp_path / "sae", "jumprelu", width=families.WIDTH, metadata=metadata
    )
    model, inputs = text("gpt2")
    with saekit.attach(model, path) as live:
        live.ablate([3, 4])
        edited = output(model, inputs)
    place = "blocks.1" + ".mlp" * ("mlp" in hook)
    sae = saekit.load(path)

    def ablated(_module, _args, out):
        x = out[0] if isinstance(out, tuple) else out
        z = sae.encode(x.float())
        z[..., [k for k in range(z.shape[-1]) if k not in (3, 4)]] = 0
        new = x - (z @ sae.W_dec) * inputs["attention_mask"][..., None]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    layer_of(model, place).register_forward_hook(ablated)
    torch.testing.assert_close(edited, output(model, inputs), rtol=0, atol=1e-5)


def test_maxima_are_the_unit_of_sizes():
    model, inputs = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH)
    maxima = torch.linspace(0, 4.7, by_hand.LATENTS)
    with saekit.attach(model, sae, "blocks.0", maxima=maxima) as live:
        live.add([3, 4], [1.0, -2.0])
        edited = output(model, inputs)
        live.clear()
        live.add([3, 4], [0.3, -0.8], raw=True)
        torch.testing.assert_close(output(model, inputs), edited, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"maxima has the shape \(7,\)"):
        with saekit.attach(model, sae, "blocks.0", maxima=torch.ones(7)):
            pass


def test_wrong_calls_are_refused_and_change_nothing():
    model, inputs = text("gpt2")
    sae = by_hand.dictionary(families.WIDTH)
    wrong = {
        "has 48 \\(0 to 47\\)": lambda live: live.ablate(48),
        "occurs twice": lambda live: live.ablate([3, 3]),
        "3 values for 2 latents": lambda live: live.add([1, 2], [1.0, 2.0, 3.0], raw=True),
        "is not known": lambda live: live.when(3, above=0.5),
        "not \\(F,\\)": lambda live: live.swap(torch.ones(7)),
    }
    with saekit.attach(model, sae, "blocks.0") as live:
        for message, call in wrong.items():
            kind = DataError if message.startswith("has 48") else UsageError
            with pytest.raises(kind, match=message) as error:
                call(live)
            assert error.value.hint or kind is UsageError
        assert not live.edits and repr(live).endswith("no edits")
    with pytest.raises(UsageError, match="does not say which hook"):
        with saekit.attach(model, sae):
            pass
    narrow = by_hand.dictionary(7)
    with saekit.attach(model, narrow, "blocks.0") as live:
        live.ablate(3)
        with pytest.raises(DataError, match=r"7 values per position at blocks.0, which has 24"):
            output(model, inputs)
    with pytest.raises(DataError, match=r"blocks.0 did not run"):
        with saekit.attach(model, sae, "blocks.0") as live:
            live.ablate(3)
    with pytest.raises(UsageError, match="whole examples"):
        with saekit.attach(model, build("conv", 64, {}, (8, 8, 1)), "blocks.0"):
            pass

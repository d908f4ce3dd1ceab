"""Generation of an attached model equals, token by token, a loop without a KV cache whose states
are edited by plain torch in fp64."""

from __future__ import annotations

import by_hand
import families
import pytest
import torch

import saekit
from saekit.errors import DataError
from saekit.harvesting.hooks import resolve_hook

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma3", "qwen3")
PROMPT, STEPS = 6, 7


def model_of(family: str) -> torch.nn.Module:
    model = families.model_of(families.CAUSAL[family]).double()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # every text gets all its tokens
    return model


def layer_of(model, block: int = 1) -> torch.nn.Module:
    return model.get_submodule(resolve_hook(model, f"blocks.{block}"))


def inputs(side: str | None = None, count: int = 2) -> dict[str, torch.Tensor]:
    """Of `count` texts; with `side` the second is three tokens shorter."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(3, families.VOCAB, (count, PROMPT), generator=g)
    mask = torch.ones_like(ids)
    if side:
        padding = slice(0, 3) if side == "left" else slice(PROMPT - 3, PROMPT)
        mask[1, padding] = 0
        ids[1, padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def greedy(model, batch, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (B,T+STEPS), the model's own logits of the new ones, which `generate` rounds)."""
    logits = []
    handle = model.register_forward_hook(lambda _m, _a, out: logits.append(out.logits[:, -1]))
    try:
        sequences = model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **options)
    finally:
        handle.remove()
    return sequences, torch.stack(logits[-STEPS:], 1)


def steer(z: torch.Tensor) -> torch.Tensor:
    """What `edits` does, in its order."""
    z[..., 3] += 2.5
    z[..., [5, 7]] = 0
    z[..., 9] = 1.5
    z[..., 3] *= 0.5
    return torch.where(
        (z[..., 11] > 0.2)[..., None] & (torch.arange(by_hand.LATENTS) == 12), 4.0, z
    )


def edits(live, **where) -> None:
    live.add(3, 2.5, raw=True, **where).ablate([5, 7], **where)
    live.clamp(9, 1.5, raw=True, **where)
    live.scale(3, 0.5, **where)
    live.when(11, above=0.2, raw=True).clamp(12, 4.0, raw=True, **where)


def padded(batch, length: int) -> torch.Tensor:
    """(B,T) bool of the real tokens of a text that has grown."""
    real = batch["attention_mask"].bool()
    return torch.cat([real, real.new_ones(len(real), length - PROMPT)], 1)


def columns(chosen) -> object:
    """A mask for by_hand: the columns for which `chosen` holds."""
    return lambda batch: lambda x: padded(batch, x.shape[1]) & chosen(torch.arange(x.shape[1]))


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_with_a_cache_equals_a_loop_without(family, side, sparsity):
    model, batch = model_of(family), inputs(side)
    sae = by_hand.dictionary(families.WIDTH, sparsity)
    plain, plain_logits = greedy(model, batch)
    with saekit.attach(model, sae, "blocks.1") as live:
        sequences, logits = greedy(model, batch)
        assert torch.equal(sequences, plain) and torch.equal(logits, plain_logits)
        edits(live)
        sequences, logits = greedy(model, batch)
        uncached, _ = greedy(model, batch, use_cache=False)
    everywhere = columns(lambda column: column >= 0)(batch)
    with by_hand.edited(layer_of(model), sae, steer, everywhere):
        expected, expected_logits = by_hand.generate(model, *batch.values(), STEPS)
    assert torch.equal(sequences, expected) and torch.equal(uncached, expected)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=tolerance(family))
    assert (logits - plain_logits).abs().amax((0, 2)).min() > 0.01, "each step is steered"
    assert torch.equal(greedy(model, batch)[1], plain_logits), "nothing stays"


def tolerance(family: str) -> float:
    """Llama, Gemma and Qwen compute their norms in fp32, whatever the weights are in."""
    return 1e-10 if family in ("gpt2", "gpt_neox") else 3e-5


@pytest.mark.parametrize("hook", ["decoder.block.1", "encoder.block.1"])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last", slice(3, None)])
def test_an_encoder_decoder_is_edited_in_each_of_its_stacks(positions, hook):
    """Each stack has its own padding and prompt; the encoder runs once, before the beams."""
    entry = ("T5ForConditionalGeneration", "T5Config", families.T5)
    model, batch = families.model_of(entry).double(), inputs("right")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    model.generation_config.eos_token_id = None
    sae = by_hand.dictionary(families.WIDTH)
    for options in (dict(do_sample=False), dict(num_beams=3)):
        with saekit.attach(model, sae, hook) as live:
            edits(live, positions=positions)
            options |= dict(max_new_tokens=STEPS)
            sequences = model.generate(**batch, **options)
            assert torch.equal(model.generate(**batch, **options, use_cache=False), sequences)


@pytest.mark.parametrize("positions", ["prompt", "generated", "last", slice(4, 8)])
def test_recurrent_states_and_tokens_that_are_taken_back_keep_their_positions(positions):
    for family, hook, options in (
        ("mamba", "backbone.layers.1", dict(use_cache=False)),
        ("llama", "blocks.1", dict(prompt_lookup_num_tokens=3)),
    ):
        model, batch = model_of(family), inputs(count=1)
        sae = by_hand.dictionary(families.WIDTH)
        run = dict(**batch, max_new_tokens=STEPS, do_sample=False)
        with saekit.attach(model, sae, hook) as live:
            live.add(3, 20.0, raw=True, positions=positions)
            assert torch.equal(model.generate(**run), model.generate(**run, **options)), family


@pytest.mark.parametrize(
    "positions, chosen",
    [
        ("prompt", lambda column: column < PROMPT),
        ("generated", lambda column: column >= PROMPT),
        ("last", lambda column: column >= PROMPT - 1),
        (slice(4, None), lambda column: column >= 4),
        (slice(1, 9, 2), lambda column: (column % 2 == 1) & (column < 9)),
        (8, lambda column: column == 8),
        (torch.eye(8).bool()[[2, 2]], lambda column: column == 2),
    ],
)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_positions_mean_the_same_with_and_without_a_cache(family, positions, chosen, use_cache):
    model, batch = model_of(family), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(model, sae, "blocks.0", positions=positions) as live:
        edits(live)
        sequences, logits = greedy(model, batch, use_cache=use_cache)
    with by_hand.edited(layer_of(model, 0), sae, steer, columns(chosen)(batch)):
        expected, expected_logits = by_hand.generate(model, *batch.values(), STEPS)
    assert torch.equal(sequences, expected)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=tolerance(family))


def test_token_indices_do_not_count_padding():
    model, batch = model_of("gpt2"), inputs("left")
    sae = by_hand.dictionary(families.WIDTH)
    index = lambda x: padded(batch, x.shape[1]).long().cumsum(1) - 1
    with saekit.attach(model, sae, "blocks.0") as live:
        edits(live, positions=slice(2, 5))
        _, logits = greedy(model, batch)
    mask = lambda x: padded(batch, x.shape[1]) & (index(x) >= 2) & (index(x) < 5)
    with by_hand.edited(layer_of(model, 0), sae, steer, mask):
        _, expected = by_hand.generate(model, *batch.values(), STEPS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_the_last_token_of_a_right_padded_prompt_is_its_last_real_one():
    model, batch = model_of("gpt2"), inputs("right")
    sae = by_hand.dictionary(families.WIDTH)
    mask = torch.zeros(2, PROMPT, dtype=torch.bool)
    mask[0, PROMPT - 1] = mask[1, PROMPT - 4] = True
    with torch.no_grad():
        with saekit.attach(model, sae, "blocks.0") as live:
            edits(live, positions="last")
            logits = model(**batch).logits
        with by_hand.edited(layer_of(model, 0), sae, steer, mask):
            expected = model(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_example_of_a_batch_has_its_own_edits_also_in_beams(family):
    """A batch gives what its examples give one by one, each with its own edit."""
    model, batch = model_of(family), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    beams = dict(num_beams=3, num_return_sequences=2, max_new_tokens=STEPS, do_sample=False)
    scored = dict(output_scores=True, return_dict_in_generate=True)
    with saekit.attach(model, sae, "blocks.1") as live:
        live.add(3, 6.0, raw=True, examples=0)
        live.ablate([5, 7], examples=[1]).add(
            20, 3.0, raw=True, examples=torch.tensor([False, True])
        )
        together = model.generate(**batch, **beams, **scored)
    for example, one in enumerate(range(2)):
        alone = {name: value[one : one + 1] for name, value in batch.items()}
        with saekit.attach(model, sae, "blocks.1") as live:
            if example == 0:
                live.add(3, 6.0, raw=True)
            else:
                live.ablate([5, 7]).add(20, 3.0, raw=True)
            apart = model.generate(**alone, **beams, **scored)
        rows = slice(2 * example, 2 * example + 2)
        assert torch.equal(together.sequences[rows], apart.sequences)
        torch.testing.assert_close(
            together.sequences_scores[rows], apart.sequences_scores, rtol=0, atol=1e-4
        )


def test_beam_search_equals_a_search_whose_model_is_edited_by_hand():
    model, batch = model_of("gpt2"), inputs("left")
    sae = by_hand.dictionary(families.WIDTH)
    options = dict(num_beams=4, max_new_tokens=STEPS, do_sample=False)
    with saekit.attach(model, sae, "blocks.1", positions=slice(3, None)) as live:
        edits(live)
        sequences = model.generate(**batch, **options)
    real = batch["attention_mask"].bool().repeat_interleave(4, 0)

    def mask(x: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([real, real.new_ones(len(real), x.shape[1] - PROMPT)], 1)
        return whole & (whole.long().cumsum(1) - 1 >= 3)

    with by_hand.edited(layer_of(model), sae, steer, mask):
        expected = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(sequences, expected)


def test_sampling_draws_from_the_steered_distribution():
    model, batch = model_of("llama"), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    options = dict(do_sample=True, max_new_tokens=STEPS, top_k=0)
    with saekit.attach(model, sae, "blocks.1") as live:
        edits(live)
        torch.manual_seed(5)
        sequences = model.generate(**batch, **options)
    with by_hand.edited(layer_of(model), sae, steer):
        torch.manual_seed(5)
        expected = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(sequences, expected)


def test_a_prompt_in_chunks_a_static_cache_and_a_second_turn_are_the_same_text():
    model, batch = model_of("llama"), inputs("left")
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(model, sae, "blocks.1") as live:
        for positions in ("last", "prompt", "generated"):
            live.clear()
            live.add(3, 5.0, raw=True, positions=positions)
            expected, logits = greedy(model, batch)
            for options in ({"prefill_chunk_size": 4}, {"cache_implementation": "static"}):
                sequences, others = greedy(model, batch, **options)
                assert torch.equal(sequences, expected)
                torch.testing.assert_close(others, logits, rtol=0, atol=3e-5)


def test_a_second_call_of_generate_goes_on_with_a_filled_cache():
    """Its prompt is all that was there before."""
    from transformers import DynamicCache

    model, batch = model_of("gpt2"), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    cache = DynamicCache(config=model.config)
    with saekit.attach(model, sae, "blocks.1") as live:
        live.add(3, 5.0, raw=True, positions="generated")
        first = model.generate(**batch, past_key_values=cache, max_new_tokens=3, do_sample=False)
        longer = torch.cat([first, first[:, :2]], 1)
        options = dict(attention_mask=torch.ones_like(longer), max_new_tokens=3, do_sample=False)
        second = model.generate(longer, past_key_values=cache, **options)

    def mask(x: torch.Tensor) -> torch.Tensor:
        # the last token of the first call was never run there: it is in the second one's prompt
        column = torch.arange(x.shape[1])
        ran = (column >= PROMPT) & (column < PROMPT + 2) | (column >= PROMPT + 5)
        return ran.expand(2, -1)

    def plus(z: torch.Tensor) -> torch.Tensor:
        z[..., 3] += 5.0
        return z

    with by_hand.edited(layer_of(model), sae, plus, mask):
        expected, _ = by_hand.generate(model, longer, torch.ones_like(longer), 3)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("begin", ["cache", "no cache"])
def test_a_loop_of_ones_own_with_a_cache_knows_what_it_generated(begin):
    from transformers import DynamicCache

    model, batch = model_of("llama"), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    cache = DynamicCache(config=model.config) if begin == "cache" else None
    ids, logits = batch["input_ids"], []
    with torch.no_grad(), saekit.attach(model, sae, "blocks.1") as live:
        edits(live, positions="generated")
        step = ids
        for _ in range(STEPS):
            out = model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
            step = logits[-1].argmax(-1, keepdim=True)
    generated = columns(lambda column: column >= PROMPT)(batch)
    with by_hand.edited(layer_of(model), sae, steer, generated):
        _, expected = by_hand.generate(model, *batch.values(), STEPS)
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=0, atol=3e-5)


def test_codes_are_swapped_by_column_and_generated_tokens_stay():
    model, batch = model_of("gpt2"), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    codes = torch.rand(2, PROMPT, by_hand.LATENTS, dtype=torch.float64)
    with saekit.attach(model, sae, "blocks.1") as live:
        live.swap(codes)
        _, logits = greedy(model, batch)
        live.clear()
        live.swap(codes[0, 0])
        _, constant = greedy(model, batch)
        live.clear()
        live.keep_only([1, 2, 3])
        _, few = greedy(model, batch)

    def swapped(z: torch.Tensor) -> torch.Tensor:
        z[:, :PROMPT] = codes
        return z

    def kept(z: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.isin(torch.arange(by_hand.LATENTS), torch.tensor([1, 2, 3])), z, 0)

    cases = [(swapped, logits), (lambda z: codes[0, 0].expand_as(z), constant), (kept, few)]
    for edit, result in cases:
        with by_hand.edited(layer_of(model), sae, edit):
            _, expected = by_hand.generate(model, *batch.values(), STEPS)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_a_pipeline_and_a_streamer_run_the_steered_model():
    import tiny
    from transformers import TextGenerationPipeline
    from transformers.generation.streamers import BaseStreamer

    model, tokenizer = tiny.random_model("llama").double(), tiny.tokenizer()
    sae = by_hand.dictionary(tiny.WIDTH)
    tokenizer.padding_side = "left"
    pipe = TextGenerationPipeline(model=model, tokenizer=tokenizer, batch_size=2)
    texts, options = ["the cat sat on", "a dog"], dict(max_new_tokens=5, do_sample=False)

    class Streamer(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    def piped() -> list[str]:
        return [made[0]["generated_text"] for made in pipe(texts, **options)]

    clean = piped()
    with saekit.attach(model, sae, "blocks.1") as live:
        live.add(3, 40.0, raw=True)
        steered = piped()
        one = tokenizer(texts[0], return_tensors="pt")
        streamer = Streamer()
        direct = model.generate(
            one["input_ids"], attention_mask=one["attention_mask"], streamer=streamer, **options
        )
    assert steered != clean and piped() == clean
    words = tokenizer.decode(direct[0], skip_special_tokens=True).split()
    assert steered[0].replace("<pad>", " <pad>").split() == words
    assert streamer.tokens == direct[0].tolist()


def test_each_decoded_token_of_a_bf16_model_has_the_change_rounded_once():
    model, batch = model_of("llama").bfloat16(), inputs("left")
    sae = by_hand.dictionary(families.WIDTH, "jumprelu").float()
    states = {"before": [], "after": []}

    def record(name):
        return layer_of(model).register_forward_hook(lambda _m, _a, x: states[name].append(x))

    record("before")
    with saekit.attach(model, sae, "blocks.1") as live:
        live.ablate([5, 7]).add(3, 2.5, raw=True)
        handle = record("after")
        model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
        handle.remove()
    real = padded(batch, PROMPT)
    assert [x.shape[1] for x in states["before"]] == [PROMPT] + [1] * (STEPS - 1)
    for number, (before, after) in enumerate(zip(states["before"], states["after"])):
        z = by_hand.encode(sae, before.float())
        change = 2.5 * sae.W_dec[3] - z[..., [5, 7]] @ sae.W_dec[[5, 7]]
        expected = (before.float() + change).bfloat16()
        if number == 0:
            expected = torch.where(real[..., None], expected, before)
        # sums in another order round differently in rare cases
        assert after.dtype == torch.bfloat16 and (after != expected).float().mean() < 0.01
        torch.testing.assert_close(after, expected, rtol=1e-2, atol=1e-2)
        assert not torch.equal(after, before)


def test_an_exception_while_a_text_is_written_leaves_nothing_for_the_next_text():
    from transformers.generation.streamers import BaseStreamer

    class Full(BaseStreamer):
        count = 0

        def put(self, value: torch.Tensor) -> None:
            self.count += 1
            if self.count == 4:
                raise OSError("disk full")

        def end(self) -> None:
            pass

    model, batch = model_of("gpt2"), inputs(count=1)
    sae = by_hand.dictionary(families.WIDTH)
    plain, plain_logits = greedy(model, batch)
    with saekit.attach(model, sae, "blocks.1", positions="generated") as live:
        edits(live)
        expected, logits = greedy(model, batch)
        with pytest.raises(OSError, match="disk full"):
            greedy(model, batch, streamer=Full())
        again, logits_again = greedy(model, batch)
        assert torch.equal(again, expected) and torch.equal(logits_again, logits)
    with pytest.raises(OSError), saekit.attach(model, sae, "blocks.1") as live:
        edits(live)
        greedy(model, batch, streamer=Full())
    sequences, logits = greedy(model, batch)
    assert torch.equal(sequences, plain) and torch.equal(logits, plain_logits)
    assert "generate" not in vars(model)


def test_a_mask_for_another_batch_is_refused():
    model, batch = model_of("gpt2"), inputs()
    sae = by_hand.dictionary(families.WIDTH)
    with saekit.attach(model, sae, "blocks.1") as live:
        live.add(3, 1.0, raw=True, positions=torch.ones(3, PROMPT, dtype=torch.bool))
        with pytest.raises(DataError, match="for 3 examples, and the pass has 2 rows"):
            model(**batch)
        live.clear()
        live.add(3, 1.0, raw=True, examples=[2])
        with pytest.raises(DataError, match="the batch has 2 examples"):
            model(**batch)

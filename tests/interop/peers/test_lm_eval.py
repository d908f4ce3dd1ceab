"""lm-eval scores the attached model as any other: needs the package lm-eval (extra `lm-eval`)."""

from __future__ import annotations

import by_hand
import pytest
import tiny
import torch

import saekit

pytest.importorskip("lm_eval")

DOCS = [
    {"text": "the cat sat on a", "choices": ["mat", "dog ran", "home"], "answer": 0},
    {"text": "a dog ran", "choices": ["far away", "cat", "it"], "answer": 0},
    {"text": "and", "choices": ["mat", "from home", "sat"], "answer": 1},
]


def tasks() -> list[dict]:
    """One task of log-likelihoods, one of generated text, on data in memory."""
    from datasets import Dataset, DatasetDict

    common = {
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(DOCS)}),
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    generated = {
        "task": "generated",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["<none>"], "max_gen_toks": 4, "do_sample": False},
    }
    return [common | choice, common | generated]


def scored(model, tokenizer) -> tuple[list[float], list[str]]:
    """(log-likelihood of each choice of each document, generated texts)."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    samples = lm_eval.simple_evaluate(lm, tasks=tasks(), bootstrap_iters=0)["samples"]
    of = {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in samples.items()}
    return (
        [float(resp[0][0]) for row in of["choice"] for resp in row["resps"]],
        [row["resps"][0][0] for row in of["generated"]],
    )


def by_loop(model, tokenizer) -> tuple[list[float], list[str]]:
    """The same without lm-eval, one text at a time."""
    values, texts = [], []
    with torch.no_grad():
        for doc in DOCS:
            context = tokenizer(doc["text"])["input_ids"]
            for choice in doc["choices"]:
                ids = torch.tensor([context + tokenizer(choice)["input_ids"]])
                log_p = model(ids).logits[0].log_softmax(-1)
                steps = range(len(context), ids.shape[1])
                values.append(sum(float(log_p[at - 1, ids[0, at]]) for at in steps))
            start = torch.tensor([context])
            ids, _ = by_hand.generate(model, start, torch.ones_like(start), 4)
            texts.append(tokenizer.decode(ids[0, len(context) :], skip_special_tokens=True))
    return values, texts


def test_lm_eval_scores_the_steered_and_the_clean_model():
    model, tokenizer = tiny.random_model("llama").double(), tiny.tokenizer()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # opinions
    model.generation_config.eos_token_id = None
    sae = by_hand.dictionary(tiny.WIDTH, "jumprelu")
    clean = scored(model, tokenizer)
    with saekit.attach(model, sae, "blocks.1") as live:
        live.add(3, 3.0, raw=True).ablate(5)
        steered = scored(model, tokenizer)
    assert scored(model, tokenizer) == clean

    def edit(z: torch.Tensor) -> torch.Tensor:
        z[..., 3] += 3.0
        z[..., 5] = 0
        return z

    expected_clean = by_loop(model, tokenizer)
    with by_hand.edited(model.model.layers[1], sae, edit):
        expected = by_loop(model, tokenizer)
    for result, by_plain_torch in ((clean, expected_clean), (steered, expected)):
        assert result[0] == pytest.approx(by_plain_torch[0], abs=1e-4)
        assert [text.split() for text in result[1]] == [text.split() for text in by_plain_torch[1]]
    assert steered[0] != pytest.approx(clean[0], abs=0.1) and steered[1] != clean[1]

"""Hidden states of a model in memory on a list of texts. Nothing is written to disk.

    python examples/harvest_in_memory.py [MODEL] [HOOK]

MODEL is a hub id or a folder; by default the SmolLM2-135M that `make demo` uses.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.embedded import smollm2

TEXTS = ["the cat sat on a mat", "a dog ran far away from home", "the dog sat"]


def main(model_id: str | None = None, hook: str = "blocks.1") -> torch.Tensor:
    """The rows (N,D): one per token."""
    # Any transformers model: loaded, fine-tuned a minute ago, or built from a config.
    path = model_id or smollm2.folder()
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    result = saekit.harvest(model, TEXTS, hook=hook, tokenizer=tokenizer, ctx=32, dtype="float32")
    print(f"{result.rows} rows of width {result.x.shape[1]}")

    # Every row can be traced to its text. Rows come in the order in which the model saw them.
    assert result.batches is not None, "the rows are in memory"
    (batch,) = result.batches.values()
    for number, text in enumerate(TEXTS):
        rows = batch.x[batch.doc_id == number]
        print(f"{len(rows)} tokens, mean norm {rows.norm(dim=1).mean():.3g}: {text}")
    return result.x


if __name__ == "__main__":
    main(*sys.argv[1:])

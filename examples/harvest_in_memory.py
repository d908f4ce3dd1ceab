"""Hidden states of a model in memory on a list of texts, without writing anything to disk.

python examples/harvest_in_memory.py [MODEL] [HOOK]
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit

TEXTS = ["the cat sat on a mat", "a dog ran far away from home", "the dog sat"]


def main(model_id: str = "HuggingFaceTB/SmolLM2-135M", hook: str = "blocks.1") -> None:
    # Any transformers model: loaded, fine-tuned a minute ago, or made from a config.
    model = AutoModelForCausalLM.from_pretrained(model_id, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)

    result = saekit.harvest(model, TEXTS, hook=hook, tokenizer=tokenizer, ctx=32, dtype="float32")
    print(f"{result.rows} rows of width {result.x.shape[1]}")

    # Every row can be traced to its text. Rows come in the order in which the model saw them.
    (batch,) = result.batches.values()
    for number, text in enumerate(TEXTS):
        rows = batch.x[batch.doc_id == number]
        print(f"{len(rows)} tokens, mean norm {rows.norm(dim=1).mean():.3g}: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Steer a running model: a latent that a text activates is added to every token that follows it.

    python examples/steer_a_model.py [CHECKPOINT] [HOOK] [MODEL]

By default the checkpoint that `make demo` trains on SmolLM2-135M.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.embedded import smollm2

TEXT, STRENGTH, TOKENS = "the cat sat on a mat", 3.0, 12


def main(
    checkpoint: str = "demo/text/topk", hook: str = "blocks.9", model_id: str | None = None
) -> tuple[int, str, str]:
    """The latent, and what the model writes without and with it."""
    path = model_id or smollm2.folder()
    model: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    inputs = tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)
    sae = saekit.load(checkpoint)

    # The largest activation of every latent in this text, without its first token: in most decoders
    # that state is an outlier. `saekit inspect` finds them in a whole store.
    with torch.inference_mode(), saekit.capture(model, hook, stop=True) as states:
        model(**inputs)
    maxima_F = sae.encode(states[hook][0, 1:]).to_dense().amax(0)
    latent = int(maxima_F.argmax())

    # Inside `attach` the model is the same object; whatever calls it runs it with the edits.
    def written() -> str:
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with saekit.attach(model, sae, hook, maxima=maxima_F) as live:
        clean = written()
        live.add(latent, STRENGTH, positions="generated")
        steered = written()
        print(f"{live}\nclean:   {clean!r}\nsteered: {steered!r}")
    return latent, clean, steered


if __name__ == "__main__":
    main(*sys.argv[1:])

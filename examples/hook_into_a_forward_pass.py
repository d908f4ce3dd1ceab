"""Read the residual stream of a running model, then change it and see what the model predicts.

    python examples/hook_into_a_forward_pass.py [MODEL] [HOOK]

MODEL is a hub id or a folder; by default the SmolLM2-135M that `make demo` uses.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.embedded import smollm2

TEXT = "the cat sat on a mat"


def main(model_id: str | None = None, hook: str = "blocks.1") -> float:
    """KL divergence in nats between the next-token distributions, unchanged and changed."""
    path = model_id or smollm2.folder()
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    inputs = tokenizer(TEXT, return_tensors="pt")

    with torch.inference_mode():
        with saekit.capture(model, hook) as states:
            logits_BTV = model(**inputs).logits
        x_BTD = states[hook]
        print(f"{hook}: {tuple(x_BTD.shape)}")

        # Remove the direction of the last token's state from every token.
        direction_D = x_BTD[0, -1] / x_BTD[0, -1].norm()

        def ablate(x_ND: torch.Tensor) -> torch.Tensor:
            return x_ND - (x_ND @ direction_D)[:, None] * direction_D

        # An SAE works too: saekit.splice(model, hook, saekit.load("runs/topk")).
        with saekit.splice(model, hook, ablate):
            changed_BTV = model(**inputs).logits

    log_p, log_q = logits_BTV[0, -1].log_softmax(0), changed_BTV[0, -1].log_softmax(0)
    kl = (log_p.exp() * (log_p - log_q)).sum().item()
    print(f"KL of the next token without that direction: {kl:.4f} nats")
    return kl


if __name__ == "__main__":
    main(*sys.argv[1:])

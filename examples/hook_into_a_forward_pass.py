"""Read the residual stream of a running model, then change it and see what the model makes of that.

python examples/hook_into_a_forward_pass.py [MODEL] [HOOK]
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit


def main(model_id: str = "HuggingFaceTB/SmolLM2-135M", hook: str = "blocks.1") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_id, trust_remote_code=False).eval()
    inputs = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)(
        "the cat sat on a mat", return_tensors="pt"
    )

    with torch.inference_mode():
        with saekit.capture(model, hook) as states:
            logits_BTV = model(**inputs).logits
        x_BTD = states[hook]
        print(f"{hook}: {tuple(x_BTD.shape)}")

        # Any function of the rows (N,D), or an SAE: saekit.splice(model, hook,
        # saekit.load("runs/sae"))
        direction_D = x_BTD[0, -1] / x_BTD[0, -1].norm()
        with saekit.splice(
            model, hook, lambda x_ND: x_ND - (x_ND @ direction_D)[:, None] * direction_D
        ):
            changed_BTV = model(**inputs).logits

    log_p, log_q = logits_BTV[0, -1].log_softmax(0), changed_BTV[0, -1].log_softmax(0)
    print(
        f"KL of the next token without that direction: {(log_p.exp() * (log_p - log_q)).sum():.4f}"
        " nats"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

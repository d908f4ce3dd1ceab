"""Load a trained SAE, read the strongest latents of a text, and switch one of them off.

    python examples/load_a_checkpoint.py [CHECKPOINT] [HOOK] [MODEL]

By default the checkpoint that `make demo` trains on SmolLM2-135M.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekit
from saekit.embedded import smollm2

TEXT = "the cat sat on a mat"


def main(
    checkpoint: str = "demo/text/topk", hook: str = "blocks.9", model_id: str | None = None
) -> tuple[list[int], torch.Tensor]:
    """The five strongest latents, and x_hat (T,D) with the first of them switched off."""
    path = model_id or smollm2.folder()
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    inputs = tokenizer(TEXT, return_tensors="pt")
    tokens = [tokenizer.decode(token) for token in inputs["input_ids"][0]]
    sae = saekit.load(checkpoint)

    with torch.inference_mode():
        with saekit.capture(model, hook, stop=True) as states:
            model(**inputs)
        # Without the first token: in most decoders its state is an outlier.
        x_TD, tokens = states[hook][0, 1:], tokens[1:]

        # Encode and decode raw hidden states; z (T,F) is 0 where a latent is not active.
        z_TF = sae.encode(x_TD).to_dense()
        x_hat_TD = sae.decode(z_TF)
        active = (z_TF > 0).sum(1).float().mean().item()
        print(f"{active:.1f} active latents per token, {sae}")

        # The strongest latents, each at the token where it is strongest.
        strongest = z_TF.max(dim=0)
        latents = strongest.values.topk(5).indices.tolist()
        for latent in latents:
            value, token = strongest.values[latent].item(), tokens[strongest.indices[latent]]
            print(f"latent {latent}: {value:.3g} at {token!r}")

        # Edit the code: x_hat changes along that latent's decoder row only.
        z_TF[:, latents[0]] = 0
        edited_TD = sae.decode(z_TF)
        shift = (edited_TD - x_hat_TD).norm(dim=1).max().item()
        print(f"without latent {latents[0]} a reconstruction moves by up to {shift:.3g}")
    return latents, edited_TD


if __name__ == "__main__":
    main(*sys.argv[1:])

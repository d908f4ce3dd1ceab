"""What an attached dictionary costs per decoded token: embedded SmolLM2-135M, greedy decoding with
a KV cache, one text.

    python benchmarks/bench_attach.py [--latents 18432] [--tokens 48] [--rounds 5] [--threads 2]

Each round decodes tokens with every setting, in turn, so that a machine that other work slows down
slows all of them. The figure is the median over the rounds of the time per token, and the overhead
the median of the ratios within a round; --cpu counts the CPU's time instead, for a busy machine.
The dictionary is random: the time does not depend on what the latents mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import saekit
from saekit.harvesting.models import load_model
from saekit.models.catalog import restore

HOOK = "blocks.9"
EDITS: dict[str, Callable | None] = {
    "no edits": None,
    "add": lambda live: live.add(7, 1.0, raw=True),
    "ablate 2": lambda live: live.ablate([5, 7]),
    "when, add": lambda live: live.when(7).add(9, 1.0, raw=True),
    "keep_only 100": lambda live: live.keep_only(list(range(100))),
}


def dictionary(width: int, latents: int, sparsity: str):
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(latents, width, generator=g), dim=1)
    tensors = {
        "W_enc": rows.clone(), "b_enc": torch.zeros(latents),
        "W_dec": rows, "b_dec": torch.zeros(width),
    }  # fmt: skip
    config = {"d_in": width, "latents": latents, "sparsity": sparsity}
    if sparsity == "topk":
        return restore("sae", config | {"k": 32}, tensors)
    return restore("sae", config, tensors | {"threshold": torch.full((latents,), 5.0)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--sparsity", nargs="*", default=["topk", "jumprelu"])
    for name, default in (("latents", 18_432), ("tokens", 48), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("embedded:smollm2-135m").module
    ids = torch.randint(100, 40_000, (1, 16), generator=torch.Generator().manual_seed(0))

    clock = time.process_time if options.cpu else time.perf_counter

    @torch.inference_mode()
    def seconds() -> float:
        """Per decoded token, after the prompt."""
        cache = model(ids, use_cache=True).past_key_values
        step, began = ids[:, -1:], clock()
        for _ in range(options.tokens):
            out = model(step, past_key_values=cache, use_cache=True)
            step = out.logits[:, -1:].argmax(-1)
        return (clock() - began) / options.tokens

    settings = {"clean": None}
    for sparsity in options.sparsity:
        sae = dictionary(model.config.hidden_size, options.latents, sparsity)
        settings |= {f"{sparsity}: {name}": (sae, edit) for name, edit in EDITS.items()}
    rounds: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, setting in settings.items():
            if setting is None:
                rounds[name].append(seconds())
                continue
            with saekit.attach(model, setting[0], HOOK) as live:
                if setting[1] is not None:
                    setting[1](live)
                rounds[name].append(seconds())
    print(f"torch {torch.__version__}, {options.threads} threads, {options.latents:,} latents")
    for name, times in rounds.items():
        ratios = [own / clean for own, clean in zip(times[1:], rounds["clean"][1:])]
        print(
            f"{name:24} {1e3 * statistics.median(times[1:]):7.2f} ms per token,"
            f" overhead {statistics.median(ratios) - 1:+.1%}"
        )


if __name__ == "__main__":
    main()

"""sae-lens' loaders of published formats on the files of a hub cache, run as a program: the cache's
folder is fixed once huggingface_hub is imported.

    HF_HUB_CACHE=... HF_HUB_OFFLINE=1 python saelens_loaders.py JOBS ROWS RESULTS

JOBS is a JSON list of {name, loader, repo, folder, overrides, factor}; RESULTS gets {name: {dtype:
(code, x_hat)}} of the ROWS.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.sae import SAE


def opened(job: dict[str, Any]) -> SAE:
    """As SAE.from_pretrained makes it, without its registry of releases."""
    settings, state, _ = getattr(loaders, job["loader"])(
        job["repo"], job["folder"], "cpu", False, job["overrides"] | {"dtype": "float32"}
    )
    settings = loaders.handle_config_defaulting(settings)
    config = SAE.get_sae_config_class_for_architecture(settings["architecture"])
    sae = SAE.get_sae_class_for_architecture(settings["architecture"])(config.from_dict(settings))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    return sae


def results(job: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    computed = {}
    for dtype in (torch.float32, torch.float64):
        sae = opened(job).to(dtype)
        sae.dtype = dtype  # it casts the input
        if job["factor"] is not None:
            sae.fold_activation_norm_scaling_factor(job["factor"])
        with torch.no_grad():
            code, x_hat = sae.encode(rows.to(dtype)), sae(rows.to(dtype))
        computed[str(dtype)] = (code.to_dense(), x_hat)
    return computed


if __name__ == "__main__":
    jobs, rows, out = sys.argv[1:]
    with open(jobs) as file:
        listed = json.load(file)
    x = torch.load(rows, weights_only=True)
    torch.save({job["name"]: results(job, x) for job in listed}, out)

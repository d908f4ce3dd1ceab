"""SAEDashboard's side of bench_dashboard.py, run in an environment that has it but not saekit.

    python dashboard_peer.py FOLDER

FOLDER/task.json says which latents and block, FOLDER/rows.safetensors has the tokens (contexts,
tokens), FOLDER/sae is a dictionary in SAELens' format and `model` a folder with a model of the
Llama family. Its names are not among those that TransformerLens loads, so the configuration is
written here, and the weights are converted by TransformerLens' own function. Writes
FOLDER/theirs.html, what save_feature_centric_vis makes, FOLDER/theirs.json with the seconds of CPU
and the strongest rows, and FOLDER/states.safetensors, the hidden states of the first context.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

CONTEXT = 256
BEFORE = 5  # tokens before the strongest one in its windows


def hooked(folder: Path, work: Path) -> HookedSAETransformer:
    """The model of `folder` (Llama family) in TransformerLens."""
    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    known, raw = module.config, json.loads((folder / "config.json").read_text())
    config = HookedTransformerConfig(
        n_layers=known.num_hidden_layers,
        d_model=known.hidden_size,
        d_head=known.head_dim,
        n_heads=known.num_attention_heads,
        n_key_value_heads=known.num_key_value_heads,
        d_mlp=known.intermediate_size,
        n_ctx=CONTEXT,
        d_vocab=known.vocab_size,
        act_fn=known.hidden_act,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=known.head_dim,
        rotary_adjacent_pairs=False,
        # a key that its version of transformers does not read
        rotary_base=int(raw["rope_parameters"]["rope_theta"]),
        final_rms=True,
        gated_mlp=True,
        eps=known.rms_norm_eps,
        original_architecture="LlamaForCausalLM",
        dtype=torch.float32,
        device="cpu",
    )
    model = HookedSAETransformer(config, tokenizer=_tokenizer(folder, work))
    missing, unexpected = model.load_state_dict(convert_llama_weights(module, config), strict=False)
    # tables of rotation, causal masks and biases of 0 are made, not loaded
    made = ("rotary_", "mask", "IGNORE", ".b_")
    assert not unexpected, unexpected
    assert all(any(part in name for part in made) for name in missing), missing
    return model


def _tokenizer(folder: Path, work: Path) -> Any:
    """TransformerLens loads a tokenizer again from the folder that it says it is from."""
    known = json.loads((folder / "tokenizer_config.json").read_text())
    special = {name: known[name] for name in ("bos_token", "eos_token", "pad_token")}
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **special
    ).save_pretrained(work / "tokenizer")
    return AutoTokenizer.from_pretrained(work / "tokenizer", trust_remote_code=False)


def main() -> None:
    work = Path(sys.argv[1])
    task = json.loads((work / "task.json").read_text())
    tokens = load_file(work / "rows.safetensors")["tokens"]
    torch.set_num_threads(1)
    model, sae = hooked(Path(task["model"]), work), SAE.load_from_disk(work / "sae")
    # Its runner folds the decoder's norms, which SAELens allows of a TopK dictionary only if its
    # codes are scaled by them. They are 1, so the codes are the same.
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae), atol=1e-4)
    vars(sae.cfg).update(rescale_acts_by_decoder_norm=True)
    hook = f"blocks.{task['block']}.hook_resid_post"
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tokens[:1], names_filter=hook, stop_at_layer=task["block"] + 1
        )
    save_file({"x": cache[hook][0].contiguous()}, work / "states.safetensors")

    began = time.process_time()
    config = SaeVisConfig(hook_point=hook, features=task["latents"], device="cpu")
    found = SaeVisRunner(config).run(sae, model, tokens)
    gathered = time.process_time()
    save_feature_centric_vis(found, work / "theirs.html")
    written = time.process_time()

    strongest = {}
    for latent, data in found.feature_data_dict.items():
        top = data.sequence_data.seq_group_data[0].seq_data
        strongest[latent] = [
            (each.original_index, each.qualifying_token_index, each.feat_acts[BEFORE])
            for each in top
        ]
    seconds = {"gather": gathered - began, "write": written - gathered}
    (work / "theirs.json").write_text(json.dumps({"seconds": seconds, "top": strongest}))


if __name__ == "__main__":
    main()

"""What writes the fixtures of every format of published dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_circuit_tracer as tracer
import made_dictionaries as made
import made_gemma as gemma
import made_more as more

# format -> what writes its fixtures: a new format adds its own
WRITERS: dict[str, list[Callable[[Path], Path]]] = {
    "saelens": [
        made.saelens,
        lambda path: made.saelens(path, "topk"),
        lambda path: made.saelens(path, "gated"),
        lambda path: made.saelens(path, "jumprelu"),
        lambda path: made.saelens(path, "batchtopk"),
        lambda path: made.saelens(path, "jumprelu_skip_transcoder"),
        made.saelens_temporal,
        made.old_saelens,
    ],
    "temporal": [made.temporal],
    "sparsify": [
        made.sparsify,
        lambda path: made.sparsify(path, transcode=True, skip=True),
        lambda path: made.sparsify(path, signed=True),
    ],
    "dictionary_learning": [
        *(
            lambda path, kind=kind: made.dictionary_learning(path, kind)
            for kind in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "GatedAutoEncoder")
        ),
        lambda path: made.dictionary_learning(path, "AutoEncoderNew") / "ae.pt",
        lambda path: made.dictionary_learning(path, "MatryoshkaBatchTopKSAE") / "ae.pt",
    ],
    "gemma_scope": [
        made.gemma_scope,
        lambda path: made.gemma_scope(path) / "params.npz",
        gemma.scope_1,
        gemma.embedding,
    ],
    "gemma_scope_2": [
        gemma.scope_2,
        lambda path: gemma.scope_2(path, described=False),
        lambda path: gemma.scope_2(path, "transcoder_all", affine=True),
        lambda path: gemma.of_layers(path, "clt"),
        lambda path: gemma.of_layers(path, "crosscoder"),
    ],
    "circuit_tracer": [
        tracer.transcoder,
        lambda path: tracer.transcoder(path, jumps=True, skips=True),
        tracer.clt,
        lambda path: tracer.clt(path, jumps=True),
    ],
    "openai": [
        more.openai,
        lambda path: more.openai(path, None),
        lambda path: more.openai(path, after="Identity"),
    ],
    "llama_scope": [more.llama_scope],
    "llamascopium": [
        more.llamascopium,
        lambda path: more.llamascopium(path, suffix=".pt"),
        lambda path: more.llamascopium(path, suffix=".dcp"),
        more.llama_scope_r1,
    ],
    "qwen_scope": [more.qwen_scope],
    "hook_z": [made.hook_z],
    "goodfire": [more.goodfire],
    "deepseek_r1": [more.deepseek_r1],
    "saev": [
        more.saev,
        lambda path: more.saev(path) / "sae.pt",
        lambda path: more.saev(path, more.saev_header("TopK", top_k=made.K)),
    ],
    "vit_prisma": [
        more.vit_prisma,
        lambda path: more.vit_prisma(path, "gated") / "weights.pt",
        lambda path: more.vit_prisma(path, file="n_images_260014.pt"),
    ],
}

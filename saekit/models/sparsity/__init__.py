"""What makes an SAE's code sparse: each variant is a subclass of saekit.models.sae.SAE and one line
below.

Shapes: B rows, D d_in, F latents. x is the normalized training input, E||x||^2 = D; the
reconstruction term is the mean over rows of the sum over D of (x - x_hat)^2. docs/variants.md has
formulas, sources and measurements.
"""

from __future__ import annotations

from saekit.models.sae import SAE
from saekit.models.sparsity.abstopk import AbsTopK
from saekit.models.sparsity.archetypal import Archetypal
from saekit.models.sparsity.batchtopk import BatchTopK
from saekit.models.sparsity.gated import Gated
from saekit.models.sparsity.jumprelu import JumpReLU
from saekit.models.sparsity.kl import KL, KLRates, KLSigmoid
from saekit.models.sparsity.nested import (
    Hierarchical,
    Matryoshka,
    MatryoshkaJumpReLU,
    MatryoshkaTopK,
)
from saekit.models.sparsity.penalised import L1, Log, PAnneal, Tanh
from saekit.models.sparsity.pursuit import MatchingPursuit
from saekit.models.sparsity.temporal import Temporal
from saekit.models.sparsity.topk import TopK

VARIANTS: dict[str, type[SAE]] = {
    variant.sparsity: variant
    for variant in (
        TopK,
        BatchTopK,
        Matryoshka,
        MatryoshkaTopK,
        MatryoshkaJumpReLU,
        Hierarchical,
        AbsTopK,
        MatchingPursuit,
        Archetypal,
        Temporal,
        L1,
        Tanh,
        Log,
        PAnneal,
        Gated,
        JumpReLU,
        KL,
        KLRates,
        KLSigmoid,
    )
}

"""What makes an SAE's code sparse: each variant is a class (base.py says of what it consists) and one line below.

Shapes: B rows, D d_in, F latents. x is the normalised training input, E||x||^2 = D; the reconstruction term is the mean over rows of the
sum over D of (x - x_hat)^2. docs/variants.md has formulas, sources and measured rows.
"""

from __future__ import annotations

from saekit.models.sparsity.abstopk import AbsTopK
from saekit.models.sparsity.archetypal import Archetypal
from saekit.models.sparsity.base import Variant
from saekit.models.sparsity.batchtopk import BatchTopK
from saekit.models.sparsity.gated import Gated
from saekit.models.sparsity.jumprelu import JumpReLU
from saekit.models.sparsity.kl import KL, KLMeans, KLRates
from saekit.models.sparsity.nested import Hierarchical, Matryoshka, MatryoshkaJumpReLU, MatryoshkaTopK
from saekit.models.sparsity.penalised import L1, Log, PAnneal, Tanh
from saekit.models.sparsity.pursuit import MatchingPursuit
from saekit.models.sparsity.temporal import Temporal
from saekit.models.sparsity.topk import TopK

VARIANTS: dict[str, Variant] = {
    "topk": TopK(),
    "batchtopk": BatchTopK(),
    "matryoshka": Matryoshka(),
    "matryoshka-topk": MatryoshkaTopK(),
    "matryoshka-jumprelu": MatryoshkaJumpReLU(),
    "hierarchical": Hierarchical(),
    "abs-topk": AbsTopK(),
    "matching-pursuit": MatchingPursuit(),
    "archetypal": Archetypal(),
    "temporal": Temporal(),
    "l1": L1(),
    "tanh": Tanh(),
    "log": Log(),
    "p-anneal": PAnneal(),
    "gated": Gated(),
    "jumprelu": JumpReLU(),
    "kl": KL(),
    "kl-means": KLMeans(),
    "kl-rates": KLRates(),
}

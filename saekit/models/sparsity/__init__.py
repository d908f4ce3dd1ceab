"""What makes an SAE's code sparse: each variant is an activation, its loss and its starting point, one file and one line below.

Shapes: B rows, D d_in, F latents. x is the normalised training input, E||x||^2 = D; the reconstruction term is the mean over rows of
the sum over D of (x - x_hat)^2.
"""

from __future__ import annotations

from saekit.models.sparsity.batchtopk import BatchTopK
from saekit.models.sparsity.kl import KL
from saekit.models.sparsity.l1 import L1
from saekit.models.sparsity.topk import TopK

VARIANTS: dict[str, TopK | BatchTopK | L1 | KL] = {"topk": TopK(), "batchtopk": BatchTopK(), "l1": L1(), "kl": KL()}

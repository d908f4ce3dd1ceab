"""Codes with trained parameters that say what is active, which a folded model has as one
`threshold`."""

from __future__ import annotations

import torch

from saekit.models.sae import SAE
from saekit.models.sae.preactivations import DensePre


class TrainedGate(SAE):
    thresholded = True

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        if self.is_folded:
            return self.thresholded_code(x_BD)
        return self.activate(DensePre(torch.addmm(self.b_enc, x_BD, self.W_enc.T)))

    def first_code(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.thresholded_code(x_BD)  # what is trained beside the weights has no values yet

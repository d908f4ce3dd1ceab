"""Codes in which trained parameters decide what is active; a folded model has one `threshold`
instead."""

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
        return self.thresholded_code(x_BD)  # the other parameters have no values yet

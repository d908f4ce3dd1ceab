"""Codes in which trained parameters decide what is active; a folded model has one `threshold`
instead."""

from __future__ import annotations

import torch

from saekit.models.sae import SAE
from saekit.models.sae.preactivations import DensePre
from saekit.types import Step


class TrainedGate(SAE):
    thresholded = True

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        if self.is_folded:
            return self.thresholded_code(x_BD)
        return self.activate(DensePre(torch.addmm(self.b_enc, x_BD, self.W_enc.T)))

    def first_code(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.thresholded_code(x_BD)  # the other parameters have no values yet

    def reconstructed(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        pre = self.preactivations(x_BD, step)
        x_hat, skip = pre.decode(self.activate(pre), self.W_dec, self.b_dec), self.skip(x_BD)
        return x_hat if skip is None else x_hat + skip

"""Linear codes. `pca`: the best one of its size, in closed form; the baseline for every other
model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch

from saekit.errors import UsageError, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_rows
from saekit.models.codes import Code
from saekit.models.normalizer import Normalizer
from saekit.options import Doc

FAR = 100.0  # of the variance, the squared mean


@dataclass(frozen=True)
class PCAConfig:
    d_in: int
    latents: Annotated[
        int,
        Doc("Number of components; 32 is the default k of a TopK SAE: as many numbers per row."),
    ] = 32


class PCA(Autoencoder):
    """code = (x - mean) C^T with the leading eigenvectors of the covariance as rows of C (F,D);
    x_hat = code C + mean."""

    strategy = "closed_form"
    components: torch.Tensor
    mean: torch.Tensor
    explained_variance: torch.Tensor

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        if not 1 <= config.latents <= config.d_in:
            raise UsageError(
                f"{opt('latents', config.latents)}: pca takes 1 to d_in = {config.d_in} components"
            )
        self.config = config
        self.d_in, self.latents = config.d_in, config.latents
        self.register_buffer("components", torch.zeros(self.latents, self.d_in))
        self.register_buffer("mean", torch.zeros(self.d_in))
        self.register_buffer("explained_variance", torch.zeros(self.latents))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F) of x (..., D), in any float dtype. Raises DataError for another width, dtype or
        device."""
        code_BF = (as_rows(x, self.d_in, self.components) - self.mean) @ self.components.T
        return code_BF.view(*x.shape[:-1], self.latents)

    def decode(self, code: Code) -> torch.Tensor:
        """(..., D) of a code (..., F). Raises DataError as `encode`."""
        rows_BF = as_rows(code, self.latents, self.components, "the code")
        x_hat_BD = rows_BF @ self.components + self.mean
        return x_hat_BD.view(*code.shape[:-1], self.d_in)

    @property
    def W_dec(self) -> torch.Tensor:
        """The decoder rows, under the name that they have in an SAE: inspection projects them
        through the unembedding."""
        return self.components

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """One pass: mean and covariance in fp64, then eigenvectors, each with the sign that makes
        its largest coordinate positive. Far from the origin, sums are of x - shift: the mean would
        drown the covariance."""
        D = self.d_in
        rows, total, outer, shift = 0, torch.zeros(D).double(), torch.zeros(D, D).double(), 0.0
        # sums of x and of x x^T
        for number, x_BD in enumerate(batches):
            x = x_BD.double()
            if number == 0:
                shift = x.mean(0)
                shift *= shift.square().sum() > FAR * (x - shift).square().sum(1).mean()
            x = x - shift
            rows, total, outer = rows + len(x), total + x.sum(0), outer + x.T @ x
        # the leading eigenvectors of the covariance
        mean = total / rows
        values, vectors = torch.linalg.eigh(outer / rows - mean[:, None] * mean[None, :])
        C = vectors.T.flip(0)[: self.latents]
        C = C * C.gather(1, C.abs().argmax(1, keepdim=True)).sign()
        self.components.copy_(C)
        self.mean.copy_(mean + shift)
        self.explained_variance.copy_(values.flip(0)[: self.latents])

    def folded(
        self, inputs: Normalizer, targets: Normalizer | None = None
    ) -> dict[str, torch.Tensor]:
        return {
            "components": self.components,
            "mean": inputs.invert(self.mean),
            "explained_variance": self.explained_variance / inputs.scale**2,
        }

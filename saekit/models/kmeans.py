"""`kmeans`: a code of one number, the nearest of F centroids. A control: what a dictionary explains that only counts prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from saekit_kernels import SparseCodes
from torch import nn

from saekit.errors import DataError, UsageError
from saekit.types import Output

BATCH = 4096


@dataclass(frozen=True)
class KMeansConfig:
    d_in: int
    latents: int = 32
    """Number of centroids."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise UsageError(f"--latents {self.latents} must be at least 1")


class KMeans(nn.Module):
    """code = 1 at the nearest centroid, 0 elsewhere (SparseCodes with K = 1); x_hat = that centroid."""

    strategy = "closed_form"
    takes = "rows"
    active_above = 0.0

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__()
        self.config, self.d_in, self.latents = config, config.d_in, config.latents
        self.register_buffer("centroids", torch.zeros(self.latents, self.d_in))

    @property
    def W_dec(self) -> torch.Tensor:
        """(F,D): what the code of a latent is decoded to."""
        return self.centroids

    def encode(self, x_BD: torch.Tensor) -> SparseCodes:
        centre = self.centroids.mean(0)  # far from the origin the products that cdist takes would cancel
        nearest = torch.cdist(x_BD - centre, self.centroids - centre).argmin(1, keepdim=True)
        nnz = torch.ones(len(x_BD), dtype=torch.int32, device=x_BD.device)
        return SparseCodes(torch.ones_like(nearest, dtype=x_BD.dtype), nearest.int(), nnz, self.latents)

    def decode(self, code: SparseCodes) -> torch.Tensor:
        return self.centroids[code.idx[:, 0].long()]

    def forward(self, x_BD: torch.Tensor) -> Output:
        code = self.encode(x_BD)
        return Output(self.decode(code), code)

    @torch.no_grad()
    def fit(self, batches: Iterator[torch.Tensor]) -> None:
        """One pass of scikit-learn's mini-batch k-means (Sculley 2010), k-means++ on the first rows. Raises DataError for too few rows."""
        from sklearn.cluster import MiniBatchKMeans

        rows = max(BATCH, self.latents)
        model = MiniBatchKMeans(self.latents, batch_size=rows, n_init=1, random_state=self.config.seed)
        held: list[np.ndarray] = []
        fitted = False
        for x_BD in batches:
            held.append(x_BD.numpy())
            if sum(map(len, held)) >= rows:
                model.partial_fit(np.concatenate(held))
                held, fitted = [], True
        if held:
            x = np.concatenate(held)
            if not fitted and len(x) < self.latents:
                raise DataError(f"{len(x):,} rows cannot have {self.latents:,} centroids", f"--latents {max(len(x) // 10, 1)}")
            model.partial_fit(x) if fitted else model.fit(x)
        self.centroids.copy_(torch.from_numpy(model.cluster_centers_))

    def folded(self, mean_D: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
        return {"centroids": self.centroids / scale + mean_D}

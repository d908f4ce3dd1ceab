"""`kmeans`: a code of one number, the nearest of F centroids. A control: how much a dictionary of
prototypes explains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from saekit_kernels import SparseCodes

from saekit.errors import DataError, UsageError, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_rows
from saekit.models.codes import Code, decoded
from saekit.models.normalizer import Normalizer
from saekit.options import Doc

FAR = 100.0  # times the spread
BATCH = 4096


@dataclass(frozen=True)
class KMeansConfig:
    d_in: int
    latents: Annotated[int, Doc("Number of centroids.")] = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise UsageError(f"{opt('latents', self.latents)} must be at least 1")


class KMeans(Autoencoder):
    """code = 1 at the nearest centroid, 0 elsewhere (SparseCodes with K = 1); x_hat = that
    centroid."""

    strategy = "closed_form"
    active_above = 0.0
    centroids: torch.Tensor

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__()
        self.config, self.d_in, self.latents = config, config.d_in, config.latents
        self.register_buffer("centroids", torch.zeros(self.latents, self.d_in))

    @property
    def W_dec(self) -> torch.Tensor:
        """(F,D): what the code of a latent is decoded to."""
        return self.centroids

    def encode(self, x: torch.Tensor) -> SparseCodes:
        """The nearest centroid of every row of x (..., D), in any float dtype; its value is NaN for
        a row that is not finite. Raises DataError for another width, dtype or device."""
        x_BD = as_rows(x, self.d_in, self.centroids)
        # cdist takes products, which would cancel far from the origin
        center = self.centroids.mean(0)
        nearest = torch.cdist(x_BD - center, self.centroids - center).argmin(1, keepdim=True)
        nnz = torch.ones(len(x_BD), dtype=torch.int32, device=x_BD.device)
        values = torch.where(
            x_BD.isfinite().all(1, keepdim=True),
            torch.ones_like(nearest, dtype=x_BD.dtype),
            torch.nan,
        )
        code = SparseCodes(values, nearest.int(), nnz, self.latents)
        return code.view(*x.shape[:-1], self.latents)

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., D) of what `encode` returns, or of any code (..., F). Raises DataError as
        `encode`."""
        return decoded(code, self.centroids, self.centroids.new_zeros(self.d_in))

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """One pass of scikit-learn's mini-batch k-means (Sculley 2010), with k-means++ on the first
        rows. Raises DataError for too few rows."""
        from sklearn.cluster import MiniBatchKMeans

        rows = max(BATCH, self.latents)
        model = MiniBatchKMeans(
            self.latents,
            batch_size=rows,
            n_init=1,  # pyright: ignore[reportArgumentType]
            random_state=self.config.seed,
        )
        # Collect batches of at least as many rows as centroids, and fit each.
        pending: list[np.ndarray] = []
        fitted, origin_D = False, torch.zeros(self.d_in)
        for number, x_BD in enumerate(batches):
            origin_D = _origin(x_BD) if number == 0 else origin_D
            pending.append((x_BD - origin_D).numpy())
            if sum(map(len, pending)) >= rows:
                model.partial_fit(np.concatenate(pending))
                pending, fitted = [], True
        # The rest, which may be all there is.
        if pending:
            x = np.concatenate(pending)
            if not fitted and len(x) < self.latents:
                raise DataError(
                    f"{len(x):,} rows cannot have {self.latents:,} centroids",
                    opt("latents", max(len(x) // 10, 1)),
                )
            model.partial_fit(x) if fitted else model.fit(x)
        self.centroids.copy_(torch.from_numpy(model.cluster_centers_) + origin_D)

    def folded(
        self, inputs: Normalizer, targets: Normalizer | None = None
    ) -> dict[str, torch.Tensor]:
        return {"centroids": inputs.invert(self.centroids)}


def _origin(x_BD: torch.Tensor) -> torch.Tensor:
    """What is subtracted from all rows: their mean if it is so far away that fp32 products of rows
    would cancel, else 0."""
    mean = x_BD.mean(0)
    spread = (x_BD - mean).square().sum(1).mean().sqrt()
    return mean if mean.norm() > FAR * spread else torch.zeros_like(mean)

"""Decoder directions in two dimensions, for the map of a page.

The default is a principal component analysis of the unit decoder rows: it has no parameter, gives
the same map each time, and says what share of the variance the two axes hold. That share is small
for a large dictionary, so near on the map is often not near in the dictionary. UMAP keeps more of
who is near whom, and loses what distances mean.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
import torch

from saekit.errors import MissingError

MapKind = Literal["pca", "umap", "none"]

ROWS_AT_ONCE = 8192
STEPS = 65_534  # positions are 16-bit numbers; the one above is for latents that have none
NOWHERE = STEPS + 1
NEIGHBORS, LEAST_DISTANCE = 15, 0.1  # of UMAP


@dataclass(frozen=True)
class DirectionMap:
    """Where latents are on the map."""

    kind: MapKind
    latents: torch.Tensor
    """(N,) int64: those that are on it."""
    xy_N2: np.ndarray
    """fp64."""
    shares: tuple[float, float] | None
    """Of the variance of the unit decoder rows, on each axis; None for UMAP."""

    def header(self) -> dict[str, Any]:
        """What the page says about it before it is opened."""
        return {"kind": self.kind, "latents": len(self.latents), "shares": self.shares}

    def packed(self, latents: int) -> dict[str, Any]:
        """{"low", "step", "x", "y"} of all `latents` latents: a coordinate is low + step * n, with
        n in little-endian 16 bits and base64. The step, of both axes, is the longer side over
        65,534; n is 65,535 in both for a latent that is not on the map."""
        low_2 = self.xy_N2.min(0) if len(self.xy_N2) else np.zeros(2)
        extent = float((self.xy_N2 - low_2).max()) if len(self.xy_N2) else 0.0
        step = extent / STEPS or 1.0
        steps_F2 = np.full((latents, 2), NOWHERE, "<u2")
        steps_F2[self.latents.numpy()] = np.rint((self.xy_N2 - low_2) / step).astype("<u2")
        text = [base64.b64encode(n.tobytes()).decode() for n in steps_F2.T]
        return {"low": low_2.tolist(), "step": step, "x": text[0], "y": text[1]}


def check_map(kind: MapKind) -> None:
    """Raises MissingError where UMAP is asked for and not installed."""
    if kind == "umap":
        _umap()


@torch.no_grad()
def direction_map(
    W_dec_FD: torch.Tensor, alive_F: torch.Tensor, kind: MapKind
) -> DirectionMap | None:
    """The map of the latents that fire; None where fewer than three do, or no map is wanted.

    PCA: the unit decoder rows less their mean, on the two directions of largest variance. The
    largest entry of each direction is positive, so that the signs are always the same. UMAP:
    McInnes et al. 2018 (arXiv 1802.03426), cosine distances, 15 neighbors, seed 0. Raises
    MissingError as `check_map` does.
    """
    latents = alive_F.nonzero()[:, 0]
    if kind == "none" or len(latents) < 3:
        return None
    unit_ND = torch.nn.functional.normalize(W_dec_FD[latents].float(), dim=1)
    if kind == "umap":
        return DirectionMap(kind, latents, _by_umap(unit_ND), None)
    axes_D2, mean_D, shares = _principal_axes(unit_ND)
    xy_N2 = np.concatenate(
        [part.double().numpy() @ axes_D2 for part in unit_ND.split(ROWS_AT_ONCE)]
    )
    return DirectionMap(kind, latents, xy_N2 - mean_D @ axes_D2, shares)


def _principal_axes(unit_ND: torch.Tensor) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The two directions of largest variance (D,2), the mean (D,), and the share of each."""
    rows, width = unit_ND.shape
    mean_D = unit_ND.mean(0, dtype=torch.float64)
    covariance_DD = torch.zeros(width, width, dtype=torch.float64)
    for part in unit_ND.split(ROWS_AT_ONCE):  # products in fp32, their sum in fp64
        centered = part - mean_D.float()
        covariance_DD += (centered.T @ centered).double()
    values, axes_D2 = scipy.linalg.eigh(
        covariance_DD.numpy() / rows, subset_by_index=[max(width - 2, 0), width - 1]
    )
    values, axes_D2 = values[::-1], axes_D2[:, ::-1]
    if width == 1:  # one dimension has one axis
        values, axes_D2 = np.append(values, 0.0), np.append(axes_D2, np.zeros((1, 1)), 1)
    largest = np.abs(axes_D2).argmax(0)
    signs = np.where(axes_D2[largest, [0, 1]] < 0, -1.0, 1.0)
    total = max(float(covariance_DD.trace()) / rows, 1e-300)
    first, second = (np.maximum(values, 0) / total).tolist()
    return axes_D2 * signs, mean_D.numpy(), (first, second)


def _by_umap(unit_ND: torch.Tensor) -> np.ndarray:
    neighbors = min(NEIGHBORS, len(unit_ND) - 1)
    # one process with a seed: the same map each time
    reducer = _umap().UMAP(
        n_neighbors=neighbors,
        min_dist=LEAST_DISTANCE,
        metric="cosine",
        random_state=0,
        n_jobs=1,
        init="spectral" if len(unit_ND) > 3 * NEIGHBORS else "random",
    )
    return np.asarray(reducer.fit_transform(unit_ND.numpy()), np.float64)


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise MissingError("a map by UMAP needs umap-learn", "pip install 'saekit[umap]'") from None
    return umap

"""The map of decoder directions: its axes, its file, and what is not on it."""

from __future__ import annotations

import base64
import sys

import numpy as np
import pytest
import torch

from saekit.errors import MissingError
from saekit.inspection.map import NOWHERE, STEPS, check_map, direction_map


def directions(latents: int = 300, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Two long axes among many, and every seventh latent dead."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(latents, width, generator=generator)
    W[:, 3] *= 5
    W[:, 7] *= 3
    return W, torch.arange(latents) % 7 != 0


def unpacked(packed: dict) -> np.ndarray:
    """(F,2) fp64; NaN for a latent that is not on the map."""
    steps = np.stack([np.frombuffer(base64.b64decode(packed[n]), "<u2") for n in "xy"], 1)
    xy = np.array(packed["low"]) + packed["step"] * steps.astype(np.float64)
    return np.where((steps == NOWHERE).all(1, keepdims=True), np.nan, xy)


def test_the_axes_are_those_of_the_singular_value_decomposition():
    W, alive = directions()
    found = direction_map(W, alive, "pca")
    unit = W[alive].double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    left, sizes, axes = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert found.shares == pytest.approx(sizes[:2] ** 2 / (sizes**2).sum(), rel=1e-5)
    expected = left[:, :2] * sizes[:2]
    signs = np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(1)])
    assert found.xy_N2 == pytest.approx(expected * signs, abs=1e-5)
    assert found.latents.tolist() == alive.nonzero()[:, 0].tolist()


def test_the_length_of_a_decoder_row_does_not_matter():
    W, alive = directions()
    longer = W * torch.linspace(0.1, 30, len(W))[:, None]
    one, other = direction_map(W, alive, "pca"), direction_map(longer, alive, "pca")
    assert one.xy_N2 == pytest.approx(other.xy_N2, abs=1e-5)


def test_the_file_holds_positions_to_half_a_step():
    W, alive = directions()
    found = direction_map(W, alive, "pca")
    packed = found.packed(len(W))
    xy = unpacked(packed)
    assert np.isnan(xy).all(1).tolist() == (~alive).tolist()
    assert np.abs(xy[alive.numpy()] - found.xy_N2).max() <= packed["step"] / 2 * (1 + 1e-9)
    assert packed["step"] == pytest.approx(np.ptp(found.xy_N2, axis=0).max() / STEPS)


def test_rows_of_one_value_have_one_axis():
    W = torch.tensor([[1.0], [-2.0], [3.0], [4.0]])
    found = direction_map(W, torch.ones(4, dtype=torch.bool), "pca")
    assert found.shares == (pytest.approx(1.0), 0.0)
    assert (found.xy_N2[:, 1] == 0).all() and found.xy_N2[1, 0] < found.xy_N2[0, 0]


@pytest.mark.parametrize("kind, alive", [("none", 9), ("pca", 2), ("pca", 0)])
def test_no_map_is_drawn(kind, alive):
    assert direction_map(torch.randn(9, 4), torch.arange(9) < alive, kind) is None


def test_umap_that_is_not_installed_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingError, match="needs umap-learn") as error:
        check_map("umap")
    assert error.value.hint == "pip install 'saekit[umap]'"
    check_map("pca")


@pytest.mark.slow
def test_umap_keeps_groups_together_and_is_the_same_each_time():
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 20, generator=generator)
    group = torch.arange(120) % 3
    W = centers[group] + 0.2 * torch.randn(120, 20, generator=generator)
    alive = torch.ones(120, dtype=torch.bool)
    one, again = (direction_map(W, alive, "umap") for _ in range(2))
    assert one.shares is None and np.array_equal(one.xy_N2, again.xy_N2)
    apart = np.linalg.norm(one.xy_N2[:, None] - one.xy_N2[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (group.numpy()[apart.argmin(1)] == group.numpy()).all()
